//! What nodes say to each other, and how: the messages, mutual TLS, one port, one dialer.
//!
//! gRPC (tonic) carries everything but shard bytes, which are HTTP/1.1 bodies on the same port: measured at a third of
//! the CPU. This crate is the door between roles: no role uses another one.

mod dialer;
mod security;
mod server;
pub mod shard;
mod stream;

pub use dialer::{Class, DialError, Dialer, ShardBody};
pub use security::{
    Authority, Credentials, INTERNAL_NAME, JoinToken, KeyPem, Security, SecurityError,
    signing_request,
};
pub use server::serve;

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
