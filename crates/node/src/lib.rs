//! ashlar-node
