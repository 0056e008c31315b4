//! One metadata call, tried until it is answered or patience ends: which node to ask, what its answer means for the
//! next try, and whether anybody may have received it.
//!
//! | answer | next |
//! |---|---|
//! | body | done |
//! | leader | ask that node |
//! | epoch | read the range directory again |
//! | busy, no connection | surely not proposed by this try: wait, ask again; where no leader is known, another node |
//! | unknown, broken, late | it may have been proposed: the same bytes again (session and seq make it happen once) |
//! | none, and the node is silent | the same, at another node: a silent one is asked only where there is no other |
//! | none of any that is known to hold the range | read the directory, if the root answers soon: others may hold it by now |
//!
//! Reads go the same way; for them "may have been received" means nothing.

use crate::Failure;
use crate::inner::Inner;
use ashlar_host::Monotonic;
use ashlar_types::{
    KeyPoint, NodeId, RangeDescriptor, RangeId, RootAnswer, RootQuery, decode, encode,
};
use ashlar_wire::Class;
use ashlar_wire::proto::metadata_client::MetadataClient;
use ashlar_wire::proto::metadata_reply::Result as Reply;
use ashlar_wire::proto::{MetadataReply, MetadataRequest};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

/// A try that takes longer is made elsewhere, also where its node answers others.
const TRY_PATIENCE: Duration = Duration::from_secs(2);
/// A wait that ends so late was stopped itself: that nothing was heard meanwhile says nothing of others.
const OVERSLEPT: Duration = Duration::from_millis(250);
/// The first wait after a failed try; it doubles up to [`WAIT_MAX`].
const WAIT_MIN: Duration = Duration::from_millis(4);
const WAIT_MAX: Duration = Duration::from_millis(200);
/// So many redirections in a row are followed at once: two nodes may each believe in the other.
const REDIRECTS_AT_ONCE: u32 = 3;
/// How long the root may take to say who holds a range of which nobody answers: they may be about to.
const LOOK_PATIENCE: Duration = Duration::from_millis(500);
/// Pages, pieces with inline bytes and the cluster map are larger than tonic's default of 4 MiB.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Whom a call is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target<'a> {
    Root,
    /// The range that holds this point.
    At(&'a KeyPoint),
    /// The range that holds this point, as long as it is this one.
    In(&'a KeyPoint, RangeId),
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unanswered {
    /// The point is another range's now. None of the tries of this call was answered by it.
    #[error("the key has gone to another range")]
    Moved,
    /// Patience has ended.
    #[error("{0}")]
    GivenUp(String),
}

impl From<String> for Unanswered {
    fn from(reason: String) -> Self {
        Self::GivenUp(reason)
    }
}

/// Which of the two RPCs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Execute,
    Query,
}

/// What is known of a request that goes out again and again.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// When patience ends.
    pub(crate) deadline: Monotonic,
    /// Whether a node may have received it and proposed it.
    pub(crate) maybe_received: bool,
    wait: Duration,
    redirects: u32,
    /// Which candidate is asked next when no leader is known.
    turn: usize,
    /// Tries without an answer since the directory was read.
    in_vain: usize,
}

/// An answered call.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) body: Bytes,
    /// Who answered; `None`: the root.
    pub(crate) range: Option<Arc<RangeDescriptor>>,
}

impl Attempt {
    pub(crate) fn new(inner: &Inner) -> Self {
        Self {
            deadline: inner.host.clock.now() + inner.config.patience,
            maybe_received: false,
            wait: WAIT_MIN,
            redirects: 0,
            turn: usize::try_from(inner.host.random.next_u64() % 1024).unwrap_or(0),
            in_vain: 0,
        }
    }

    /// What a command comes to when patience has ended.
    pub(crate) fn give_up(&self, reason: String) -> Failure {
        if self.maybe_received { Failure::unknown(reason) } else { Failure::unavailable(reason) }
    }

    /// Waits a moment, a longer one each time. `false`: patience has ended.
    pub(crate) async fn pause(&mut self, inner: &Inner, at_least: Duration) -> bool {
        let jitter = 50 + u32::try_from(inner.host.random.next_u64() % 101).unwrap_or(50);
        let wait = (self.wait * jitter / 100).max(at_least);
        self.wait = (self.wait * 2).min(WAIT_MAX);
        if inner.host.clock.now() + wait >= self.deadline {
            return false;
        }
        inner.host.clock.sleep(wait).await;
        true
    }
}

impl Inner {
    /// The range that holds a point.
    pub(crate) async fn range_at(
        &self,
        point: &KeyPoint,
        deadline: Monotonic,
    ) -> Result<Arc<RangeDescriptor>, String> {
        if let Some(range) = self.directory.find(point) {
            return Ok(range);
        }
        Box::pin(self.refresh_directory(self.host.clock.now(), deadline)).await?;
        let known = self.directory.find(point);
        known.ok_or_else(|| "the range directory does not cover the key".to_owned())
    }

