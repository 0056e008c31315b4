//! Bytes of log entries, votes, log ids and Raft messages.
//!
//! All integers are little-endian and of fixed size; the tables are in `docs/formats/raft.md`. An entry's payload is
//! laid out once, by the proposer, and the same bytes go through the WAL and over the wire without being copied apart.

use crate::agreement::Witness;
use crate::birth::Origin;
use crate::boots::Boot;
use crate::raft::{
    AppendEntriesRequest, Entry, EntryPayload, LogId, Membership, Operation, PeerNode, RaftEntry,
    StoredMembership, StreamAppendError, StreamAppendResult, TransferLeaderRequest, Types, Vote,
    VoteRequest, VoteResponse, log_id, peer_node,
};
use ashlar_types::{ClusterId, RangeDescriptor, RangeId, decode, encode};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::{BTreeMap, BTreeSet};

/// The version of a payload in the log, and of a vote and a log id in the WAL.
pub(crate) const STORED_VERSION: u8 = 1;
/// The version of a Raft message.
pub(crate) const MESSAGE_VERSION: u8 = 1;

/// Bytes that are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {detail}")]
pub(crate) struct BadBytes {
    what: &'static str,
    detail: String,
}

fn bad(what: &'static str, detail: impl Into<String>) -> BadBytes {
    BadBytes { what, detail: detail.into() }
}

impl From<BadBytes> for std::io::Error {
    fn from(error: BadBytes) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// Reads fields, and says what was read when they run out.
struct Fields {
    what: &'static str,
    bytes: Bytes,
}

impl Fields {
    fn new(what: &'static str, bytes: Bytes) -> Self {
        Self { what, bytes }
    }

    fn need(&self, count: usize) -> Result<(), BadBytes> {
        let short =
            || bad(self.what, format!("{} bytes where {count} are needed", self.bytes.len()));
        (self.bytes.len() >= count).then_some(()).ok_or_else(short)
    }

    fn u8(&mut self) -> Result<u8, BadBytes> {
        self.need(1)?;
        Ok(self.bytes.get_u8())
    }

    fn u32(&mut self) -> Result<u32, BadBytes> {
        self.need(4)?;
        Ok(self.bytes.get_u32_le())
    }

    fn u64(&mut self) -> Result<u64, BadBytes> {
        self.need(8)?;
        Ok(self.bytes.get_u64_le())
    }

    fn u128(&mut self) -> Result<u128, BadBytes> {
        self.need(16)?;
        Ok(self.bytes.get_u128_le())
    }

    fn flag(&mut self) -> Result<bool, BadBytes> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(bad(self.what, format!("{other} where 0 or 1 was expected"))),
        }
    }

    fn slice(&mut self) -> Result<Bytes, BadBytes> {
        let length =
            usize::try_from(self.u32()?).map_err(|_| bad(self.what, "a length beyond memory"))?;
        self.need(length)?;
        Ok(self.bytes.split_to(length))
    }

    fn version(&mut self, known: u8) -> Result<(), BadBytes> {
        let found = self.u8()?;
        let newer = || {
            bad(
                self.what,
                format!(
                    "format {found} is not known, {known} is: use one release of ashlar on all nodes"
                ),
            )
        };
        (found == known).then_some(()).ok_or_else(newer)
    }

    fn end(self) -> Result<(), BadBytes> {
        let rest = || bad(self.what, format!("{} bytes too many", self.bytes.len()));
        self.bytes.is_empty().then_some(()).ok_or_else(rest)
    }

    fn log_id(&mut self) -> Result<LogId, BadBytes> {
        Ok(log_id(self.u64()?, self.u64()?))
    }

    fn optional_log_id(&mut self) -> Result<Option<LogId>, BadBytes> {
        if self.flag()? { self.log_id().map(Some) } else { Ok(None) }
    }

    fn boot(&mut self) -> Result<Boot, BadBytes> {
        Ok(Boot { incarnation: self.u64()?, nonce: self.u64()? })
    }

    fn vote(&mut self) -> Result<Vote, BadBytes> {
        let (term, node) = (self.u64()?, self.u64()?);
        Ok(if self.flag()? { Vote::new_committed(term, node) } else { Vote::new(term, node) })
    }
}

