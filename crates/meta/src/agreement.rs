//! Whether the replicas of a range agree: their state hashes at the same entry, judged by majority (R4).
//!
//! Every replica keeps the hash behind its newest entries, and behind every 1,024th for longer: so two of them nearly always
//! have an entry in common, also when one lags, and nothing need be proposed for it. Each asks the voters of its range for
//! the hashes at a few of its own entries, and judges itself:
//!
//! | verdict | what follows |
//! |---|---|
//! | a majority of the voters has this replica's hash | nothing |
//! | a majority has another one | it takes no part any more; a leader hands over first. It begins anew, as a damaged replica does |
//! | two differ, and there is no majority | the leader takes no writes until there is one |
//!
//! A replica that was filled by another one is no witness for it, until all have agreed once: a wrong leader would make
//! itself a majority. What else may happen: `docs/adr/0022`.

use crate::group::{Group, NotDone};
use crate::members::{is_joint, members};
use crate::network::Peers;
use crate::node::Inner;
use ashlar_types::{Agreement, RangeId, ReplicaReport};
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How long an answer may take.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);
/// The newest entries whose hashes are kept.
const RECENT: usize = 64;
/// Every so many entries a hash is kept for longer …
const SPARSE_EVERY: u64 = 1024;
/// … and so many of those.
const SPARSE: usize = 16;
/// How many hashes one question may ask for.
pub(crate) const ASKED_MAX: usize = 8;

/// An entry, and the state hash behind it.
pub(crate) type Mark = (u64, u128);

/// What a replica says of its state.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Witness {
    /// The hashes that it remembers, of those that were asked for.
    pub(crate) marks: Vec<Mark>,
    /// It has its state from another replica, and all have not agreed on it since.
    pub(crate) is_copy: bool,
}

/// The state hashes that a replica remembers of its way.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    recent: VecDeque<Mark>,
    sparse: VecDeque<Mark>,
}

impl Marks {
    /// Forgets the way: the state has been replaced by that at `mark`.
    pub(crate) fn begin(&mut self, mark: Option<Mark>) {
        *self = Self::default();
        self.recent.extend(mark);
    }

    pub(crate) fn note(&mut self, mark: Mark) {
        keep(&mut self.recent, RECENT, mark);
        if mark.0.is_multiple_of(SPARSE_EVERY) {
            keep(&mut self.sparse, SPARSE, mark);
        }
    }

    pub(crate) fn last(&self) -> Option<Mark> {
        self.recent.back().copied()
    }

    pub(crate) fn at(&self, index: u64) -> Option<u128> {
        let mut all = self.recent.iter().rev().chain(&self.sparse);
        all.find(|mark| mark.0 == index).map(|mark| mark.1)
    }

    /// The entries to compare at: the newest one, older ones for those who lag, and much older ones.
    pub(crate) fn samples(&self) -> Vec<Mark> {
        let newest = self.recent.len().saturating_sub(1);
        let recent = [0, newest / 2, newest].map(|at| self.recent.get(at));
        let sparse = self.sparse.iter().rev().take(3).map(Some);
        let found: BTreeMap<u64, u128> =
            recent.into_iter().chain(sparse).flatten().copied().collect();
        found.into_iter().collect()
    }
}

fn keep(marks: &mut VecDeque<Mark>, count: usize, mark: Mark) {
    if marks.len() == count {
        marks.pop_front();
    }
    marks.push_back(mark);
}

/// What a comparison has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// Nothing can be said: too few are at a common entry.
    Unknown,
    /// All voters, or (`all` is false) a majority of them, have this replica's hash there.
    Agrees { index: u64, all: bool },
    /// A majority has this replica's hash there, and these have not.
    Others { index: u64, nodes: Vec<u64> },
    /// A majority has another hash there.
    Differs { index: u64 },
    /// At least two differ there, and none of the hashes is a majority's.
    Divided { index: u64 },
}

