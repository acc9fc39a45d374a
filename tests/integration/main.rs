//! Everything that is tried from outside the library, in one binary.

mod credentials;
mod storage;
mod storage_s3;
mod support;
