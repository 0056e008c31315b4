//! What `ashlar-powercut` shares with the harness of whole nodes: how a machine's file systems are made, cut and removed.

pub mod machine;
