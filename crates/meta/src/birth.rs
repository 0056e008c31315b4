//! How a replica comes into being on this node, and what its log says of that: the payload of `Created`.
//!
//! `Created` is written by [`Birth::write`] alone. A birth is made in as many places as there are ways to know that this
//! node is to have a replica, and each shows its reason as a value:
//!
//! | place | reason |
//! |---|---|
//! | a node that has never founded anything | [`FoundingList`]: its operator has named the first members |
//! | a damaged replica (`docs/adr/0009`) | [`Removal`]: the leader has answered that the others have taken it out |
//! | a replica that has applied a split (`docs/adr/0020`) | [`Parted`]: the entry, and the members at it |
//!
//! None of them is in a message that a handler gets, so no message makes a replica: one for a range that is not here is
//! refused. A range that the root's directory gives this node, and that is not here, comes as a damaged one does.

use crate::codec::{BadBytes, StoredCreated, created_bytes, read_created, vote_bytes};
use crate::machine::State;
use crate::node::Formation;
use crate::raft::{LogId, StoredMembership, Vote};
use crate::refill::Removal;
use ashlar_types::{
    BucketId, ClusterId, Epoch, Interval, KeyPoint, NodeId, RangeDescriptor, RangeId, bug,
};
use ashlar_wal::{Record, Wal, WalError};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// What a replica of this node began with: read in its log, or just written there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Created {
    cluster: ClusterId,
    descriptor: RangeDescriptor,
    /// `None`: it was never a part of another range.
    origin: Option<Origin>,
    /// The replica had been here before, and has forgotten what it then did: it was no member when this index was
    /// committed. `None`: it has forgotten nothing.
    anew_at: Option<u64>,
}

/// Where a range comes from that was a part of another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The range that it was a part of.
    pub(crate) parent: RangeId,
    /// The parent's entry that made it: its own indices go on from there.
    pub(crate) split: LogId,
    /// The members of the parent then, and so its own.
    pub(crate) membership: StoredMembership,
    /// Whether the replica began with what the parent had. One that was refilled has begun at nothing; whose part it was
    /// still says what it must not open before.
    pub(crate) inherited: bool,
}

impl Created {
    /// As the log has it; `None`: the group is not on this node.
    pub(crate) fn stored(wal: &Wal, range: RangeId) -> Result<Option<Self>, BadBytes> {
        wal.state(range).created.map(Self::read).transpose()
    }

    fn read(bytes: Bytes) -> Result<Self, BadBytes> {
        let StoredCreated { cluster, descriptor, origin, anew_at } = read_created(bytes)?;
        Ok(Self { cluster, descriptor, origin, anew_at })
    }

    fn to_bytes(&self) -> Bytes {
        created_bytes(self.cluster, &self.descriptor, self.origin.as_ref(), self.anew_at)
    }

    /// Up to which entry it may have been another life of this replica that was a member: of what these entries make,
    /// it may have acknowledged and voted what it does not know any more.
    pub(crate) fn anew_at(&self) -> Option<u64> {
        self.anew_at
    }

    pub(crate) fn range(&self) -> RangeId {
        self.descriptor.id
    }

    pub(crate) fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Interval and epoch are those of the beginning: what they are now, the ledger says.
    pub(crate) fn descriptor(&self) -> &RangeDescriptor {
        &self.descriptor
    }

    pub(crate) fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    fn parent(&self) -> Option<RangeId> {
        self.origin.as_ref().map(|origin| origin.parent)
    }

    /// The log id that its entries follow on; `None`: it began at nothing.
    pub(crate) fn first(&self) -> Option<LogId> {
        self.origin.as_ref().filter(|origin| origin.inherited).map(|origin| origin.split)
    }
}

/// Parents before their children: a range opens after the one that it was a part of.
pub(crate) fn parents_first(mut left: Vec<Created>) -> Vec<Created> {
    let mut ordered = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let ids: BTreeSet<RangeId> = left.iter().map(Created::range).collect();
        let waits = |created: &Created| created.parent().is_some_and(|id| ids.contains(&id));
        let (later, now): (Vec<_>, Vec<_>) = left.into_iter().partition(waits);
        // a range was a part of an older one, so that there is always one that waits for none
        let stuck = now.is_empty();
        ordered.extend(now);
        left = later;
        if stuck {
            ordered.append(&mut left);
        }
    }
    ordered
}

/// What were parts of `range`, and parts of those.
pub(crate) fn descendants(stored: Vec<Created>, range: RangeId) -> Vec<Created> {
    let mut family = BTreeSet::from([range]);
    let mut found = Vec::new();
    for created in parents_first(stored) {
        if created.parent().is_some_and(|parent| family.contains(&parent)) {
            family.insert(created.range());
            found.push(created);
        }
    }
    found
}

