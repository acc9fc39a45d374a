//! What several tests need.

pub mod lab;
pub mod s3_server;
pub mod station;
