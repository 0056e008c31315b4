//! Engines of the ordered map on which a catalog stands, and the node's local history.
//!
//! fjall by default, sled by configuration, an in-memory twin for simulations; each in one file, all under one
//! conformance suite ([`conformance`]). Whatever the engine, the map is a volatile view: the log is the truth.

mod conformance;
mod history;
mod memory;
mod on_fjall;
mod on_sled;
mod overlay;
mod snapshots;

pub use conformance::conformance;
pub use history::{Event, History, Point};
pub use memory::MemMap;

use ashlar_catalog::{MapError, OrderedMap};
use std::path::Path;
use std::sync::Arc;

/// Which engine holds a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// An LSM tree: the least CPU and space of those measured.
    #[default]
    Fjall,
    /// Selectable; rebuilt after every unclean stop.
    Sled,
    /// Nothing is kept over a stop.
    Memory,
}

/// A name that is none of an engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an engine of the map: write fjall, sled or memory")]
pub struct BadEngine(String);

impl std::str::FromStr for Engine {
    type Err = BadEngine;
    fn from_str(text: &str) -> Result<Self, BadEngine> {
        match text {
            "fjall" => Ok(Self::Fjall),
            "sled" => Ok(Self::Sled),
            "memory" => Ok(Self::Memory),
            _ => Err(BadEngine(text.to_owned())),
        }
    }
}

impl Engine {
    /// Whether what it left behind after an unclean stop is not to be trusted, though it may open.
    pub fn must_be_clean(self) -> bool {
        match self {
            Self::Fjall | Self::Memory => false,
            Self::Sled => true,
        }
    }
}

/// Opens the map in `dir`, or makes an empty one. Blocking.
pub fn open(engine: Engine, dir: &Path) -> Result<Arc<dyn OrderedMap>, MapError> {
    Ok(match engine {
        Engine::Fjall => Arc::new(on_fjall::FjallMap::open(dir)?),
        Engine::Sled => Arc::new(on_sled::SledMap::open(dir)?),
        Engine::Memory => Arc::new(MemMap::default()),
    })
}
