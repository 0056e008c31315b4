//! ashlar-placement
