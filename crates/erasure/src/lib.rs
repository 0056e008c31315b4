//! How an extent becomes shards and back: the geometry of its stripes, and the code over them.
//!
//! The code is that of `reed-solomon-erasure` (Vandermonde over 0x11D): it defines the format and is the oracle of the
//! tests. Where the CPU allows it, a SIMD engine computes the same bytes; a check at start-up compares the two, and on
//! any difference the plain one is used.
//!
//! No I/O and no runtime: the caller brings the buffers.

mod codec;
mod geometry;

pub use codec::{Codec, CodecError, Engine, chosen_engine};
pub use geometry::{CellRange, Geometry, RepairPlan, RepairRead};
