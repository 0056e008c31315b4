//! ashlar-gateway
