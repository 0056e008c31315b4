//! A file system in memory that forgets what was not synced.
//!
//! Each file is what is durable, and the writes since. [`SimDisk::cut`] is the power cut: it drops, keeps or tears the
//! un-synced writes, forgets un-synced names, and fails whatever old handles still try.
