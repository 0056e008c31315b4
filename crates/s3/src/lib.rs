//! S3 on the wire: from HTTP to a [`Backend`] in the words of `ashlar-types`, and back.
//!
//! ```text
//! head ─ check size ─ claims of the signature ─ library judges it ─ target ─ operation and allow-list ─ handler ─ Backend
//! body ────────────────────────────────────── Upload: framing, hashes, trailers ─────────────────────────────┘
//! ```
//! The protocol library (s3s) judges signatures and is named in one file. What acts on the request is ours: an
//! allow-list of parameters and headers (anything else is 501), conditions, checksums, limits, XML, error codes.
//!
//! What it leaves out: clusters, policies, POST forms, and everything else that it answers 501.

mod backend;
mod body;
mod buckets;
mod checksum;
mod chunked;
mod condition;
mod config;
mod copy;
mod description;
mod error;
mod handler;
mod library;
mod lists;
mod multipart;
mod objects;
mod operation;
mod request;
mod response;
mod service;
mod signature;
mod time;
mod versions;
mod xml;

pub use backend::{
    Backend, CompleteUpload, Content, Deleted, Failure, Found, List, ListUploads, ListVersions,
    Parts, Place, PutObject, Redescribe, Written,
};
pub use body::{BodyError, RequestBody, Upload};
pub use config::{Credentials, RandomSource, S3Config, SecretKey};
pub use error::{Code, S3Error, S3Result};
pub use response::ResponseBody;
pub use service::{S3Service, Summary, service};
