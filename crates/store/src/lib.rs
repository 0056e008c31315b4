//! ashlar-store