impl Verdict {
    fn told(&self) -> Agreement {
        match self {
            Self::Unknown => Agreement::Unknown,
            Self::Agrees { all: true, .. } => Agreement::All,
            Self::Agrees { all: false, .. } => Agreement::Majority,
            Self::Others { .. } => Agreement::OthersDiffer,
            Self::Differs { .. } => Agreement::Differs,
            Self::Divided { .. } => Agreement::Divided,
        }
    }
}

/// What nodes say of their states: by entry, and by node.
type Said = BTreeMap<u64, BTreeMap<u64, u128>>;

/// What the voters of a range say.
struct Heard {
    voters: BTreeSet<u64>,
    /// Those that are no witnesses.
    copies: BTreeSet<u64>,
    said: Said,
}

impl Heard {
    /// Judges at the newest entry at which something can be said; but that a replica differs from a majority counts at an
    /// older entry too: those who lag have no other. `own` need not be a voter: a learner is judged by those who vote.
    fn verdict(&self, own: u64) -> Verdict {
        let at =
            |(&index, hashes): (&u64, &BTreeMap<u64, u128>)| self.verdict_at(own, index, hashes);
        let verdicts: Vec<Verdict> = self.said.iter().rev().map(at).collect();
        let names_who = |verdict: &&Verdict| {
            matches!(verdict, Verdict::Others { .. } | Verdict::Differs { .. })
        };
        let says_something = |verdict: &&Verdict| **verdict != Verdict::Unknown;
        let first = verdicts.iter().find(names_who);
        let first = first.or_else(|| verdicts.iter().find(says_something));
        first.cloned().unwrap_or(Verdict::Unknown)
    }

    fn verdict_at(&self, own: u64, index: u64, hashes: &BTreeMap<u64, u128>) -> Verdict {
        let Some(mine) = hashes.get(&own) else { return Verdict::Unknown };
        let voters = || self.voters.iter().filter_map(|voter| Some((voter, hashes.get(voter)?)));
        let differ: Vec<u64> =
            voters().filter(|(_, hash)| *hash != mine).map(|(voter, _)| *voter).collect();
        let all = voters().count() == self.voters.len();
        if all && differ.is_empty() {
            return Verdict::Agrees { index, all };
        }
        let witnesses = voters().filter(|(voter, _)| !self.copies.contains(voter));
        match majority(witnesses.map(|(_, hash)| *hash), self.voters.len()) {
            Some(hash) if hash != *mine => Verdict::Differs { index },
            Some(_) if differ.is_empty() => Verdict::Agrees { index, all },
            Some(_) => Verdict::Others { index, nodes: differ },
            None if differ.is_empty() => Verdict::Unknown,
            // who does not vote says nothing of those who do
            None if voters().any(|(_, hash)| hash == mine) => Verdict::Divided { index },
            None => Verdict::Unknown,
        }
    }

    /// Whether a majority of the voters agrees without this node: it may go without their being too few.
    fn others_agree(&self, own: u64) -> bool {
        self.said.values().any(|hashes| {
            let others = self.voters.iter().filter(|&&voter| voter != own);
            let hashes = others.filter_map(|voter| hashes.get(voter).copied());
            majority(hashes, self.voters.len()).is_some()
        })
    }
}

/// The hash that more than half of `voters` have.
fn majority(hashes: impl Iterator<Item = u128>, voters: usize) -> Option<u128> {
    let mut votes: BTreeMap<u128, usize> = BTreeMap::new();
    hashes.for_each(|hash| *votes.entry(hash).or_default() += 1);
    votes.into_iter().find(|(_, count)| count * 2 > voters).map(|(hash, _)| hash)
}

/// Compares the replicas of this node with the others that have applied something since, every so often, until the node is
/// gone or stops.
pub(crate) async fn run(node: Weak<Inner>, every: Duration) {
    let mut agreed = BTreeMap::new();
    loop {
        let Some(inner) = node.upgrade() else { return };
        let clock = inner.host.clock.clone();
        drop(inner);
        clock.sleep(every).await;
        let Some(inner) = node.upgrade() else { return };
        if inner.has_ended() {
            return;
        }
        tokio::select! {
            biased;
            () = inner.until_stopping() => return,
            () = compare_all(&inner, &mut agreed) => {}
        }
    }
}