fn put_log_id(to: &mut BytesMut, id: LogId) {
    to.put_u64_le(id.leader_id.term);
    to.put_u64_le(id.index);
}

fn put_optional_log_id(to: &mut BytesMut, id: Option<LogId>) {
    to.put_u8(u8::from(id.is_some()));
    if let Some(id) = id {
        put_log_id(to, id);
    }
}

fn put_vote(to: &mut BytesMut, vote: &Vote) {
    to.put_u64_le(vote.leader_id.term);
    to.put_u64_le(vote.leader_id.voted_for);
    to.put_u8(u8::from(vote.committed));
}

fn put_boot(to: &mut BytesMut, boot: Boot) {
    to.put_u64_le(boot.incarnation);
    to.put_u64_le(boot.nonce);
}

fn put_count(to: &mut BytesMut, count: usize) {
    to.put_u32_le(
        u32::try_from(count).expect("bounded by the batch limits, far below four thousand million"),
    );
}

/// A vote, as the WAL keeps it.
pub(crate) fn vote_bytes(vote: &Vote) -> Bytes {
    let mut to = BytesMut::with_capacity(18);
    to.put_u8(STORED_VERSION);
    put_vote(&mut to, vote);
    to.freeze()
}

/// The inverse of [`vote_bytes`].
pub(crate) fn read_vote(bytes: Bytes) -> Result<Vote, BadBytes> {
    let mut fields = Fields::new("vote", bytes);
    fields.version(STORED_VERSION)?;
    let vote = fields.vote()?;
    fields.end().map(|()| vote)
}

/// A log id, as the WAL and the map keep it.
pub(crate) fn log_id_bytes(id: LogId) -> Bytes {
    let mut to = BytesMut::with_capacity(17);
    to.put_u8(STORED_VERSION);
    put_log_id(&mut to, id);
    to.freeze()
}

/// The inverse of [`log_id_bytes`].
pub(crate) fn read_log_id(bytes: Bytes) -> Result<LogId, BadBytes> {
    let mut fields = Fields::new("log id", bytes);
    fields.version(STORED_VERSION)?;
    let id = fields.log_id()?;
    fields.end().map(|()| id)
}

const KIND_BLANK: u8 = 0;
const KIND_BATCH: u8 = 1;
const KIND_MEMBERSHIP: u8 = 2;

/// The payload of an entry that carries a batch: version, kind, then the batch under its own version.
pub(crate) fn batch_operation(batch: &[u8]) -> Operation {
    let mut to = BytesMut::with_capacity(2 + batch.len());
    to.put_slice(&[STORED_VERSION, KIND_BATCH]);
    to.put_slice(batch);
    Operation(to.freeze())
}

/// The batch inside an operation.
pub(crate) fn batch_of(operation: &Operation) -> Bytes {
    operation.0.slice(2.min(operation.0.len())..)
}

/// The payload of an entry: what the WAL keeps and the wire carries.
pub(crate) fn payload_bytes(entry: &Entry) -> Bytes {
    match &entry.payload {
        EntryPayload::Blank => Bytes::from_static(&[STORED_VERSION, KIND_BLANK]),
        EntryPayload::Normal(operation) => operation.0.clone(),
        EntryPayload::Membership(membership) => {
            let mut to = BytesMut::new();
            to.put_slice(&[STORED_VERSION, KIND_MEMBERSHIP]);
            put_membership(&mut to, membership);
            to.freeze()
        }
    }
}

/// The entry of a payload.
pub(crate) fn read_entry(term: u64, index: u64, bytes: Bytes) -> Result<Entry, BadBytes> {
    let mut fields = Fields::new("log entry", bytes.clone());
    fields.version(STORED_VERSION)?;
    let payload = match fields.u8()? {
        KIND_BLANK => fields.end().map(|()| EntryPayload::Blank)?,
        KIND_BATCH => EntryPayload::Normal(Operation(bytes)),
        KIND_MEMBERSHIP => {
            let membership = membership(&mut fields)?;
            fields.end().map(|()| EntryPayload::Membership(membership))?
        }
        other => {
            return Err(bad(
                "log entry",
                format!("kind {other} is not known: upgrade this binary"),
            ));
        }
    };
    Ok(Entry::new(log_id(term, index), payload))
}

