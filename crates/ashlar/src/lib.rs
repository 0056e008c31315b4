//! A node of ashlar, from configuration to running and back: what the binary, the demo and the tests start.

pub mod audit;
mod collect;
pub mod config;
mod deletions;
pub mod demo;
pub mod disk_change;
mod disks;
mod duties;
#[cfg(test)]
mod fixture;
pub mod identity;
mod leading;
pub mod membership;
pub mod meta_check;
mod moves;
pub mod node;
pub mod operator;
pub mod process;
mod raise;
mod reads;
mod recode;
mod repair;
pub mod replica_change;
mod replicas;
mod sessions;
mod splits;
mod suspicion;
mod watch;
