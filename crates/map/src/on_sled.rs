//! sled as an ordered map.
//!
//! sled has batches and no snapshots: these are made beside it ([`crate::snapshots`]). Its flush is `sync_file_range`
//! without fsync, and lost acknowledged data in power cuts when it was trusted: so an own fsync of its file follows each
//! flush. After an unclean stop the directory is thrown away and rebuilt ([`crate::Engine::must_be_clean`]).

use crate::snapshots::{Row, Rows, Snapshots};
use ashlar_catalog::{MapError, OrderedMap, View, Writes};
use ashlar_host::{Disk, OpenMode, RealDisk};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};

/// The default of sled, 1 GiB, would be the largest thing in the node.
const CACHE_BYTES: u64 = 32 << 20;

pub(crate) struct SledMap {
    map: Snapshots<Tree>,
    tree: sled::Tree,
    dir: PathBuf,
}

struct Tree(sled::Tree);

fn failed(error: &sled::Error) -> MapError {
    MapError(format!("sled: {error}"))
}

impl SledMap {
    pub(crate) fn open(dir: &Path) -> Result<Self, MapError> {
        let config = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        let open = || config.open()?.open_tree("rows");
        let tree = open().map_err(|error| failed(&error))?;
        Ok(Self { map: Snapshots::new(Tree(tree.clone())), tree, dir: dir.to_owned() })
    }

    fn sync_files(&self) -> std::io::Result<()> {
        RealDisk.open(&self.dir.join("db"), OpenMode::ReadWrite)?.sync_data()?;
        RealDisk.sync_dir(&self.dir)
    }
}

impl OrderedMap for SledMap {
    fn view(&self) -> Box<dyn View> {
        self.map.view()
    }

    fn write(&self, writes: Writes) -> Result<(), MapError> {
        self.map.write(writes)
    }

    fn sync(&self) -> Result<(), MapError> {
        self.tree.flush().map_err(|error| failed(&error))?;
        self.sync_files()
            .map_err(|error| MapError(format!("sled: its file could not be synced: {error}")))
    }
}

impl Rows for Tree {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        let value = self.0.get(key).map_err(|error| failed(&error))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn first(
        &self,
        stretch: (Bound<&[u8]>, Bound<&[u8]>),
        limit: usize,
    ) -> Result<Vec<Row>, MapError> {
        let row = |row: Result<(sled::IVec, sled::IVec), sled::Error>| {
            row.map(|(key, value)| (key.to_vec(), value.to_vec())).map_err(|error| failed(&error))
        };
        self.0.range::<&[u8], _>(stretch).take(limit).map(row).collect()
    }

    fn apply(&mut self, rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>) -> Result<(), MapError> {
        let mut batch = sled::Batch::default();
        for (key, value) in rows {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        self.0.apply_batch(batch).map_err(|error| failed(&error))
    }
}
