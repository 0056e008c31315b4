//! What can go wrong with a disk; each variant tells its caller what to do next.

use ashlar_types::{ClusterId, DiskId, NodeId};
use std::io;
use std::path::{Path, PathBuf};

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The directory is not there: a wrong path, or a disk that is not mounted.
    #[error("{0} does not exist: mount the disk, or create the directory")]
    Missing(PathBuf),
    /// Nothing can be written into the directory.
    #[error(
        "{0} cannot be written: mount it read-write and give it to the user that runs this process"
    )]
    ReadOnly(PathBuf),
    /// Another process, or another store of this one, has it open.
    #[error("{0} is in use by another process: stop that one, or give this node another directory")]
    InUse(PathBuf),
    /// It holds segments, but no superblock: formatting it would lose them.
    #[error(
        "{0} holds segments but no superblock: it is damaged; empty it to use it as a new disk"
    )]
    NoSuperblock(PathBuf),
    /// A disk was here before, and there is none now: its file system is not mounted. Nothing is formatted.
    #[error(
        "{dir} held disk {disk} and is empty: mount it, or take the disk out of this node first"
    )]
    NotMounted {
        /// The directory.
        dir: PathBuf,
        /// What it held.
        disk: DiskId,
    },
    /// Neither copy of the superblock is whole.
    #[error(
        "{0}: both copies of the superblock are damaged; empty the directory to use it as a new disk"
    )]
    BadSuperblock(PathBuf),
    /// It belongs to another cluster.
    #[error(
        "{dir} belongs to cluster {found}, not to {expected}: give this node another directory"
    )]
    OtherCluster {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        found: ClusterId,
        /// Who asked.
        expected: ClusterId,
    },
    /// It belongs to another node of this cluster.
    #[error("{dir} belongs to {found}, not to {expected}: give this node another directory")]
    OtherNode {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Who asked.
        expected: NodeId,
    },
    /// A newer binary wrote it.
    #[error("{dir} has format {found}, and this binary knows up to {known}: start a newer one")]
    NewerFormat {
        /// The directory.
        dir: PathBuf,
        /// The format found.
        found: u32,
        /// The newest that is known.
        known: u32,
    },
    /// A size in the configuration that cannot work.
    #[error("{0}")]
    BadConfig(&'static str),
    /// No such shard, and that is certain.
    #[error("there is no such shard on this disk")]
    NotFound,
    /// The bytes on the disk are not those that were written: read another shard, repair this one.
    #[error("the shard is damaged on this disk")]
    Corrupt,
    /// The range ends behind the shard's end.
    #[error("the range is outside the shard, which has {length} bytes")]
    BadRange {
        /// The shard's length.
        length: u64,
    },
    /// Another content is stored under the same extent and slot.
    #[error("another content is stored under this extent and slot")]
    Conflict,
    /// More bytes than were announced, or a small shard that is not small.
    #[error("the shard is longer than was announced")]
    TooLong,
    /// There is no room but the reserve: write elsewhere; deletions still work.
    #[error("the disk is full")]
    Full,
    /// A write or sync has failed: the disk takes no more writes until it is opened again. Reads go on.
    #[error("the disk takes no writes since one has failed")]
    NotWritable,
    /// The store has been closed.
    #[error("the disk has been closed")]
    Closed,
    /// The disk failed this request; whether a write happened is not known.
    #[error("{0}")]
    Io(String),
}

impl StoreError {
    /// An error of the file system while doing `what` to `path`.
    pub(crate) fn io(what: &str, path: &Path, error: &io::Error) -> Self {
        Self::Io(format!("cannot {what} {}: {error}", path.display()))
    }

    /// Whether there was no room: the disk is as good as before. So it is where the file system cannot do what was asked.
    pub(crate) fn is_harmless(error: &io::Error) -> bool {
        matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::Unsupported
        )
    }

    /// As [`StoreError::io`], where being refused means that the whole directory cannot be written.
    pub(crate) fn writing(what: &str, path: &Path, dir: &Path, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                Self::ReadOnly(dir.to_owned())
            }
            _ => Self::io(what, path, error),
        }
    }
}
