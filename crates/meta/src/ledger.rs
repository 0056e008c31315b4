//! The catalog's two state machines, root and range, as a group sees them: batches in, results and rows out.

use crate::raft::Results;
use ashlar_catalog::{CatalogError, View, Writes};
use ashlar_types::{
    Batch, Command, Epoch, Outcome, RangeAnswer, RangeDescriptor, RangeId, RangeQuery, RootAnswer,
    RootBatch, RootCommand, RootOutcome, RootQuery, decode, encode,
};

/// Which state machine a group has.
pub(crate) enum Ledger {
    /// The root range's.
    Root(RangeDescriptor),
    /// A data range's.
    Range(RangeDescriptor),
}

/// A command on its way into a batch.
pub(crate) enum Proposal {
    Range(Box<Command>),
    Root(Box<RootCommand>),
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
    pub(crate) fn of(d: &RangeDescriptor) -> Self {
        if d.id == RangeId::ROOT { Self::Root(d.clone()) } else { Self::Range(d.clone()) }
    }
    pub(crate) fn apply(&self, view: &dyn View, index: u64, batch: &[u8]) -> Result<(Results, Writes), CatalogError> {
        match self {
            Self::Root(_) => { let b: RootBatch = decode(batch)?; let (r, w) = ashlar_catalog::root_apply(view, index, &b)?; Ok((Results::Root(r), w)) }
            Self::Range(d) => { let b: Batch = decode(batch)?; let (r, w) = ashlar_catalog::range_apply(view, d, index, &b)?; Ok((Results::Range(r), w)) }
        }
    }
    pub(crate) fn spans(&self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        match self { Self::Root(d) | Self::Range(d) => ashlar_catalog::spans(d) }
    }
    pub(crate) fn query(&self, view: &dyn View, query: &RangeQuery) -> Result<RangeAnswer, CatalogError> { ashlar_catalog::range_query(view, query) }
    pub(crate) fn root_query(&self, view: &dyn View, query: &RootQuery) -> Result<RootAnswer, CatalogError> { ashlar_catalog::root_query(view, query) }
}

/// Whether the root, as this view shows it, has been bootstrapped.
pub(crate) fn has_cluster(view: &dyn View) -> bool {
    let query = RootQuery::Map { newer_than: None };
    !matches!(ashlar_catalog::root_query(view, &query), Ok(RootAnswer::NotBootstrapped) | Err(_))
}