fn put_membership(to: &mut BytesMut, membership: &Membership) {
    put_count(to, membership.get_joint_config().len());
    for config in membership.get_joint_config() {
        put_count(to, config.len());
        config.iter().for_each(|&node| to.put_u64_le(node));
    }
    let nodes: Vec<u64> = membership.nodes().map(|(&node, _)| node).collect();
    put_count(to, nodes.len());
    nodes.into_iter().for_each(|node| to.put_u64_le(node));
}

fn membership(fields: &mut Fields) -> Result<Membership, BadBytes> {
    let mut configs = Vec::new();
    for _ in 0..fields.u32()? {
        let count = fields.u32()?;
        let config: Result<BTreeSet<u64>, BadBytes> = (0..count).map(|_| fields.u64()).collect();
        configs.push(config?);
    }
    let count = fields.u32()?;
    let nodes: Result<BTreeMap<u64, PeerNode>, BadBytes> =
        (0..count).map(|_| Ok((fields.u64()?, peer_node()))).collect();
    let (nodes, empty) = (nodes?, configs.is_empty());
    if empty && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|error| bad("membership", error.to_string()))
}

/// A membership and where it stands in the log, as the map and a snapshot keep it.
pub(crate) fn stored_membership_bytes(stored: &StoredMembership) -> Bytes {
    let mut to = BytesMut::new();
    to.put_u8(STORED_VERSION);
    put_optional_log_id(&mut to, *stored.log_id());
    put_membership(&mut to, stored.membership());
    to.freeze()
}

/// The inverse of [`stored_membership_bytes`].
pub(crate) fn read_stored_membership(bytes: Bytes) -> Result<StoredMembership, BadBytes> {
    let mut fields = Fields::new("membership", bytes);
    fields.version(STORED_VERSION)?;
    let id = fields.optional_log_id()?;
    let membership = membership(&mut fields)?;
    fields.end().map(|()| StoredMembership::new(id, membership))
}

/// In a `Created` record, where version 1 has the version of the descriptor, which is never 0: the record's own follows.
const OWN_VERSION_FOLLOWS: u8 = 0;
/// The version of a `Created` record of a range that was a part of another.
const CREATED_VERSION: u8 = 2;
/// The version of one of a replica that has begun anew.
const CREATED_ANEW_VERSION: u8 = 3;

/// What a group began with. One that was never a part of another is written as version 1, which every binary reads.
pub(crate) fn created_bytes(
    cluster: ClusterId,
    descriptor: &RangeDescriptor,
    origin: Option<&Origin>,
    anew_at: Option<u64>,
) -> Bytes {
    let mut to = BytesMut::new();
    to.put_u128_le(cluster.0);
    if let Some(index) = anew_at {
        let has_origin = u8::from(origin.is_some());
        to.put_slice(&[OWN_VERSION_FOLLOWS, CREATED_ANEW_VERSION, has_origin]);
        to.put_u64_le(index);
    }
    if let Some(Origin { parent, split, membership, inherited }) = origin {
        if anew_at.is_none() {
            to.put_slice(&[OWN_VERSION_FOLLOWS, CREATED_VERSION]);
        }
        to.put_u8(u8::from(*inherited));
        to.put_u64_le(parent.0);
        put_log_id(&mut to, *split);
        let membership = stored_membership_bytes(membership);
        put_count(&mut to, membership.len());
        to.put_slice(&membership);
    }
    to.put_slice(&encode(descriptor));
    to.freeze()
}

