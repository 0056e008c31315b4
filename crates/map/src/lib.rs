//! ashlar-map
