//! Tests of the state machine: stories, a model, the root, and the bytes of format 1.

mod audit;
mod format;
mod interval;
mod model;
mod recode;
mod root;
mod split;
mod stories;
mod support;
mod versions;
