//! ashlar-erasure