/// `agreed`: at which entry all had the same.
async fn compare_all(inner: &Arc<Inner>, agreed: &mut BTreeMap<RangeId, u64>) {
    let groups = inner.groups();
    let is_due = |group: &&Arc<Group>| {
        let last = group.state.hash().map(|mark| mark.0);
        let is_new = last.is_some() && last != agreed.get(&group.range).copied();
        is_new || group.disputed().is_some() || group.state.is_copy() || group.state.is_spoilt()
    };
    let compared = groups
        .iter()
        .filter(is_due)
        .map(|group| async move { (group.range, compare(inner, group).await) });
    let compared = join_all(compared).await;
    agreed.retain(|range, _| groups.iter().any(|group| group.range == *range));
    for (range, index) in compared {
        match index {
            Some(index) => drop(agreed.insert(range, index)),
            None => drop(agreed.remove(&range)),
        }
    }
}

/// Compares one replica, and acts on what comes of it. Gives the entry at which all agree.
async fn compare(inner: &Arc<Inner>, group: &Arc<Group>) -> Option<u64> {
    let heard = hear(inner, group).await?;
    if group.state.is_spoilt() && heard.others_agree(inner.node.0) {
        let why = "a snapshot has shown that its rows are not those of its state hash";
        inner.begin_to_distrust(group, why);
        return None;
    }
    if group.state.is_spoilt() {
        // nobody takes its snapshots: another one can fill those who lack them
        inner.hand_over(group).await;
    }
    act(inner, group, &heard.verdict(inner.node.0))
}

/// `None`: who counts has changed meanwhile, or is being changed.
async fn hear(inner: &Inner, group: &Group) -> Option<Heard> {
    let before = members(&group.raft);
    if is_joint(&before) {
        return None;
    }
    let voters: BTreeSet<u64> = before.membership().voter_ids().collect();
    let heard = gather(inner, group, voters).await;
    let is_same = before.log_id() == members(&group.raft).log_id();
    is_same.then_some(heard)
}

/// Visits every row of a replica, and compares it with the others. One whose rows are not what its state hash says begins
/// anew, where the others are enough without it: a row has changed past the log, and whatever was applied since may
/// have gone by it.
pub(crate) async fn verify(
    inner: &Arc<Inner>,
    group: &Arc<Group>,
) -> Result<ReplicaReport, NotDone> {
    let busy = |reason: String| NotDone::Busy { retry_after_ms: 1000, reason };
    let state = group.state.clone();
    let counted = inner.host.tasks.run_blocking(move || state.recount()).await;
    let counted = counted.map_err(|error| busy(error.to_string()))?;
    let (applied, found) =
        counted.ok_or_else(|| busy("its rows are being replaced by a snapshot's".to_owned()))?;
    let heard = hear(inner, group).await;
    let own = inner.node.0;
    let verdict = heard.as_ref().map_or(Verdict::Unknown, |heard| heard.verdict(own));
    let is_spoilt = found.told != found.counted;
    let begins_anew = if is_spoilt && heard.is_some_and(|heard| heard.others_agree(own)) {
        let why = format!("at entry {applied} its rows are not those of its state hash");
        inner.begin_to_distrust(group, &why);
        true
    } else {
        act(inner, group, &verdict);
        matches!(verdict, Verdict::Differs { .. })
    };
    Ok(ReplicaReport {
        applied,
        apply_version: group.state.apply_version(),
        rows: found.rows,
        hash: found.told,
        counted: found.counted,
        usage: found.usage,
        agreement: verdict.told(),
        begins_anew,
    })
}

