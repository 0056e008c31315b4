//! Promises that are looked at in the cluster itself, one file each. What clients saw is judged by `ashlar-check`.

pub(crate) mod d1;
pub(crate) mod d4;
pub(crate) mod d7;
pub(crate) mod l1;
pub(crate) mod r4;
