//! The catalog's two state machines, root and range, as a group sees them: batches in, results and rows out.

use crate::raft::Results;
use ashlar_catalog::{
    AppliedEntry, CatalogError, KNOWN_VERSIONS, KeySpan, Range, RangeReader, Recount, Root, View,
    Writes,
};
use ashlar_types::{
    ApplyVersions, Batch, Command, Epoch, Outcome, RangeAnswer, RangeDescriptor, RangeId, RangeOp,
    RangeQuery, RootAnswer, RootBatch, RootCommand, RootOp, RootOutcome, RootQuery, bug, decode,
    encode,
};
use std::sync::{Arc, PoisonError, RwLock};

/// By which versions of apply a node can apply, and by which the ranges of a new cluster begin. A release has one of these;
/// a test lets a node stand for another release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// The newest ones.
    pub known: ApplyVersions,
    /// That of new ranges. The same on all nodes, for ever.
    pub first_of_ranges: u32,
}

impl Default for Versions {
    fn default() -> Self {
        Self { known: KNOWN_VERSIONS, first_of_ranges: ApplyVersions::FIRST.ranges }
    }
}

/// Which state machine a group has.
pub(crate) enum Ledger {
    /// The root range's, shared with those who read it: it answers from memory.
    Root(Arc<RwLock<Root>>),
    /// A data range's.
    Range(Box<Range>),
}

/// A command on its way into a batch.
pub(crate) enum Proposal {
    Range(Box<Command>),
    Root(Box<RootCommand>),
}

impl Proposal {
    /// Whether its entry holds nothing else: who does not know it comes to nothing with all of its entry.
    pub(crate) fn is_alone(&self) -> bool {
        match self {
            Self::Range(command) => matches!(command.op, RangeOp::RaiseApplyVersion { .. }),
            Self::Root(command) => matches!(command.op, RootOp::RaiseApplyVersions { .. }),
        }
    }
}

/// What one command of a batch came to.
#[derive(Debug)]
pub(crate) enum CommandResult {
    Range(Outcome),
    Root(Box<RootOutcome>),
}

/// The batch of some proposals, all of one kind.
pub(crate) fn batch_bytes(epoch: Epoch, proposed_ms: u64, proposals: Vec<Proposal>) -> Vec<u8> {
    let (mut range, mut root) = (Vec::new(), Vec::new());
    for proposal in proposals {
        match proposal {
            Proposal::Range(command) => range.push(*command),
            Proposal::Root(command) => root.push(*command),
        }
    }
    if root.is_empty() {
        encode(&Batch { epoch, proposed_ms, commands: range })
    } else {
        encode(&RootBatch { proposed_ms, commands: root })
    }
}

/// The results of an entry, command by command.
pub(crate) fn split(results: Results) -> Vec<CommandResult> {
    match results {
        Results::None => Vec::new(),
        Results::Range(outcomes) => outcomes.into_iter().map(CommandResult::Range).collect(),
        Results::Root(outcomes) => {
            outcomes.into_iter().map(|outcome| CommandResult::Root(Box::new(outcome))).collect()
        }
    }
}

impl Ledger {
    /// The state machine as the rows of `view` say; where there are none, one that begins as `first` says, and the rows
    /// that make it.
    pub(crate) fn load(
        view: &dyn View,
        first: &RangeDescriptor,
        versions: Versions,
    ) -> Result<(Self, Writes), CatalogError> {
        let Versions { known, first_of_ranges } = versions;
        if first.id == RangeId::ROOT {
            let root = Root::load_knowing(view, known.root)?;
            let (root, writes) = root.map_or_else(Root::create, |root| (root, Writes::default()));
            let root = root.knowing(known.root)?;
            return Ok((Self::Root(Arc::new(RwLock::new(root))), writes));
        }
        let range = Range::load_knowing(view, first.id, known.ranges)?;
        let fresh = || Range::create_by(first, first_of_ranges);
        let (range, writes) = range.map_or_else(fresh, |range| (range, Writes::default()));
        Ok((Self::Range(Box::new(range.knowing(known.ranges)?)), writes))
    }

    /// What answers reads of this state machine.
    pub(crate) fn reader(&self) -> Reader {
        match self {
            Self::Root(root) => Reader::Root(root.clone()),
            // a read takes all else from the view, so that it sees one moment
            Self::Range(range) => Reader::Range(range.descriptor().id),
        }
    }

    /// Epoch and interval as the entries applied so far have made them. `None`: the root's never change.
    pub(crate) fn descriptor(&self) -> Option<&RangeDescriptor> {
        match self {
            Self::Root(_) => None,
            Self::Range(range) => Some(range.descriptor()),
        }
    }

    /// By which version it applies.
    pub(crate) fn apply_version(&self) -> u32 {
        match self {
            Self::Root(root) => {
                root.read().unwrap_or_else(PoisonError::into_inner).apply_versions().root
            }
            Self::Range(range) => range.apply_version(),
        }
    }