async fn gather(inner: &Inner, group: &Group, voters: BTreeSet<u64>) -> Heard {
    let own = group.state.samples();
    let indices: Vec<u64> = own.iter().map(|mark| mark.0).collect();
    let peers = Peers { sender: inner.sender.clone(), range: group.range };
    let others = voters.iter().filter(|&&voter| voter != inner.node.0);
    let asked = others.map(|&voter| {
        let (peer, indices) = (peers.peer(voter), indices.clone());
        async move { (voter, peer.ask_hashes(indices, ANSWER_PATIENCE).await) }
    });
    let answers = join_all(asked).await;
    let mut heard = Heard { voters, copies: BTreeSet::new(), said: Said::new() };
    let mut take = |node: u64, Witness { marks, is_copy }: Witness| {
        for (index, hash) in marks {
            heard.said.entry(index).or_default().insert(node, hash);
        }
        if is_copy {
            heard.copies.insert(node);
        }
    };
    for (voter, answer) in answers {
        match answer {
            Ok(witness) => take(voter, witness),
            Err(why) => {
                tracing::debug!(range = %group.range, voter, why, "no state hash to compare");
            }
        }
    }
    // now, not before: an installed snapshot may have replaced what was asked for
    let (marks, is_copy) = (group.state.hashes_at(&indices), group.state.is_copy());
    take(inner.node.0, Witness { marks, is_copy });
    heard
}