/// The inverse of [`created_bytes`].
pub(crate) fn read_created(bytes: Bytes) -> Result<StoredCreated, BadBytes> {
    let what = "record of a created group";
    let mut fields = Fields::new(what, bytes);
    let cluster = ClusterId(fields.u128()?);
    let (mut has_origin, mut anew_at) = (false, None);
    if fields.bytes.first() == Some(&OWN_VERSION_FOLLOWS) {
        fields.u8()?;
        has_origin = true;
        if fields.bytes.first() == Some(&CREATED_ANEW_VERSION) {
            fields.u8()?;
            has_origin = fields.flag()?;
            anew_at = Some(fields.u64()?);
        } else {
            fields.version(CREATED_VERSION)?;
        }
    }
    let origin = has_origin.then(|| read_origin(&mut fields)).transpose()?;
    let descriptor = decode(&fields.bytes).map_err(|error| bad(what, error.to_string()))?;
    Ok(StoredCreated { cluster, descriptor, origin, anew_at })
}

/// The fields of a `Created` record.
pub(crate) struct StoredCreated {
    pub(crate) cluster: ClusterId,
    pub(crate) descriptor: RangeDescriptor,
    pub(crate) origin: Option<Origin>,
    pub(crate) anew_at: Option<u64>,
}

fn read_origin(fields: &mut Fields) -> Result<Origin, BadBytes> {
    let inherited = fields.flag()?;
    let (parent, split) = (RangeId(fields.u64()?), fields.log_id()?);
    let membership = read_stored_membership(fields.slice()?)?;
    Ok(Origin { parent, split, membership, inherited })
}

/// Who sends a message, and to whom: a message that went astray is refused, not obeyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Envelope {
    /// The cluster of the sender.
    pub(crate) cluster: ClusterId,
    /// The sender.
    pub(crate) from: u64,
    /// The start of the sender.
    pub(crate) boot: Boot,
    /// Whom the sender wants to reach.
    pub(crate) to: u64,
    /// The start of the addressee that is meant: no other answers.
    pub(crate) to_boot: Boot,
}

fn sealed(envelope: &Envelope, room: usize) -> BytesMut {
    let mut to = BytesMut::with_capacity(65 + room);
    to.put_u8(MESSAGE_VERSION);
    to.put_u128_le(envelope.cluster.0);
    to.put_u64_le(envelope.from);
    put_boot(&mut to, envelope.boot);
    to.put_u64_le(envelope.to);
    put_boot(&mut to, envelope.to_boot);
    to
}

/// A refusal that has to do with boots, beside its sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WrongBoot {
    /// The sender is an old image: this boot of it is known.
    Sender(Boot),
    /// The message is meant for another boot of the addressee, which is this one.
    Addressee(Boot),
}

/// The details of a refusal.
pub(crate) fn wrong_boot_bytes(wrong: WrongBoot) -> Bytes {
    let mut to = BytesMut::with_capacity(18);
    to.put_u8(MESSAGE_VERSION);
    let (kind, boot) = match wrong {
        WrongBoot::Sender(boot) => (1, boot),
        WrongBoot::Addressee(boot) => (2, boot),
    };
    to.put_u8(kind);
    put_boot(&mut to, boot);
    to.freeze()
}

/// The inverse of [`wrong_boot_bytes`].
pub(crate) fn read_wrong_boot(bytes: Bytes) -> Result<WrongBoot, BadBytes> {
    let mut fields = Fields::new("refusal", bytes);
    fields.version(MESSAGE_VERSION)?;
    let wrong = match fields.u8()? {
        1 => WrongBoot::Sender(fields.boot()?),
        2 => WrongBoot::Addressee(fields.boot()?),
        other => return Err(bad("refusal", format!("kind {other} is not known"))),
    };
    fields.end().map(|()| wrong)
}

/// What a message asks.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    /// Entries, or a heartbeat.
    Append(AppendEntriesRequest<Types>),
    /// A vote, or (`pre`) whether it would be granted.
    Vote { pre: bool, request: VoteRequest<Types> },
    /// "Stand for election now."
    Transfer(TransferLeaderRequest<Types>),
    /// A snapshot follows, of so many bytes, for what is in the log up to `last`.
    Snapshot { vote: Vote, last: Option<LogId>, membership: StoredMembership, length: u64 },
    /// "My replica is damaged: take me out", or (`emptied`) "my replica begins anew: take me in".
    Refill { emptied: bool },
    /// "What are your state hashes behind these entries?"
    Hashes(Vec<u64>),
}

