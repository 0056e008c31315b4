//! The words of the house: ids, epochs, keys, sizes, records, operations and the shape of the cluster map.
//!
//! Nothing here does I/O, reads a clock or needs a runtime. Every type that is stored or sent implements
//! [`Versioned`] (or lies inside one that does): its bytes begin with its version, and the bytes of every version
//! that was ever written stay decodable (`docs/formats.md`).
//!
//! What it leaves out: how rows are keyed (crate `catalog`), how placements are found (`placement`), what S3 calls
//! things (`s3`).

mod cluster;
mod codec;
mod collect;
mod content;
mod id;
mod inventory;
mod key;
mod listing;
mod object_version;
mod op;
mod profile;
mod query;
mod record;
mod replicas;
mod root;
pub mod seeded;
mod split;
mod verify;
mod versions;

pub use cluster::*;
pub use codec::{DecodeError, Versioned, decode, encode};
pub use collect::*;
pub use content::*;
pub use id::*;
pub use inventory::*;
pub use key::*;
pub use listing::*;
pub use object_version::*;
pub use op::*;
pub use profile::*;
pub use query::*;
pub use record::*;
pub use replicas::*;
pub use root::*;
pub use split::*;
pub use verify::*;
pub use versions::*;
