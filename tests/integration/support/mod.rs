//! What several tests need.

pub mod files;
pub mod lab;
pub mod s3_server;
