//! ashlar-s3
