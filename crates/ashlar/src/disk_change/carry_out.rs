//! Carries a change of disks out, and says what has become of it: done, surely not done, or not known (C7).
//!
//! Each disk is a command of its own, one after the other, up to the first that is not known to be done. Where nobody
//! knows, nothing is taken back: the command may still be under way, and would be applied behind what takes it back.
//! The whole is asked again instead; what has been done is not done twice.

use super::{ChangeDisks, DiskStep, DisksChange, Said, judge};
use crate::audit::{AuditReport, Auditor};
use ashlar_client::{Client, Failure};
use ashlar_types::{ClusterMap, DiskId, DiskState, RootOp, RootRefusal};
use ashlar_wire::proto::PingReply;

/// While slots move a map may last no longer than it takes to read it and to send what was judged by it; not every time,
/// since moves begin in bursts (`moves`).
const LOSE_TRIES_MAX: usize = 32;

/// What a change asks of the cluster.
pub(crate) trait Cluster: Sync {
    /// The map as the root has it now.
    fn map_now(&self) -> impl Future<Output = Result<ClusterMap, Failure>> + Send;
    /// What the nodes of this map that have disks answer now.
    fn ping_nodes(&self, map: &ClusterMap) -> impl Future<Output = Vec<PingReply>> + Send;
    /// What the last audit has found.
    fn last_audit(&self) -> impl Future<Output = Option<AuditReport>> + Send;
    /// A command to the root.
    fn root(&self, op: RootOp) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// The cluster that a node is in.
pub(crate) struct OfNode<'a> {
    pub(crate) client: &'a Client,
    pub(crate) auditor: &'a Auditor,
}

impl Cluster for OfNode<'_> {
    async fn map_now(&self) -> Result<ClusterMap, Failure> {
        self.client.map_now().await
    }

    async fn ping_nodes(&self, map: &ClusterMap) -> Vec<PingReply> {
        self.client.ping_nodes(map).await
    }

    async fn last_audit(&self) -> Option<AuditReport> {
        self.auditor.youngest().await
    }

    async fn root(&self, op: RootOp) -> Result<(), Failure> {
        self.client.root(op).await.map(drop)
    }
}

/// Does it, if it may be done. After an error it surely has not been.
pub(crate) async fn change_disks(
    cluster: &impl Cluster,
    change: &ChangeDisks,
) -> Result<DisksChange, Failure> {
    let map = cluster.map_now().await?;
    let said = ask(cluster, &map, change.step).await;
    let judged = judge(&map, &said, change);
    if change.dry_run || !judged.refusals.is_empty() {
        return Ok(judged);
    }
    Ok(match change.step {
        DiskStep::Drain => drain(cluster, &map, change, judged).await,
        DiskStep::Undrain => {
            set_all(cluster, &change.disks, DiskState::Healthy).await.into_change(judged)
        }
        DiskStep::Remove => {
            set_all(cluster, &change.disks, DiskState::Removed).await.into_change(judged)
        }
        DiskStep::Lose => lose(cluster, &said, change).await?,
    })
}

/// Waiting for the nodes' answers takes up to a second, in which slots go on moving, and the root refuses what was judged
/// by an older map: so it is judged again by the newest one, from the same answers, and sent at once.
async fn lose(
    cluster: &impl Cluster,
    said: &Said,
    change: &ChangeDisks,
) -> Result<DisksChange, Failure> {
    let mut refused = DisksChange::default();
    for _ in 0..LOSE_TRIES_MAX {
        let map = cluster.map_now().await?;
        let judged = judge(&map, said, change);
        if !judged.refusals.is_empty() {
            return Ok(judged);
        }
        let (base, disks) = (map.epoch, change.disks.clone());
        let answer = cluster.root(RootOp::LoseDisks { base, disks }).await;
        if !matches!(answer, Err(Failure::Root(RootRefusal::StaleMap { .. }))) {
            let mut sent = Sent::default();
            sent.note(&change.disks, answer);
            return Ok(sent.into_change(judged));
        }
        refused = judged;
    }
    refused.refusals.push(format!(
        "the cluster map changed each of the {LOSE_TRIES_MAX} times that it was judged: say it again when less moves"
    ));
    Ok(refused)
}

