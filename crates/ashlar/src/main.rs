//! ashlar-ashlar
fn main() {}
