//! ashlar-testkit
