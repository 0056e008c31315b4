//! What operators change of who holds which range, and of who is a member.
//!
//! A move that was asked for is done when the directory names the new voters and nothing of the range moves. Said again,
//! what was done already changes nothing (C7).

use ashlar_client::{Client, Failure};
use ashlar_types::{NodeId, RangeId, RangeReplicas, ReplicaMove, RootOp, RootRefusal, Versioned};
use serde::{Deserialize, Serialize};

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeReplicas {
    /// A range is to be held by `to`, and not by `from` any more. Either may be missing.
    Move {
        /// The range.
        range: RangeId,
        /// Who holds it.
        from: Option<NodeId>,
        /// Who is to hold it.
        to: Option<NodeId>,
    },
    /// The move of a range that has begun is given up.
    Cancel(RangeId),
    /// A node is to hold no range any more; or it may again.
    Drain {
        /// The node.
        node: NodeId,
        /// Whether it is to be emptied.
        drain: bool,
    },
    /// A node is struck off for good.
    RemoveNode(NodeId),
}

impl Versioned for ChangeReplicas {
    const NAME: &'static str = "change replicas";
    const VERSION: u8 = 1;
}

/// Does what was asked for, as the root judges it.
pub(crate) async fn change_replicas(
    client: &Client,
    asked: &ChangeReplicas,
) -> Result<(), Failure> {
    match *asked {
        ChangeReplicas::Move { range, from, to } => {
            let known = find(client, range).await?;
            let (from, to) = (from.into_iter().collect(), to.into_iter().collect());
            let step = ReplicaMove { range, from, to };
            if is_done(&known, &step) {
                return Ok(());
            }
            client.begin_replica_move(known.range.voters, step).await
        }
        ChangeReplicas::Cancel(range) => match find(client, range).await?.moving {
            Some(step) => client.root(RootOp::CancelReplicaMove(step)).await.map(|_| ()),
            None => Ok(()),
        },
        ChangeReplicas::Drain { node, drain } => {
            client.root(RootOp::DrainReplicas { node, drain }).await.map(|_| ())
        }
        ChangeReplicas::RemoveNode(node) => {
            client.root(RootOp::RemoveNode(node)).await?;
            client.want_map();
            Ok(())
        }
    }
}

async fn find(client: &Client, range: RangeId) -> Result<RangeReplicas, Failure> {
    let known = client.replicas_now().await?.ranges.into_iter();
    let found = known.into_iter().find(|one| one.range.id == range);
    found.ok_or(Failure::Root(RootRefusal::NoSuchRange))
}

/// Whether a range has the voters that a move wants, and nothing of it moves.
pub fn is_done(known: &RangeReplicas, step: &ReplicaMove) -> bool {
    let voters = &known.range.voters;
    known.moving.is_none()
        && step.to.iter().all(|to| voters.contains(to))
        && !step.from.iter().any(|from| voters.contains(from))
}
