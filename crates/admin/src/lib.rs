//! The admin port: health, metrics, the node's own facts and history, as plain HTTP for operators' tools.
//!
//! It shows; it changes nothing. It carries no secret, and listens where the configuration says, by default on loopback.

mod metrics_page;
mod readiness;
mod routes;

pub use metrics_page::install_recorder;
pub use readiness::Readiness;
pub use routes::{AdminState, NodeFacts, serve};
