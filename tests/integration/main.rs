//! The integration tests: one binary, so that the AWS crates are linked once.

mod round_trip;
mod support;