    /// Sends `body` until it is answered.
    pub(crate) async fn call(
        &self,
        target: Target<'_>,
        verb: Verb,
        body: Bytes,
        attempt: &mut Attempt,
    ) -> Result<Answered, Unanswered> {
        let mut reason = String::from("no node is known that could be asked");
        loop {
            let range = match target {
                Target::Root => None,
                Target::At(point) | Target::In(point, _) => {
                    Some(self.range_at(point, attempt.deadline).await?)
                }
            };
            if let (Target::In(_, meant), Some(range)) = (target, &range)
                && range.id != meant
            {
                return Err(Unanswered::Moved);
            }
            let pause = match self.try_once(range.as_deref(), verb, body.clone(), attempt).await {
                Next::Done(body) => return Ok(Answered { body, range }),
                Next::Again => Duration::ZERO,
                Next::Wait(pause, why) => {
                    reason = why;
                    if range.as_deref().is_some_and(|range| attempt.in_vain > range.voters.len()) {
                        attempt.in_vain = 0;
                        self.look_for_others(attempt.deadline).await;
                    }
                    if !attempt.pause(self, pause).await {
                        return Err(reason.into());
                    }
                    Duration::ZERO
                }
                Next::Refresh(seen) => {
                    Box::pin(self.refresh_directory(seen, attempt.deadline)).await?;
                    "the range has moved on".clone_into(&mut reason);
                    WAIT_MIN
                }
            };
            if !pause.is_zero() && !attempt.pause(self, pause).await {
                return Err(reason.into());
            }
        }
    }

    async fn try_once(
        &self,
        range: Option<&RangeDescriptor>,
        verb: Verb,
        body: Bytes,
        attempt: &mut Attempt,
    ) -> Next {
        let id = range.map_or(RangeId::ROOT, |range| range.id);
        let Some(address) = self.whom_to_ask(range, attempt) else {
            self.want_map();
            return Next::wait("no node is known that could be asked".to_owned());
        };
        let request =
            MetadataRequest { range: id.0, epoch: range.map_or(0, |range| range.epoch.0), body };
        let sent = self.host.clock.now();
        let patience = TRY_PATIENCE.min(attempt.deadline - sent);
        let answer = self.await_answer(&address, verb, request, patience).await;
        let failed = |attempt: &mut Attempt, why: String| {
            self.directory.set_leader(id, None);
            attempt.turn += 1;
            attempt.in_vain += 1;
            Next::wait(format!("{address}: {why}"))
        };
        match answer {
            None => {
                attempt.maybe_received = true;
                failed(attempt, "no answer came in time".to_owned())
            }
            Some(Err(status)) => {
                attempt.maybe_received |= !never_connected(&status);
                failed(attempt, status.message().to_owned())
            }
            Some(Ok(reply)) => match reply.result {
                Some(Reply::Body(body)) => Next::Done(body),
                Some(Reply::Leader(0)) => failed(attempt, format!("{id} has no leader now")),
                Some(Reply::Leader(node)) if self.is_silent(NodeId(node)) => {
                    failed(attempt, format!("{id} is led by node {node}, which is silent"))
                }
                Some(Reply::Leader(node)) => {
                    self.directory.set_leader(id, Some(NodeId(node)));
                    if !reply.leader_address.is_empty() {
                        self.directory.set_address(NodeId(node), reply.leader_address);
                    }
                    attempt.redirects += 1;
                    if attempt.redirects <= REDIRECTS_AT_ONCE {
                        return Next::Again;
                    }
                    attempt.redirects = 0;
                    failed(attempt, format!("{id} is being sent from node to node"))
                }
                Some(Reply::Epoch(_)) if range.is_none() => {
                    failed(attempt, "it does not hold the root range".to_owned())
                }
                Some(Reply::Epoch(0)) => {
                    self.directory.set_leader(id, None);
                    attempt.turn += 1;
                    Next::Refresh(sent)
                }
                Some(Reply::Epoch(_)) => Next::Refresh(sent),
                Some(Reply::Busy(busy)) => {
                    // one that knows no leader says so too: it may be no member any more, and never know one
                    if self.directory.leader(id).is_none() {
                        attempt.turn += 1;
                        attempt.in_vain += 1;
                    }
                    let pause = Duration::from_millis(u64::from(busy.retry_after_ms));
                    Next::Wait(pause, format!("{address}: busy: {}", busy.reason))
                }
                Some(Reply::Unknown(why)) => {
                    attempt.maybe_received = true;
                    failed(attempt, why)
                }
                None => {
                    // an answer of a kind that this binary does not know: the command may have been proposed (C7)
                    attempt.maybe_received = true;
                    failed(attempt, "the answer is of an unknown kind".to_owned())
                }
            },
        }
    }

