//! ashlar-wire

/// The generated messages and services.
#[allow(
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    unreachable_pub,
    reason = "generated"
)]
pub mod proto {
    tonic::include_proto!("ashlar.v1");
}
