//! The files of the log: their names, the spares, and the thread that zeroes spares ahead of the writer.
//!
//! An append with sync into a file that was written once costs half of one into a growing file, so spares are written
//! with zeroes before they are used. That never holds anyone up: where no spare is ready the writer takes a new, growing
//! file, which it leaves early.

use crate::record::WalConfig;
use ashlar_host::{Disk, File, OpenMode};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const SUFFIX: &str = "log";
/// Zeroed piece by piece, each synced by itself: a sync of the writer never waits for much of the zeroing.
const ZERO_BYTES: u64 = 1 << 20;

/// A file with room for batches.
#[derive(Clone)]
pub(crate) struct WalFile {
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn File>,
    /// Batches go up to here; a first batch that is larger extends the file.
    pub(crate) limit: u64,
    /// Of full size and written once: worth keeping.
    pub(crate) prepared: bool,
}

/// The path of the n-th file.
pub(crate) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("wal-{number:010}.{SUFFIX}"))
}

/// The number of a file of the log; `None`: the path is something else.
pub(crate) fn number(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    name.strip_prefix("wal-")?.strip_suffix(".log")?.parse().ok()
}

/// Whether it is a file that was still being zeroed.
pub(crate) fn is_unfinished(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "zero")
}

/// How far a file that was not zeroed is used: an early switch to a zeroed one costs less than growing.
pub(crate) fn growing_limit(file_bytes: u64) -> u64 {
    (file_bytes / 16).max(1 << 20).min(file_bytes)
}

/// A new file that grows.
pub(crate) fn create_growing(
    disk: &dyn Disk,
    config: &WalConfig,
    number: u64,
) -> io::Result<WalFile> {
    let path = path(&config.dir, number);
    let file = disk.open(&path, OpenMode::CreateNew)?;
    disk.sync_dir(&config.dir)?;
    let limit = growing_limit(config.file_bytes);
    Ok(WalFile { path, file: file.into(), limit, prepared: false })
}

/// A new file of full size, written with zeroes. `None`: `stop` said so before it was done.
pub(crate) fn create_zeroed(
    disk: &dyn Disk,
    config: &WalConfig,
    number: u64,
    stop: impl Fn() -> bool,
) -> io::Result<Option<WalFile>> {
    let path = path(&config.dir, number);
    let unfinished = path.with_extension("zero");
    let file = disk.open(&unfinished, OpenMode::CreateNew)?;
    let zeroes =
        vec![0; usize::try_from(ZERO_BYTES.min(config.file_bytes)).map_err(io::Error::other)?];
    let mut at = 0;
    while at < config.file_bytes {
        if stop() {
            drop(file);
            disk.remove_file(&unfinished)?;
            return Ok(None);
        }
        let length = usize::try_from(config.file_bytes - at)
            .map_or(zeroes.len(), |left| left.min(zeroes.len()));
        file.write_at(&zeroes[..length], at)?;
        file.sync_data()?;
        at += length as u64;
    }
    disk.rename(&unfinished, &path)?;
    disk.sync_dir(&config.dir)?;
    Ok(Some(WalFile { path, file: file.into(), limit: config.file_bytes, prepared: true }))
}
