//! The bounds of the log, each with its reason.

/// One payload: far above what a proposal holds (512 KiB), far below what the format can say (4 GiB).
pub(crate) const RECORD_BYTES_MAX: u64 = 1 << 30;

/// Bounds that tests make small.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Records that wait for the writer; who would go beyond it waits. One batch holds all that waits, so this is also
    /// what one sync has to write: 32 MiB are 0.1 s of a slow disk.
    pub(crate) queue_bytes: u64,
    /// Payloads kept in memory a node: followers that lag by less read no disk.
    pub(crate) cache_bytes: u64,
    /// Files that a cold group may pin before its entries move (metadata.md: 8).
    pub(crate) pinned_files: usize,
    /// Bytes moved with one batch: no more than a few milliseconds of its sync.
    pub(crate) move_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { queue_bytes: 32 << 20, cache_bytes: 64 << 20, pinned_files: 8, move_bytes: 1 << 20 }
    }
}
