//! ashlar-meta
