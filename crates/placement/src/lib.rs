//! Where shards live: groups of homes, made by weights, zones and the ring, and the group of each new extent.
//!
//! - [`extend`] and [`rebalance`] compute a difference of the tables; the root commits it, nobody recomputes it.
//! - [`schedule`] says which slots may begin to move now, the most urgent first.
//! - [`plan_replicas`] says which replicas of ranges are to move.
//! - [`drain_forecast`] says what it would mean to empty disks.
//! - [`validate`] is what the root's apply asks of a table.
//! - [`Chooser`] is what a gateway asks for each extent.
//!
//! The only crate that names `consistent_hash`. No I/O, no clock, no randomness: the same map gives the same plan.

mod choose;
mod domains;
mod drain;
mod plan;
mod replicas;
mod ring;
mod schedule;
mod solver;
mod validate;

pub use choose::{Chooser, PerMille};
pub use drain::{DrainForecast, Survival, drain_forecast};
pub use plan::{Settings, extend, profiles, rebalance};
pub use replicas::{ReplicaNode, ReplicaNodeState, ReplicaStep, plan_replicas};
pub use schedule::{MoveLimits, Reach, are_moves_left, schedule, settled};
pub use validate::{BadPlacement, validate, validate_group};
