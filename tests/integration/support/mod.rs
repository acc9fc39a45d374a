//! What several tests need.

pub mod lab;
