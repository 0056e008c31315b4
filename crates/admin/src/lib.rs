//! ashlar-admin