/// Those that drained before go on, whatever comes of the others.
async fn drain(
    cluster: &impl Cluster,
    before: &ClusterMap,
    change: &ChangeDisks,
    judged: DisksChange,
) -> DisksChange {
    let state = |disk: &DiskId| before.disks.get(disk).map(|disk| disk.state);
    let drains = |disk: &&DiskId| state(disk) == Some(DiskState::Draining);
    let begin: Vec<DiskId> = change.disks.iter().filter(|disk| !drains(disk)).copied().collect();
    let sent = set_all(cluster, &begin, DiskState::Draining).await;
    if !sent.unknown.is_empty() {
        return sent.into_change(judged);
    }
    let again = match &sent.failure {
        None => match cluster.map_now().await {
            Ok(map) => judge_now(cluster, &map, change).await,
            Err(failure) => return unjudged(judged, &change.disks, &failure),
        },
        Some(failure) => DisksChange {
            refusals: vec![format!("not all of the disks could begin to drain: {failure}")],
            ..judged.clone()
        },
    };
    if again.refusals.is_empty() {
        return DisksChange { done: true, ..judged };
    }
    let begun = sent.done.iter().filter_map(|disk| Some((*disk, state(disk)?)));
    take_back(cluster, begun, again).await
}

/// They drain, and nobody could say any more whether they may.
fn unjudged(mut judged: DisksChange, disks: &[DiskId], failure: &Failure) -> DisksChange {
    judged.remarks.push(format!(
        "they drain, but whether they may all do so at once could not be judged again: say the same again ({failure})"
    ));
    DisksChange { changed: named(disks), ..judged }
}

/// What could not be taken back goes on draining.
async fn take_back(
    cluster: &impl Cluster,
    begun: impl Iterator<Item = (DiskId, DiskState)>,
    mut refused: DisksChange,
) -> DisksChange {
    for (disk, state) in begun {
        let Err(failure) = cluster.root(RootOp::SetDiskState { disk, state }).await else {
            continue;
        };
        let left = match failure.is_unknown() {
            true => &mut refused.unknown,
            false => &mut refused.changed,
        };
        left.push(disk.to_string());
        refused.remarks.push(format!(
            "disk {disk} could not be taken back (ashlar disk undrain does it): {failure}"
        ));
    }
    refused
}

async fn judge_now(cluster: &impl Cluster, map: &ClusterMap, change: &ChangeDisks) -> DisksChange {
    judge(map, &ask(cluster, map, change.step).await, change)
}

async fn ask(cluster: &impl Cluster, map: &ClusterMap, step: DiskStep) -> Said {
    let report = match step {
        DiskStep::Lose => cluster.last_audit().await,
        DiskStep::Drain | DiskStep::Undrain | DiskStep::Remove => None,
    };
    Said { answers: cluster.ping_nodes(map).await, report }
}

async fn set_all(cluster: &impl Cluster, disks: &[DiskId], state: DiskState) -> Sent {
    let mut sent = Sent::default();
    for &disk in disks {
        sent.note(&[disk], cluster.root(RootOp::SetDiskState { disk, state }).await);
        if sent.failure.is_some() {
            break;
        }
    }
    sent
}

/// What has become of commands.
#[derive(Debug, Default)]
struct Sent {
    done: Vec<DiskId>,
    unknown: Vec<DiskId>,
    /// Why the last one is not known to be done.
    failure: Option<Failure>,
}

impl Sent {
    fn note(&mut self, disks: &[DiskId], answer: Result<(), Failure>) {
        match answer {
            Ok(()) => self.done.extend(disks),
            Err(failure) => {
                if failure.is_unknown() {
                    self.unknown.extend(disks);
                }
                self.failure = Some(failure);
            }
        }
    }

    fn into_change(self, mut judged: DisksChange) -> DisksChange {
        let Some(failure) = self.failure else { return DisksChange { done: true, ..judged } };
        match self.unknown.is_empty() {
            true => judged.refusals.push(failure.to_string()),
            false => judged.remarks.push(failure.to_string()),
        }
        DisksChange { changed: named(&self.done), unknown: named(&self.unknown), ..judged }
    }
}

