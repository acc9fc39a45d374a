//! S3 in trouble.
