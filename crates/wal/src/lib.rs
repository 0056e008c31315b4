//! ashlar-wal