fn named(disks: &[DiskId]) -> Vec<String> {
    disks.iter().map(DiskId::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk_change::tests::{answers, cluster};
    use crate::fixture;
    use ashlar_types::RootRefusal;
    use std::collections::{BTreeMap, VecDeque};
    use std::sync::{Mutex, PoisonError};

    /// What comes of a command.
    #[derive(Debug, Clone, Copy)]
    enum Fate {
        Applied,
        AppliedAndNotAnswered,
        LostUnderWay,
        Refused,
        Unavailable,
        /// Behind the beginning of a slot's move.
        BehindAMove,
        /// Behind the loss of two whole nodes.
        BehindALoss,
    }
    use Fate::{
        Applied, AppliedAndNotAnswered, BehindALoss, BehindAMove, LostUnderWay, Refused,
        Unavailable,
    };

    /// A root whose commands have these fates, one after the other; those behind them are applied.
    struct Scripted(Mutex<(ClusterMap, VecDeque<Fate>)>);

    impl Scripted {
        fn new(map: ClusterMap, fates: &[Fate]) -> Self {
            Self(Mutex::new((map, fates.iter().copied().collect())))
        }

        fn with<T>(&self, look: impl FnOnce(&mut ClusterMap, &mut VecDeque<Fate>) -> T) -> T {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let (map, fates) = &mut *all;
            look(map, fates)
        }

        fn not_healthy(&self) -> BTreeMap<u128, DiskState> {
            self.with(|map, _| {
                let states = map.disks.values().map(|disk| (disk.id.0, disk.state));
                states.filter(|(_, state)| *state != DiskState::Healthy).collect()
            })
        }
    }

    fn apply(map: &mut ClusterMap, op: RootOp) -> Result<(), Failure> {
        let known = map.epoch;
        let (disks, state) = match op {
            RootOp::SetDiskState { disk, state } => (vec![disk], state),
            RootOp::LoseDisks { base, .. } if base != known => {
                return Err(Failure::Root(RootRefusal::StaleMap { known }));
            }
            RootOp::LoseDisks { disks, .. } => (disks, DiskState::Dead),
            other => panic!("no change of disks: {other:?}"),
        };
        set(map, disks, state);
        Ok(())
    }

    fn set(map: &mut ClusterMap, disks: impl IntoIterator<Item = DiskId>, state: DiskState) {
        for disk in disks {
            fixture::set(map, disk.0, state);
        }
        map.epoch = map.epoch.next();
    }

    impl Cluster for Scripted {
        async fn map_now(&self) -> Result<ClusterMap, Failure> {
            Ok(self.with(|map, _| map.clone()))
        }

        /// Meanwhile a slot begins to move. The disks 10 and 30 are away.
        async fn ping_nodes(&self, map: &ClusterMap) -> Vec<PingReply> {
            self.with(|map, _| map.epoch = map.epoch.next());
            let mut seen = map.clone();
            seen.disks.retain(|disk, _| ![10, 30].contains(&disk.0));
            answers(&seen, 0, 1 << 40)
        }

        async fn last_audit(&self) -> Option<AuditReport> {
            None
        }

        async fn root(&self, op: RootOp) -> Result<(), Failure> {
            let reason = "no answer came in time".to_owned();
            self.with(|map, fates| match fates.pop_front().unwrap_or(Applied) {
                Applied => apply(map, op),
                AppliedAndNotAnswered => {
                    apply(map, op)?;
                    Err(Failure::Unknown { reason })
                }
                BehindAMove => {
                    map.epoch = map.epoch.next();
                    apply(map, op)
                }
                BehindALoss => {
                    set(map, [20, 21, 50, 51].map(DiskId), DiskState::Dead);
                    apply(map, op)
                }
                LostUnderWay => Err(Failure::Unknown { reason }),
                Refused => Err(Failure::Root(RootRefusal::NotBootstrapped)),
                Unavailable => Err(Failure::Unavailable { reason }),
            })
        }
    }

    async fn asked(cluster: &Scripted, disks: &[u128], step: DiskStep) -> DisksChange {
        let disks = disks.iter().map(|&id| DiskId(id)).collect();
        let change = ChangeDisks { disks, step, dry_run: false };
        change_disks(cluster, &change).await.expect("the map can be read")
    }

    fn six() -> ClusterMap {
        cluster(&["a", "a", "b", "b", "c", "c"])
    }

    fn ids(disks: &[u128]) -> Vec<String> {
        named(&disks.iter().map(|&id| DiskId(id)).collect::<Vec<_>>())
    }

    #[tokio::test]
    async fn c7_a_drain_of_which_nobody_knows_is_no_refusal_and_may_be_asked_again() {
        for fate in [AppliedAndNotAnswered, LostUnderWay] {
            let cluster = Scripted::new(six(), &[Applied, fate]);
            let told = asked(&cluster, &[10, 11], DiskStep::Drain).await;
            assert_eq!(told.refusals, Vec::<String>::new(), "{fate:?}");
            assert_eq!((told.done, told.changed, told.unknown), (false, ids(&[10]), ids(&[11])));
            assert!(cluster.not_healthy().contains_key(&10), "nothing is taken back");
            let told = asked(&cluster, &[10, 11], DiskStep::Drain).await;
            assert!(told.done && told.unknown.is_empty(), "{told:?}");
            let drain = [10, 11].map(|disk| (disk, DiskState::Draining));
            assert_eq!(cluster.not_healthy(), drain.into());
        }
    }

    #[tokio::test]
    async fn c7_the_three_outcomes_of_other_steps_are_told_apart() {
        let mut emptied = six();
        emptied.groups.clear();
        emptied.disks.values_mut().for_each(|disk| disk.state = DiskState::Draining);
        for step in [DiskStep::Undrain, DiskStep::Remove] {
            let of = async |fate| {
                asked(&Scripted::new(emptied.clone(), &[Applied, fate]), &[10, 11], step).await
            };
            assert!(of(Applied).await.done, "{step:?}");
            for fate in [Refused, Unavailable] {
                let told = of(fate).await;
                assert_eq!((told.done, told.changed), (false, ids(&[10])), "{step:?}");
                assert!(told.refusals.len() == 1 && told.unknown.is_empty(), "{step:?}");
            }
            let told = of(LostUnderWay).await;
            assert_eq!((told.done, told.unknown), (false, ids(&[11])), "{step:?}");
            assert_eq!((told.changed, told.refusals), (ids(&[10]), vec![]), "{step:?}");
        }
    }

    #[tokio::test]
    async fn a_suspect_disk_is_removed_once_it_has_no_slots() {
        let mut map = six();
        fixture::set(&mut map, 10, DiskState::Suspect);
        let cluster = Scripted::new(map, &[]);
        let told = asked(&cluster, &[10], DiskStep::Remove).await;
        assert!(!told.done && told.refusals[0].contains("still has"), "{told:?}");
        cluster.with(|map, _| map.groups.retain(|_, group| !group.names(DiskId(10))));
        let told = asked(&cluster, &[10], DiskStep::Remove).await;
        assert!(told.done && told.refusals.is_empty(), "{told:?}");
        assert_eq!(cluster.not_healthy(), [(10, DiskState::Removed)].into());
    }

    #[tokio::test]
    async fn what_surely_could_not_begin_to_drain_takes_the_others_back() {
        let cluster = Scripted::new(six(), &[Applied, Refused]);
        let told = asked(&cluster, &[10, 11], DiskStep::Drain).await;
        assert!(!told.done && told.refusals[0].contains("not all of the disks"), "{told:?}");
        assert_eq!((told.changed, told.unknown), (vec![], vec![]));
        assert_eq!(cluster.not_healthy(), BTreeMap::new());
    }

    #[tokio::test]
    async fn c7_what_could_not_be_taken_back_is_said() {
        let fates = [Applied, Applied, Refused, Unavailable, LostUnderWay];
        let told = asked(&Scripted::new(six(), &fates), &[10, 30, 50], DiskStep::Drain).await;
        assert_eq!((told.changed, told.unknown), (ids(&[10]), ids(&[30])));
        assert!(!told.refusals.is_empty() && !told.done);
    }

    #[tokio::test]
    async fn disks_are_lost_while_slots_move() {
        let away = [10, 30].map(|disk| (disk, DiskState::Dead)).into();
        for moves in [0, 1, LOSE_TRIES_MAX - 1] {
            let cluster = Scripted::new(six(), &vec![BehindAMove; moves]);
            let told = asked(&cluster, &[10, 30], DiskStep::Lose).await;
            assert!(told.done, "{moves} moves: {told:?}");
            assert_eq!(cluster.not_healthy(), away);
        }
        let cluster = Scripted::new(six(), &[BehindAMove; LOSE_TRIES_MAX]);
        let told = asked(&cluster, &[10, 30], DiskStep::Lose).await;
        assert!(!told.done && told.refusals[0].contains("say it again"), "{told:?}");
        assert_eq!(cluster.not_healthy(), BTreeMap::new());
    }

    #[tokio::test]
    async fn d2_what_has_changed_meanwhile_is_judged_again_before_disks_are_lost() {
        let cluster = Scripted::new(six(), &[BehindALoss]);
        let told = asked(&cluster, &[10, 30], DiskStep::Lose).await;
        assert!(!told.done && told.refusals[0].contains("bring one of them back"), "{told:?}");
        assert!(!cluster.not_healthy().contains_key(&10));
    }

    #[tokio::test]
    async fn c7_whether_disks_are_lost_may_be_unknown() {
        let cluster = Scripted::new(six(), &[BehindAMove, LostUnderWay]);
        let told = asked(&cluster, &[10, 30], DiskStep::Lose).await;
        assert_eq!((told.done, told.unknown), (false, ids(&[10, 30])));
        assert_eq!((told.changed, told.refusals), (vec![], vec![]));
    }
}
