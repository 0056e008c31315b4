//! The catalogue of seeded bugs, for the simulation that knows them by their ids and for the program that looks for them.

mod catalogue;

pub use catalogue::{Bug, CATALOGUE, find};
