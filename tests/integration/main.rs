//! Everything that is tried from outside the library, in one binary: the AWS crates are linked once.

mod bad_input;
mod crash;
mod crash_process;
mod credentials;
mod daemon;
mod damage;
mod properties;
mod restore;
mod round_trip;
mod storage;
mod storage_s3;
mod support;
mod tidy;
mod zoo;
mod zoo_crashed;
