//! The one Rust client of the project's own tests and benches: it signs, sends, verifies and measures.
//!
//! What: an S3 client over keep-alive HTTP/1.1 with an own SigV4 signer (`sign`, `client`), content that can be
//! verified without being stored (`content`), the JSON that `ashlar demo --json` prints (`demo`), the CPU time of
//! server processes (`process`), latencies (`latency`) and the workloads of the load generator (`workload`).
//!
//! Why own: the aws SDK hides what the tests must see (which gateway answered, whether an outcome is unknown, when
//! the connection was cut) and retries on its own, which would fold unknown into success.
//!
//! Left out: TLS, virtual-host addressing and streaming signatures: boto3 and the AWS CLI test those.

pub mod client;
pub mod content;
pub mod demo;
pub mod latency;
pub mod process;
pub mod sign;
pub mod workload;

pub use client::{Answer, Call, Client, Outcome, Payload, Trouble};
pub use content::{Content, Verifier};
pub use demo::Demo;
pub use sign::Credentials;