    /// The answer to one try. `None`: none came in time, or the node is silent.
    async fn await_answer(
        &self,
        address: &str,
        verb: Verb,
        request: MetadataRequest,
        patience: Duration,
    ) -> Option<Result<MetadataReply, tonic::Status>> {
        let (clock, silence) = (&self.host.clock, &self.silence);
        let sent = clock.now();
        let mut sending = pin!(self.send(address, verb, request));
        // there was no other to ask
        if silence.is_silent(address, sent) {
            return clock.timeout(patience, sending).await.ok();
        }
        let mut listening = sent;
        loop {
            let look_at = silence.silent_from(address, listening).min(sent + patience);
            tokio::select! {
                biased;
                answer = &mut sending => return Some(answer),
                () = silence.noticed(address, sent) => return None,
                () = clock.sleep(look_at - clock.now()) => {}
            }
            let now = clock.now();
            if now - look_at > OVERSLEPT {
                listening = now;
            }
            if silence.judge(address, listening, now) || now - sent >= patience {
                return None;
            }
        }
    }

    pub(crate) async fn send(
        &self,
        address: &str,
        verb: Verb,
        request: MetadataRequest,
    ) -> Result<MetadataReply, tonic::Status> {
        let channel = self.dialer.channel(address, Class::Metadata);
        let mut client = MetadataClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let reply = match verb {
            Verb::Execute => client.execute(request).await,
            Verb::Query => client.query(request).await,
        };
        if reply.is_ok() {
            self.silence.heard(address, self.host.clock.now());
        }
        reply.map(tonic::Response::into_inner)
    }

    fn is_silent(&self, node: NodeId) -> bool {
        let (map, now) = (self.map.load(), self.host.clock.now());
        map.nodes.get(&node).is_some_and(|node| self.silence.is_silent(&node.address, now))
    }

    /// The leader if it is known, else each voter in turn; for the root also the seeds. Silent ones only if all are.
    fn whom_to_ask(&self, range: Option<&RangeDescriptor>, attempt: &Attempt) -> Option<String> {
        let (map, now) = (self.map.load(), self.host.clock.now());
        let address_of = |id: &NodeId| {
            let known = map.nodes.get(id).map(|node| node.address.clone());
            known.or_else(|| self.directory.address(*id))
        };
        let is_heard = |address: &String| !self.silence.is_silent(address, now);
        let id = range.map_or(RangeId::ROOT, |range| range.id);
        let leader = self.directory.leader(id).as_ref().and_then(address_of);
        if let Some(address) = leader.filter(is_heard) {
            return Some(address);
        }
        let candidates: BTreeSet<String> = match range {
            Some(range) => range.voters.iter().filter_map(address_of).collect(),
            None => {
                let metas = map
                    .nodes
                    .values()
                    .filter(|node| node.roles.contains(&ashlar_types::Role::Meta));
                let seeds = self.config.seeds.iter().cloned();
                metas.map(|node| node.address.clone()).chain(seeds).collect()
            }
        };
        let heard: BTreeSet<String> =
            candidates.iter().filter(|address| is_heard(address)).cloned().collect();
        let asked = if heard.is_empty() { candidates } else { heard };
        let count = asked.len();
        (count > 0).then(|| asked.into_iter().nth(attempt.turn % count)).flatten()
    }

    /// All that are known to hold a range are away, or say that others lead it: they may have been replaced.
    async fn look_for_others(&self, deadline: Monotonic) {
        let now = self.host.clock.now();
        let soon = deadline.min(now + LOOK_PATIENCE);
        if let Err(why) = Box::pin(self.refresh_directory(now, soon)).await {
            tracing::debug!(why, "who holds the range is not known anew");
        }
    }

    /// Reads the range directory from the root, unless somebody has done so since `seen`.
    pub(crate) async fn refresh_directory(
        &self,
        seen: Monotonic,
        deadline: Monotonic,
    ) -> Result<(), String> {
        let mut refreshed = self.directory_refreshed.lock().await;
        if refreshed.is_some_and(|when| when > seen) {
            return Ok(());
        }
        let mut attempt = Attempt { deadline, ..Attempt::new(self) };
        let body = Bytes::from(encode(&RootQuery::Ranges));
        let answered = self.call(Target::Root, Verb::Query, body, &mut attempt).await;
        let answered = answered.map_err(|unanswered| unanswered.to_string())?;
        match decode::<RootAnswer>(&answered.body) {
            Ok(RootAnswer::Ranges(ranges)) => {
                self.directory.install(ranges);
                *refreshed = Some(self.host.clock.now());
                Ok(())
            }
            Ok(RootAnswer::NotBootstrapped) => Err("there is no cluster yet".to_owned()),
            Ok(_) => Err("the range directory was answered by something else".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// What follows a try.
enum Next {
    Done(Bytes),
    /// At once: the leader is known now.
    Again,
    Wait(Duration, String),
    /// The directory is older than this moment.
    Refresh(Monotonic),
}

impl Next {
    fn wait(why: String) -> Self {
        Self::Wait(Duration::ZERO, why)
    }
}

/// Whether no connection was made, so that nobody can have received the request.
fn never_connected(status: &tonic::Status) -> bool {
    let mut error: Option<&(dyn Error + 'static)> = status.source();
    while let Some(cause) = error {
        if cause.is::<tonic::ConnectError>() {
            return true;
        }
        error = cause.source();
    }
    false
}
