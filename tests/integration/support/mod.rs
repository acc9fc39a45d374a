//! What several tests need.

pub mod files;
pub mod harbour;
pub mod identity;
pub mod lab;
pub mod line;
pub mod mount;
pub mod program;
pub mod s3_server;
pub mod station;
pub mod word;
