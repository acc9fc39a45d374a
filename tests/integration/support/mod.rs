//! What several tests lean on.

pub mod s3_server;
