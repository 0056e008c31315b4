//! ashlar-client