fn act(inner: &Arc<Inner>, group: &Arc<Group>, verdict: &Verdict) -> Option<u64> {
    let range = group.range;
    if *verdict == Verdict::Unknown {
        return None;
    }
    let is_disputed = !matches!(verdict, Verdict::Agrees { .. });
    metrics::gauge!("ashlar_raft_state_disputed", "range" => range.0.to_string())
        .set(f64::from(u8::from(is_disputed)));
    match verdict {
        Verdict::Unknown => None,
        Verdict::Agrees { index, all } => {
            group.note_disputed(None);
            if *all && let Err(error) = group.state.end_copy(*index) {
                tracing::warn!(%range, %error, "that all agree with the replica was not noted");
            }
            // not at an older entry: behind that nothing was compared
            let is_last = group.state.hash().is_some_and(|last| last.0 == *index);
            (*all && is_last).then_some(*index)
        }
        Verdict::Others { index, nodes } => {
            tracing::error!(%range, index, ?nodes, "other replicas have another state at this entry: they are to begin anew");
            group.note_disputed(None);
            None
        }
        Verdict::Differs { index } => {
            let why = format!("at entry {index} its state is not that of most voters");
            inner.begin_to_distrust(group, &why);
            None
        }
        Verdict::Divided { index } => {
            let why = format!(
                "its replicas have different states at entry {index}, and none is that of most voters: \
                 start the voters that are away"
            );
            tracing::error!(%range, why, "the range takes no writes while this node leads it");
            group.note_disputed(Some(why));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `voters` voters say: index, node, hash.
    fn heard(voters: u64, copies: &[u64], marks: &[(u64, u64, u128)]) -> Heard {
        let mut said = Said::new();
        for &(index, node, hash) in marks {
            said.entry(index).or_default().insert(node, hash);
        }
        let copies = copies.iter().copied().collect();
        Heard { voters: (1..=voters).collect(), copies, said }
    }

    fn verdict(own: u64, voters: u64, marks: &[(u64, u64, u128)]) -> Verdict {
        heard(voters, &[], marks).verdict(own)
    }

    #[test]
    fn r4_a_majority_at_one_entry_judges_who_differs_from_it() {
        let (a, b) = (7, 8);
        let marks = [(10, 1, a), (10, 2, a), (10, 3, b)];
        assert_eq!(verdict(1, 3, &marks), Verdict::Others { index: 10, nodes: vec![3] });
        assert_eq!(verdict(3, 3, &marks), Verdict::Differs { index: 10 });
        assert_eq!(verdict(1, 3, &marks[..2]), Verdict::Agrees { index: 10, all: false });
        assert_eq!(verdict(1, 2, &marks[..2]), Verdict::Agrees { index: 10, all: true });
        assert_eq!(verdict(1, 3, &marks[1..]), Verdict::Unknown, "it has nothing there itself");
        let learner = [(10, 1, a), (10, 2, a), (10, 3, a), (10, 4, b)];
        assert_eq!(verdict(4, 3, &learner), Verdict::Differs { index: 10 });
        assert_eq!(verdict(1, 1, &[(10, 1, a)]), Verdict::Agrees { index: 10, all: true });
    }

    #[test]
    fn r4_two_that_differ_without_a_majority_are_divided_and_one_alone_says_nothing() {
        let (a, b, c) = (7, 8, 9);
        assert_eq!(verdict(1, 3, &[(10, 1, a), (10, 3, b)]), Verdict::Divided { index: 10 });
        assert_eq!(verdict(1, 2, &[(10, 1, a), (10, 2, b)]), Verdict::Divided { index: 10 });
        let three = [(10, 1, a), (10, 2, b), (10, 3, c)];
        assert_eq!(verdict(1, 3, &three), Verdict::Divided { index: 10 });
        assert_eq!(verdict(1, 3, &[(10, 1, a)]), Verdict::Unknown);
        let two_of_five = [(10, 1, a), (10, 2, a)];
        assert_eq!(verdict(1, 5, &two_of_five), Verdict::Unknown, "no majority yet");
        let learner = [(10, 1, a), (10, 4, b)];
        assert_eq!(verdict(4, 3, &learner), Verdict::Unknown, "one voter is no majority");
    }

    #[test]
    fn r4_who_lags_is_compared_at_an_older_entry_and_a_difference_there_counts() {
        let (a, b) = (7, 8);
        let marks = [(20, 1, a), (20, 2, a), (10, 1, a), (10, 2, a), (10, 3, b)];
        assert_eq!(verdict(1, 3, &marks), Verdict::Others { index: 10, nodes: vec![3] });
        let since = [(20, 1, a), (20, 2, a), (10, 1, a), (10, 3, b)];
        assert_eq!(verdict(1, 3, &since), Verdict::Agrees { index: 20, all: false });
        // the third one was away when the others divided
        let late = [(20, 1, a), (20, 2, b), (10, 1, a), (10, 2, b), (10, 3, b)];
        assert_eq!(verdict(1, 3, &late), Verdict::Differs { index: 10 });
        assert_eq!(verdict(3, 3, &late), Verdict::Others { index: 10, nodes: vec![1] });
    }

    #[test]
    fn r4_a_copy_is_no_witness_for_what_it_was_copied_from_until_all_agree() {
        let (a, b) = (7, 8);
        let copied = heard(3, &[3], &[(10, 1, a), (10, 2, b), (10, 3, a)]);
        for own in 1..=3 {
            assert_eq!(copied.verdict(own), Verdict::Divided { index: 10 }, "{own}");
        }
        let all = heard(3, &[3], &[(10, 1, a), (10, 2, a), (10, 3, a)]);
        assert_eq!(all.verdict(3), Verdict::Agrees { index: 10, all: true });
        let wrong = heard(3, &[3], &[(10, 1, a), (10, 2, a), (10, 3, b)]);
        assert_eq!(wrong.verdict(3), Verdict::Differs { index: 10 });
        let one_away = heard(3, &[3], &[(10, 1, a), (10, 3, a)]);
        assert_eq!(one_away.verdict(1), Verdict::Unknown);
        assert!(one_away.others_agree(2), "enough to do without it");
        assert!(!one_away.others_agree(1));
    }

    #[test]
    fn two_replicas_have_an_entry_in_common_also_when_one_lags_far_behind() {
        let mut ahead = Marks::default();
        (1..=9_000).for_each(|index| ahead.note((index, u128::from(index))));
        let mut behind = Marks::default();
        behind.begin(Some((4_000, 4_000)));
        (4_001..=8_300).for_each(|index| behind.note((index, u128::from(index))));
        let common = |one: &Marks, other: &Marks| {
            let samples = one.samples();
            assert!(samples.len() <= ASKED_MAX);
            samples.iter().any(|mark| other.at(mark.0) == Some(mark.1))
        };
        assert!(common(&ahead, &behind) && common(&behind, &ahead));
        assert_eq!(ahead.last(), Some((9_000, 9_000)));
        assert_eq!(ahead.at(8_900), None, "that is not kept");
        behind.begin(None);
        assert_eq!((behind.last(), behind.samples()), (None, Vec::new()));
    }
}