/// What a node answers to one that wants to be refilled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RefillAnswer {
    /// Ask the leader.
    NotLeader(Option<u64>),
    /// Nothing is decided: ask again. Why.
    NotYet(String),
    /// That the sender is no member is committed, under this vote, and was when this index was.
    Removed { vote: Vote, confirmed: u64 },
    /// The sender is a voter.
    Voter,
    /// The sender is no member, and is not to be one.
    Outside,
}

const ASK_APPEND: u8 = 1;
const ASK_VOTE: u8 = 2;
const ASK_TRANSFER: u8 = 3;
const ASK_SNAPSHOT: u8 = 4;
const ASK_REFILL: u8 = 5;
const ASK_HASHES: u8 = 6;

/// The body of a message.
pub(crate) fn message_bytes(envelope: &Envelope, message: &Message) -> Bytes {
    match message {
        Message::Append(request) => append_bytes(envelope, request),
        Message::Vote { pre, request } => {
            let mut to = sealed(envelope, 48);
            to.put_u8(ASK_VOTE);
            to.put_u8(u8::from(*pre));
            put_vote(&mut to, &request.vote);
            put_optional_log_id(&mut to, request.last_log_id);
            to.put_u8(u8::from(request.leadership_transfer));
            to.freeze()
        }
        Message::Transfer(request) => {
            let mut to = sealed(envelope, 48);
            to.put_u8(ASK_TRANSFER);
            put_vote(&mut to, request.from_leader());
            to.put_u64_le(*request.to_node_id());
            put_optional_log_id(&mut to, request.last_log_id().copied());
            to.freeze()
        }
        Message::Snapshot { vote, last, membership, length } => {
            let membership = stored_membership_bytes(membership);
            let mut to = sealed(envelope, 64 + membership.len());
            to.put_u8(ASK_SNAPSHOT);
            put_vote(&mut to, vote);
            put_optional_log_id(&mut to, *last);
            put_count(&mut to, membership.len());
            to.put_slice(&membership);
            to.put_u64_le(*length);
            to.freeze()
        }
        Message::Refill { emptied } => {
            let mut to = sealed(envelope, 2);
            to.put_slice(&[ASK_REFILL, u8::from(*emptied)]);
            to.freeze()
        }
        Message::Hashes(indices) => {
            let mut to = sealed(envelope, 5 + 8 * indices.len());
            to.put_u8(ASK_HASHES);
            put_count(&mut to, indices.len());
            indices.iter().for_each(|index| to.put_u64_le(*index));
            to.freeze()
        }
    }
}

fn append_bytes(envelope: &Envelope, request: &AppendEntriesRequest<Types>) -> Bytes {
    let payloads: Vec<Bytes> = request.entries.iter().map(payload_bytes).collect();
    let room: usize = payloads.iter().map(|payload| payload.len() + 20).sum();
    let mut to = sealed(envelope, 64 + room);
    to.put_u8(ASK_APPEND);
    put_vote(&mut to, &request.vote);
    put_optional_log_id(&mut to, request.prev_log_id);
    put_optional_log_id(&mut to, request.leader_commit);
    put_count(&mut to, payloads.len());
    for (entry, payload) in request.entries.iter().zip(payloads) {
        put_log_id(&mut to, entry.log_id);
        put_count(&mut to, payload.len());
        to.put_slice(&payload);
    }
    to.freeze()
}

