//! Engines of the ordered map on which a catalog stands, and the node's local history.

mod history;

pub use history::{Event, History, Point};