    /// Applies a batch. One that cannot be read comes to nothing, on every replica alike. `members_change`: the group is
    /// between two configurations at this entry.
    pub(crate) fn apply(
        &mut self,
        view: &dyn View,
        index: u64,
        members_change: bool,
        batch: &[u8],
    ) -> Result<Effect, CatalogError> {
        match self {
            Self::Root(root) => {
                let Ok(batch) = decode::<RootBatch>(batch) else { return Ok(unreadable(index)) };
                let mut root = root.write().unwrap_or_else(PoisonError::into_inner);
                let (outcomes, writes) = root.apply(view, index, &batch)?;
                Ok(Effect { results: Results::Root(outcomes), writes, child: None })
            }
            Self::Range(range) => {
                let Ok(batch) = decode::<Batch>(batch) else { return Ok(unreadable(index)) };
                let AppliedEntry { outcomes, writes, child } =
                    range.apply(view, index, members_change, &batch)?;
                Ok(Effect { results: Results::Range(outcomes), writes, child })
            }
        }
    }

    /// The sum over the rows: equal on all replicas that have applied the same (R4).
    pub(crate) fn hash(&self) -> u128 {
        match self {
            Self::Root(root) => root.read().unwrap_or_else(PoisonError::into_inner).state_hash(),
            Self::Range(range) => range.state_hash(),
        }
    }
}

/// What an entry came to: a result for each command, and the rows to write.
#[derive(Default)]
pub(crate) struct Effect {
    pub(crate) results: Results,
    pub(crate) writes: Writes,
    /// A range that the entry has made.
    pub(crate) child: Option<RangeDescriptor>,
}

fn unreadable(index: u64) -> Effect {
    tracing::error!(
        index,
        "an entry of the log is no batch that this binary knows: it has no effect"
    );
    Effect::default()
}

/// A range as a view has it; as `first` says where the view has none.
fn described(view: &dyn View, first: &RangeDescriptor) -> Result<RangeDescriptor, CatalogError> {
    Ok(ashlar_catalog::descriptor_in(view, first.id)?.unwrap_or_else(|| first.clone()))
}

/// Visits every row of a range in a view. `None`: it has none there.
pub(crate) fn recount(view: &dyn View, range: RangeId) -> Result<Option<Recount>, CatalogError> {
    match range {
        RangeId::ROOT => ashlar_catalog::recount_root(view),
        range => ashlar_catalog::recount(view, range),
    }
}

/// Where the rows of a range lie in a view: what a snapshot of it holds.
pub(crate) fn spans(
    view: &dyn View,
    first: &RangeDescriptor,
) -> Result<Vec<KeySpan>, CatalogError> {
    if first.id == RangeId::ROOT {
        return Ok(ashlar_catalog::root_owned_intervals());
    }
    ashlar_catalog::owned_intervals(view, &described(view, first)?)
}

/// What is to be removed of a range, in this order.
pub(crate) fn removable_spans(
    view: &dyn View,
    first: &RangeDescriptor,
) -> Result<Vec<KeySpan>, CatalogError> {
    if first.id == RangeId::ROOT {
        return Ok(ashlar_catalog::root_owned_intervals());
    }
    ashlar_catalog::removable_intervals(view, &described(view, first)?)
}

/// Answers reads of a group.
#[derive(Clone)]
pub(crate) enum Reader {
    Root(Arc<RwLock<Root>>),
    Range(RangeId),
}

/// Why a read has no answer.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// It was meant for another epoch of the range than the view has.
    Epoch(Epoch),
    /// The view cannot be read.
    Failed(CatalogError),
}

impl From<CatalogError> for Unanswered {
    fn from(error: CatalogError) -> Self {
        Self::Failed(error)
    }
}

impl Reader {
    /// A read of a data range that is meant for `epoch`. Judged in the view: since the read came in, the range may have lost
    /// keys, and an answer without them would look whole.
    pub(crate) fn range(
        &self,
        view: &dyn View,
        epoch: Epoch,
        query: &RangeQuery,
    ) -> Result<RangeAnswer, Unanswered> {
        let Self::Range(id) = self else {
            return Err(CatalogError::Inconsistent("the root was read as a range").into());
        };
        let missing = || CatalogError::Inconsistent("the rows of a range's head are missing");
        let range = RangeReader::open(view, *id)?.ok_or_else(missing)?;
        match range.descriptor().epoch {
            known if known == epoch || bug!("read-behind-the-split") => Ok(range.query(query)?),
            other => Err(Unanswered::Epoch(other)),
        }
    }

    /// A read of the root.
    pub(crate) fn root(&self, query: &RootQuery) -> Result<RootAnswer, CatalogError> {
        match self {
            Self::Root(root) => {
                Ok(root.read().unwrap_or_else(PoisonError::into_inner).query(query))
            }
            Self::Range(_) => Err(CatalogError::Inconsistent("a range was read as the root")),
        }
    }
}