/// That a replica is to be on this node: the permission to make it.
pub(crate) struct Birth {
    created: Created,
    first: First,
}

/// What the log says of it beside that it exists.
enum First {
    Nothing,
    /// How it has voted.
    Vote(Vote),
    /// It replaces a damaged one, and has voted so.
    Anew(Vote),
}

/// A range that a replica of this node has made by applying the split of its parent.
pub(crate) struct Parted {
    /// The new range.
    pub(crate) child: RangeDescriptor,
    /// What it was a part of, the entry, and the members of the parent at it.
    pub(crate) parent: RangeId,
    pub(crate) split: LogId,
    pub(crate) membership: StoredMembership,
}

/// Where the state machines of a node bring the ranges that their entries have made.
#[derive(Clone)]
pub(crate) struct Births {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) nursery: Arc<Nursery>,
}

/// Ranges that exist on stable storage since, and wait for whoever opens them.
#[derive(Default)]
pub(crate) struct Nursery {
    born: Mutex<Vec<Born>>,
    told: Notify,
}

impl Nursery {
    /// Brings one. Never waits: this is on the way of apply.
    pub(crate) fn bring(&self, born: Born) {
        self.born.lock().unwrap_or_else(PoisonError::into_inner).push(born);
        self.told.notify_one();
    }

    /// The next start finds them in the log.
    pub(crate) fn forget(&self) {
        self.born.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Waits until there are some, and takes them.
    pub(crate) async fn take(&self) -> Vec<Born> {
        loop {
            let born =
                std::mem::take(&mut *self.born.lock().unwrap_or_else(PoisonError::into_inner));
            if !born.is_empty() {
                return born;
            }
            self.told.notified().await;
        }
    }
}

/// A range that was made by an applied split, and may be opened.
pub(crate) struct Born {
    pub(crate) created: Created,
    pub(crate) state: Arc<State>,
}

impl Birth {
    /// A replica that was taken out of the members begins anew, at nothing. `own`: how it had voted, where that is known: it
    /// never votes again in a term in which it, or the leader, has (R7).
    pub(crate) fn refilled(cluster: ClusterId, removal: Removal, own: Option<Vote>) -> Self {
        let (descriptor, origin, told, confirmed) = removal.into_parts();
        let origin = origin.map(|origin| Origin { inherited: false, ..origin });
        let vote = own.filter(|own| own.leader_id.term > told.leader_id.term).unwrap_or(told);
        let created = Created { cluster, descriptor, origin, anew_at: Some(confirmed) };
        Self { created, first: First::Anew(vote) }
    }

    /// A replica that begins with what its parent has had. It has the term of the entry that made it, as whoever has an entry
    /// of a term: in an earlier one it would elect a leader below its own log.
    pub(crate) fn parted(births: &Births, parted: Parted) -> Self {
        let Parted { child, parent, split, membership } = parted;
        let origin = Origin { parent, split, membership, inherited: true };
        let vote = Vote::new(split.leader_id.term, births.node.0);
        let (cluster, origin) = (births.cluster, Some(origin));
        let created = Created { cluster, descriptor: child, origin, anew_at: None };
        let is_anew = bug!("replay-begins-the-child-anew");
        Self { created, first: if is_anew { First::Anew(vote) } else { First::Vote(vote) } }
    }

