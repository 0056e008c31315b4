//! ashlar-check
fn main() {}
