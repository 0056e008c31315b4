//! By which version nodes apply what is in the logs (`docs/adr/0022`).

use crate::{NodeId, RangeOp, RootOp, SPLIT_APPLY_VERSION, Versioned, Versioning};
use serde::{Deserialize, Serialize};

/// Versions of apply: of the root, and of the ranges of data. What a binary knows up to, or what a cluster uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplyVersions {
    /// Of the root. 1: the first. 2: the root keeps by which versions the cluster applies. 3: buckets keep versions.
    pub root: u32,
    /// Of the ranges of data. 1: the first. 2: ranges split. 3: buckets keep versions.
    pub ranges: u32,
}

/// From these on buckets may keep versions of objects (`docs/adr/0023`).
pub const OBJECT_VERSIONS: ApplyVersions = ApplyVersions { root: 3, ranges: 3 };

impl ApplyVersions {
    /// What a cluster applies by whose root says nothing of it.
    pub const FIRST: Self = Self { root: 1, ranges: 2 };

    /// Whether whoever knows these can apply by the others.
    pub fn include(&self, others: &Self) -> bool {
        self.root >= others.root && self.ranges >= others.ranges
    }

    /// What both know.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        Self { root: self.root.min(other.root), ranges: self.ranges.min(other.ranges) }
    }
}

impl std::fmt::Display for ApplyVersions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "version {} of the root and {} of the ranges", self.root, self.ranges)
    }
}

impl RangeOp {
    /// The first version of apply that knows it. It is proposed only in a range that applies by that, or by a later one:
    /// who does not know it could not read its entry, and would come to another state (R4).
    pub fn apply_version(&self) -> u32 {
        match self {
            Self::PrepareSplit(_) | Self::StepSplit | Self::Split(_) | Self::SplitTold { .. } => {
                SPLIT_APPLY_VERSION
            }
            Self::DeleteVersion(_) => OBJECT_VERSIONS.ranges,
            Self::SetBucket(row) if row.versioning != Versioning::Off => OBJECT_VERSIONS.ranges,
            Self::Put(_)
            | Self::Delete(_)
            | Self::CreateUpload(_)
            | Self::PutPart(_)
            | Self::CompleteUpload(_)
            | Self::AbortUpload(_)
            | Self::Redescribe(_)
            | Self::Abandon(_)
            | Self::SetBucket(_)
            | Self::FenceBucket { .. }
            | Self::UnfenceBucket { .. }
            | Self::RaiseSessionFloor { .. }
            | Self::CollectDone { .. }
            | Self::RaiseApplyVersion { .. }
            | Self::ReportHash
            | Self::Repaired { .. }
            | Self::MarkLost(_)
            | Self::QueueOrphans { .. }
            | Self::Recode(_) => 1,
        }
    }
}

impl RootOp {
    /// The first version of apply of the root that knows it. Ranges of data have none of this, and so their own numbers.
    pub fn apply_version(&self) -> u32 {
        match self {
            Self::SetVersioning { .. } => OBJECT_VERSIONS.root,
            Self::Bootstrap { .. }
            | Self::IssueToken { .. }
            | Self::Join { .. }
            | Self::Boot { .. }
            | Self::SetDiskState { .. }
            | Self::Place(_)
            | Self::CreateBucket { .. }
            | Self::DeleteBucketBegin { .. }
            | Self::DeleteBucketDone { .. }
            | Self::DeleteBucketRollBack { .. }
            | Self::OpenSession { .. }
            | Self::EndSession { .. }
            | Self::AdvanceTime { .. }
            | Self::SetVoters { .. }
            | Self::BeginMove(_)
            | Self::Switch(_)
            | Self::LoseDisks { .. }
            | Self::JudgeDisk { .. }
            | Self::ReserveRange
            | Self::Split(_)
            | Self::BeginReplicaMove { .. }
            | Self::EndReplicaMove(_)
            | Self::CancelReplicaMove(_)
            | Self::DrainReplicas { .. }
            | Self::RemoveNode(_)
            // whoever proposes it has asked all
            | Self::RaiseApplyVersions { .. } => 1,
        }
    }
}

/// What the metadata role of a node says of its binary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeVersions {
    /// Who says it.
    pub node: NodeId,
    /// Which start of the node says it.
    pub incarnation: u64,
    /// The release.
    pub release: String,
    /// By which versions it can apply.
    pub known: ApplyVersions,
}

impl NodeVersions {
    /// What a node is taken to say whose release is of before there was this question.
    pub fn of_before(node: NodeId) -> Self {
        Self { node, incarnation: 0, release: String::new(), known: ApplyVersions::FIRST }
    }

    /// Whether it is such a release.
    pub fn is_of_before(&self) -> bool {
        self.release.is_empty()
    }
}

impl Versioned for NodeVersions {
    const NAME: &'static str = "versions of a node";
    const VERSION: u8 = 1;
}
