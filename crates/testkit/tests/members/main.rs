//! What moves the voters of ranges. In one program, because these tests wait more than they compute: they wait together.

#![expect(clippy::unwrap_used, reason = "helpers of tests: where they fail, the test fails")]

#[path = "../common/mod.rs"]
mod common;
mod long_day;
mod replicas;
