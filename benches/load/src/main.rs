//! ashlar-load
fn main() {}