/// The inverse of [`message_bytes`]; payloads share the body's memory.
pub(crate) fn read_message(body: Bytes) -> Result<(Envelope, Message), BadBytes> {
    let mut fields = Fields::new("Raft message", body);
    fields.version(MESSAGE_VERSION)?;
    let cluster = ClusterId(fields.u128()?);
    let (from, boot, to, to_boot) = (fields.u64()?, fields.boot()?, fields.u64()?, fields.boot()?);
    let message = match fields.u8()? {
        ASK_APPEND => Message::Append(append(&mut fields)?),
        ASK_VOTE => vote_request(&mut fields)?,
        ASK_TRANSFER => {
            let (vote, node) = (fields.vote()?, fields.u64()?);
            Message::Transfer(TransferLeaderRequest::new(vote, node, fields.optional_log_id()?))
        }
        ASK_SNAPSHOT => Message::Snapshot {
            vote: fields.vote()?,
            last: fields.optional_log_id()?,
            membership: read_stored_membership(fields.slice()?)?,
            length: fields.u64()?,
        },
        ASK_REFILL => Message::Refill { emptied: fields.flag()? },
        ASK_HASHES => {
            let count = fields.u32()?;
            Message::Hashes((0..count).map(|_| fields.u64()).collect::<Result<_, _>>()?)
        }
        other => return Err(bad("Raft message", format!("kind {other} is not known"))),
    };
    fields.end()?;
    Ok((Envelope { cluster, from, boot, to, to_boot }, message))
}

fn append(fields: &mut Fields) -> Result<AppendEntriesRequest<Types>, BadBytes> {
    let vote = fields.vote()?;
    let (prev_log_id, leader_commit) = (fields.optional_log_id()?, fields.optional_log_id()?);
    let count = fields.u32()?;
    let entries: Result<Vec<Entry>, BadBytes> = (0..count)
        .map(|_| {
            let (term, index) = (fields.u64()?, fields.u64()?);
            read_entry(term, index, fields.slice()?)
        })
        .collect();
    Ok(AppendEntriesRequest { vote, prev_log_id, entries: entries?, leader_commit })
}

fn vote_request(fields: &mut Fields) -> Result<Message, BadBytes> {
    let (pre, vote, last) = (fields.flag()?, fields.vote()?, fields.optional_log_id()?);
    let mut request = VoteRequest::new(vote, last);
    request.leadership_transfer = fields.flag()?;
    Ok(Message::Vote { pre, request })
}

/// The answer to one append of a stream.
pub(crate) fn append_result_bytes(result: &StreamAppendResult<Types>) -> Bytes {
    let mut to = BytesMut::with_capacity(20);
    to.put_u8(MESSAGE_VERSION);
    match result {
        Ok(matching) => {
            to.put_u8(0);
            put_optional_log_id(&mut to, *matching);
        }
        Err(StreamAppendError::Conflict(at)) => {
            to.put_u8(1);
            put_log_id(&mut to, *at);
        }
        Err(StreamAppendError::HigherVote(vote)) => {
            to.put_u8(2);
            put_vote(&mut to, vote);
        }
    }
    to.freeze()
}

/// The inverse of [`append_result_bytes`].
pub(crate) fn read_append_result(body: Bytes) -> Result<StreamAppendResult<Types>, BadBytes> {
    let mut fields = Fields::new("append answer", body);
    fields.version(MESSAGE_VERSION)?;
    let result = match fields.u8()? {
        0 => Ok(fields.optional_log_id()?),
        1 => Err(StreamAppendError::Conflict(fields.log_id()?)),
        2 => Err(StreamAppendError::HigherVote(fields.vote()?)),
        other => return Err(bad("append answer", format!("kind {other} is not known"))),
    };
    fields.end().map(|()| result)
}

/// The answer to one that wants to be refilled.
pub(crate) fn refill_answer_bytes(answer: &RefillAnswer) -> Bytes {
    let mut to = BytesMut::with_capacity(32);
    to.put_u8(MESSAGE_VERSION);
    match answer {
        RefillAnswer::NotLeader(leader) => {
            to.put_u8(0);
            to.put_u64_le(leader.unwrap_or(0));
        }
        RefillAnswer::NotYet(why) => {
            to.put_u8(1);
            put_count(&mut to, why.len());
            to.put_slice(why.as_bytes());
        }
        RefillAnswer::Removed { vote, confirmed } => {
            to.put_u8(4);
            put_vote(&mut to, vote);
            to.put_u64_le(*confirmed);
        }
        RefillAnswer::Voter => to.put_u8(3),
        RefillAnswer::Outside => to.put_u8(5),
    }
    to.freeze()
}