    /// Makes it durable, in one batch with what it replaces.
    pub(crate) async fn write(self, wal: &Wal) -> Result<Created, WalError> {
        let Self { created, first } = self;
        let begun = Record::Created { first: created.to_bytes() };
        let vote = |vote| Record::Vote(vote_bytes(&vote));
        let records = match first {
            First::Nothing => vec![begun],
            First::Vote(own) => vec![begun, vote(own)],
            First::Anew(own) => vec![Record::Dropped, begun, vote(own)],
        };
        wal.submit_all_durable(created.range(), records).await?;
        Ok(created)
    }
}

/// The first ranges of a cluster of which a node is a voter, and that it does not have.
pub(crate) struct FoundingList {
    cluster: ClusterId,
    ranges: Vec<RangeDescriptor>,
}

impl FoundingList {
    /// What `node` lacks of a formation: nothing where it holds no metadata at first.
    pub(crate) fn lacking(formation: &Formation, node: NodeId, stored: &[Created]) -> Self {
        let mut ranges = Vec::new();
        if formation.voters.contains(&node) {
            ranges = first_ranges(formation);
            // the root comes last, so that with it all were there
            ranges.push(RangeDescriptor::root(sorted_voters(formation)));
        }
        ranges.retain(|range| !stored.iter().any(|created| created.range() == range.id));
        Self { cluster: formation.cluster, ranges }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// For a node that has founded before: they are lost.
    pub(crate) fn into_lost(self) -> Vec<RangeDescriptor> {
        self.ranges
    }

    /// For a node that has never founded anything: it makes them.
    pub(crate) fn births(self) -> impl Iterator<Item = Birth> {
        let Self { cluster, ranges } = self;
        ranges.into_iter().map(move |descriptor| Birth {
            created: Created { cluster, descriptor, origin: None, anew_at: None },
            first: First::Nothing,
        })
    }
}

/// The first data ranges, pre-split by bucket id.
pub(crate) fn first_ranges(formation: &Formation) -> Vec<RangeDescriptor> {
    let (count, voters) = (formation.ranges, sorted_voters(formation));
    let width = (u64::MAX / count).saturating_add(1);
    let start = |number: u64| KeyPoint::new(BucketId(width * number), []);
    let descriptor = |id, start, end| RangeDescriptor {
        id: RangeId(id),
        epoch: Epoch(1),
        interval: Interval { start, end },
        voters: voters.clone(),
    };
    (0..count)
        .map(|number| {
            descriptor(number + 1, start(number), (number + 1 < count).then(|| start(number + 1)))
        })
        .collect()
}

fn sorted_voters(formation: &Formation) -> Vec<NodeId> {
    let mut voters = formation.voters.clone();
    voters.sort_unstable();
    voters
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::{Membership, log_id, peer_node};
    use ashlar_host::{Disk, Host, RealDisk, SimDisk};
    use ashlar_wal::WalConfig;
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::sync::Arc;

    fn descriptor() -> RangeDescriptor {
        let interval = Interval { start: KeyPoint::new(BucketId(2), *b"k"), end: None };
        RangeDescriptor { id: RangeId(3), epoch: Epoch(4), interval, voters: vec![NodeId(5)] }
    }

    fn began_in_parent() -> Created {
        let voters = vec![BTreeSet::from([5])];
        let members = Membership::new(voters, BTreeMap::from([(5, peer_node())])).expect("valid");
        let origin = Origin {
            parent: RangeId(1),
            split: log_id(7, 258),
            membership: StoredMembership::new(Some(log_id(6, 9)), members),
            inherited: true,
        };
        let descriptor = descriptor();
        Created { cluster: ClusterId(0x4d), descriptor, origin: Some(origin), anew_at: None }
    }

    const CLUSTER: [u8; 16] = [0x4d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    /// A range descriptor of version 1.
    const DESCRIPTOR: [u8; 9] = [1, 3, 4, 2, 1, b'k', 0, 1, 5];

    #[test]
    fn created_of_version_1_reads_as_begun_at_nothing_and_is_still_written_so() {
        let bytes = [&CLUSTER[..], &DESCRIPTOR[..]].concat();
        let created = Created::read(Bytes::from(bytes.clone())).expect("version 1");
        let (cluster, descriptor) = (ClusterId(0x4d), descriptor());
        let begun = Created { cluster, descriptor, origin: None, anew_at: None };
        assert_eq!((&created, created.first()), (&begun, None));
        assert_eq!(created.to_bytes(), bytes);
    }

    #[test]
    fn created_of_version_2_is_these_bytes() {
        let bytes = [
            &CLUSTER[..],
            // a part of another range, version 2, inherited
            &[0, 2, 1],
            // the parent, then term and index of its entry
            &[1, 0, 0, 0, 0, 0, 0, 0],
            &[7, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0],
            // the membership: its length, version 1, a log id, one configuration with node 5, the members
            &[46, 0, 0, 0, 1, 1, 6, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0],
            &[1, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0],
            &[1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0],
            &DESCRIPTOR[..],
        ]
        .concat();
        let created = began_in_parent();
        assert_eq!(created.to_bytes(), bytes);
        assert_eq!(Created::read(Bytes::from(bytes.clone())), Ok(created.clone()));
        assert_eq!(created.first(), Some(log_id(7, 258)));
        for length in 0..bytes.len() {
            let cut = Created::read(Bytes::copy_from_slice(&bytes[..length]));
            assert!(cut.is_err(), "cut at {length}");
        }
        let mut newer = bytes;
        newer[17] = 4;
        let refused = Created::read(Bytes::from(newer)).expect_err("of a newer binary");
        assert!(refused.to_string().contains("format 4"), "{refused}");
    }

    #[test]
    fn created_of_version_3_is_that_of_a_replica_that_has_begun_anew() {
        let founded = Created { origin: None, anew_at: Some(258), ..began_in_parent() };
        // a part of no other range, version 3, no origin, the index
        let bytes = [&CLUSTER[..], &[0, 3, 0, 2, 1, 0, 0, 0, 0, 0, 0], &DESCRIPTOR[..]].concat();
        assert_eq!(founded.to_bytes(), bytes);
        assert_eq!(Created::read(Bytes::from(bytes)), Ok(founded));
        let part = Created { anew_at: Some(258), ..began_in_parent() };
        assert_eq!(Created::read(part.to_bytes()), Ok(part.clone()));
        let without = began_in_parent().to_bytes();
        assert_eq!(part.to_bytes()[18..27], [1, 2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(part.to_bytes()[27..], without[18..], "the same origin");
    }

    #[test]
    fn parents_come_before_their_children_whatever_their_ids_are() {
        let part = |id: u64, parent: Option<u64>| {
            let mut created = began_in_parent();
            created.descriptor.id = RangeId(id);
            match (&mut created.origin, parent) {
                (Some(origin), Some(parent)) => origin.parent = RangeId(parent),
                (origin, _) => *origin = None,
            }
            created
        };
        let of =
            |ranges: &[Created]| ranges.iter().map(|range| range.range().0).collect::<Vec<_>>();
        // 9 was a part of 7, that one of 2; the parent of 4 is not here
        let stored = vec![part(1, None), part(3, Some(9)), part(4, Some(8)), part(7, Some(2))];
        let stored = [stored, vec![part(9, Some(7)), part(2, None)]].concat();
        assert_eq!(of(&parents_first(stored.clone())), [1, 4, 2, 7, 9, 3]);
        assert_eq!(of(&descendants(stored.clone(), RangeId(2))), [7, 9, 3]);
        assert!(descendants(stored, RangeId(1)).is_empty());
    }

    fn wal(disk: &SimDisk) -> Wal {
        let host = Host::real().with_disk(Arc::new(disk.boot()));
        let config = WalConfig { file_bytes: 1 << 20, ..WalConfig::new("/wal".into()) };
        Wal::open(&host, config).expect("it opens")
    }

    #[tokio::test]
    async fn a_replica_that_begins_anew_has_lost_its_entries_and_keeps_its_latest_vote() {
        let disk = SimDisk::new();
        let log = wal(&disk);
        let born = Birth { created: began_in_parent(), first: First::Nothing };
        let created = born.write(&log).await.expect("written");
        assert_eq!(Created::stored(&log, RangeId(3)), Ok(Some(created)));
        assert_eq!(Created::stored(&log, RangeId(4)), Ok(None));
        let entry = ashlar_wal::Entry { index: 259, term: 7, payload: Bytes::new() };
        log.submit_durable(RangeId(3), Record::Append(vec![entry])).await.expect("appended");
        let (told, own) = (Vote::new_committed(8, 1), Vote::new(9, 5));
        let origin = began_in_parent().origin;
        let removal = || Removal::told(descriptor(), origin.clone(), told, 90);
        let again = |own| Birth::refilled(ClusterId(0x4d), removal(), own);
        for (own, kept) in [(None, told), (Some(Vote::new(8, 5)), told), (Some(own), own)] {
            let begun = again(own).write(&log).await.expect("written");
            let split = begun.origin().map(|origin| (origin.split, origin.inherited));
            assert_eq!((split, begun.first()), (Some((log_id(7, 258), false)), None));
            let state = log.state(RangeId(3));
            assert_eq!((state.last, state.vote), (None, Some(vote_bytes(&kept))));
        }
        log.close().await;
        let stored = Created::stored(&wal(&disk), RangeId(3)).expect("read");
        let stored = stored.and_then(|created| created.origin).expect("whose part it was");
        assert_eq!((stored.parent, stored.inherited), (RangeId(1), false));
    }

    #[test]
    fn created_is_written_in_this_file_alone() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let files = RealDisk.list(&sources).expect("the sources");
        let is_rule = |file: &&std::path::PathBuf| {
            let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.ends_with(".rs") && !name.ends_with("_tests.rs")
        };
        let word = concat!("Record::", "Created {");
        let mut writers = Vec::new();
        for file in files.iter().filter(is_rule) {
            let text = <dyn Disk>::read(&RealDisk, file).expect("a source");
            let text = String::from_utf8(text).expect("text");
            writers.extend(text.matches(word).map(|_| file.file_name().expect("a name")));
        }
        assert_eq!(writers, ["birth.rs"]);
    }
}