/// The inverse of [`refill_answer_bytes`].
pub(crate) fn read_refill_answer(body: Bytes) -> Result<RefillAnswer, BadBytes> {
    let mut fields = Fields::new("refill answer", body);
    fields.version(MESSAGE_VERSION)?;
    let answer = match fields.u8()? {
        0 => RefillAnswer::NotLeader(Some(fields.u64()?).filter(|&leader| leader != 0)),
        1 => RefillAnswer::NotYet(String::from_utf8_lossy(&fields.slice()?).into_owned()),
        // of a peer that does not say when: whatever it will ever apply may be of before
        2 => RefillAnswer::Removed { vote: fields.vote()?, confirmed: u64::MAX },
        4 => RefillAnswer::Removed { vote: fields.vote()?, confirmed: fields.u64()? },
        3 => RefillAnswer::Voter,
        5 => RefillAnswer::Outside,
        other => return Err(bad("refill answer", format!("kind {other} is not known"))),
    };
    fields.end().map(|()| answer)
}

/// What a replica says of its state.
pub(crate) fn witness_bytes(witness: &Witness) -> Bytes {
    let Witness { marks, is_copy } = witness;
    let mut to = BytesMut::with_capacity(6 + 24 * marks.len());
    to.put_u8(MESSAGE_VERSION);
    to.put_u8(u8::from(*is_copy));
    put_count(&mut to, marks.len());
    for (index, hash) in marks {
        to.put_u64_le(*index);
        to.put_u128_le(*hash);
    }
    to.freeze()
}

/// The inverse of [`witness_bytes`].
pub(crate) fn read_witness(body: Bytes) -> Result<Witness, BadBytes> {
    let mut fields = Fields::new("state hashes", body);
    fields.version(MESSAGE_VERSION)?;
    let is_copy = fields.flag()?;
    let count = fields.u32()?;
    let marks: Result<_, BadBytes> =
        (0..count).map(|_| Ok((fields.u64()?, fields.u128()?))).collect();
    fields.end()?;
    Ok(Witness { marks: marks?, is_copy })
}

/// The answer to a vote.
pub(crate) fn vote_response_bytes(response: &VoteResponse<Types>) -> Bytes {
    let mut to = BytesMut::with_capacity(36);
    to.put_u8(MESSAGE_VERSION);
    put_vote(&mut to, &response.vote);
    to.put_u8(u8::from(response.vote_granted));
    put_optional_log_id(&mut to, response.last_log_id);
    to.freeze()
}

/// The inverse of [`vote_response_bytes`].
pub(crate) fn read_vote_response(body: Bytes) -> Result<VoteResponse<Types>, BadBytes> {
    let mut fields = Fields::new("vote answer", body);
    fields.version(MESSAGE_VERSION)?;
    let (vote, granted) = (fields.vote()?, fields.flag()?);
    let last = fields.optional_log_id()?;
    fields.end().map(|()| VoteResponse::new(vote, last, granted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members() -> Membership {
        let voters = BTreeSet::from([1, 2, 3]);
        let nodes: BTreeMap<u64, PeerNode> = [1, 2, 3, 9].map(|node| (node, peer_node())).into();
        Membership::new(vec![voters], nodes).expect("a voter is a node")
    }

    #[test]
    fn stored_bytes_of_format_1() {
        assert_eq!(
            vote_bytes(&Vote::new_committed(7, 3)).as_ref(),
            [1, 7, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1]
        );
        assert_eq!(
            log_id_bytes(log_id(7, 258)).as_ref(),
            [1, 7, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]
        );
        let voters = BTreeSet::from([5]);
        let one = Membership::new(vec![voters], BTreeMap::from([(5, peer_node())]));
        let entry = Entry::new(log_id(1, 0), EntryPayload::Membership(one.expect("valid")));
        assert_eq!(
            payload_bytes(&entry).as_ref(),
            [
                1, 2, 1, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 0, 0,
                0, 0
            ]
        );
        assert_eq!(payload_bytes(&Entry::new(log_id(1, 0), EntryPayload::Blank)).as_ref(), [1, 0]);
        assert_eq!(batch_operation(b"xy").0.as_ref(), [1, 1, b'x', b'y']);
    }

    #[test]
    fn entries_read_back() {
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(batch_operation(b"batch")),
            EntryPayload::Membership(members()),
        ] {
            let entry = Entry::new(log_id(4, 9), payload);
            assert_eq!(read_entry(4, 9, payload_bytes(&entry)), Ok(entry));
        }
        assert!(read_entry(4, 9, Bytes::from_static(&[1, 7])).is_err());
        assert!(read_entry(4, 9, Bytes::from_static(&[2, 0])).is_err());
        assert!(read_entry(4, 9, Bytes::new()).is_err());
    }

    #[test]
    fn an_append_reads_back_and_any_shorter_body_is_refused() {
        let boot = |incarnation| Boot { incarnation, nonce: 7 };
        let envelope =
            Envelope { cluster: ClusterId(5), from: 1, boot: boot(4), to: 2, to_boot: boot(1) };
        let request = AppendEntriesRequest {
            vote: Vote::new_committed(4, 1),
            prev_log_id: Some(log_id(3, 8)),
            entries: vec![Entry::new(log_id(4, 9), EntryPayload::Normal(batch_operation(b"op")))],
            leader_commit: None,
        };
        let body = message_bytes(&envelope, &Message::Append(request.clone()));
        let (found, message) = read_message(body.clone()).expect("well formed");
        assert_eq!(found, envelope);
        let Message::Append(read) = message else { panic!("another kind") };
        assert_eq!(
            (read.vote, read.prev_log_id, read.entries),
            (request.vote, request.prev_log_id, request.entries)
        );
        for length in 0..body.len() {
            assert!(read_message(body.slice(..length)).is_err(), "{length}");
        }
    }

    #[test]
    fn answers_read_back() {
        for result in [
            Ok(None),
            Ok(Some(log_id(2, 3))),
            Err(StreamAppendError::Conflict(log_id(2, 3))),
            Err(StreamAppendError::HigherVote(Vote::new(9, 1))),
        ] {
            assert_eq!(read_append_result(append_result_bytes(&result)), Ok(result));
        }
        for answer in [
            RefillAnswer::NotLeader(None),
            RefillAnswer::NotLeader(Some(3)),
            RefillAnswer::NotYet("why".to_owned()),
            RefillAnswer::Removed { vote: Vote::new_committed(2, 1), confirmed: 77 },
            RefillAnswer::Voter,
            RefillAnswer::Outside,
        ] {
            assert_eq!(read_refill_answer(refill_answer_bytes(&answer)), Ok(answer));
        }
        for (marks, is_copy) in [(vec![], true), (vec![(9, 1), (1024, u128::MAX)], false)] {
            let witness = Witness { marks, is_copy };
            let body = witness_bytes(&witness);
            assert_eq!(read_witness(body.clone()), Ok(witness));
            assert!(read_witness(body.slice(..body.len() - 1)).is_err());
        }
        let boot = Boot { incarnation: 258, nonce: 3 };
        for wrong in [WrongBoot::Sender(boot), WrongBoot::Addressee(boot)] {
            assert_eq!(read_wrong_boot(wrong_boot_bytes(wrong)), Ok(wrong));
        }
        assert_eq!(
            wrong_boot_bytes(WrongBoot::Addressee(boot)).as_ref(),
            [1, 2, 2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]
        );
        let response = VoteResponse::new(Vote::new(2, 1), Some(log_id(1, 1)), true);
        assert_eq!(read_vote_response(vote_response_bytes(&response)), Ok(response));
        let stored = StoredMembership::new(Some(log_id(1, 1)), members());
        assert_eq!(read_stored_membership(stored_membership_bytes(&stored)), Ok(stored));
        let none = StoredMembership::default();
        assert_eq!(read_stored_membership(stored_membership_bytes(&none)), Ok(none));
    }
}
