//! Lifeboat backs SQLite databases up to S3 or a directory, proves that the backups restore,
//! and brings the databases back.
//!
//! The modules stand in floors and import only downward; `tests/integration/tidy.rs` holds the
//! table. `ARCHITECTURE.md` is the map.

pub mod account;
pub mod adopt;
pub mod ask;
pub mod backup;
pub mod capture;
pub mod catalog;
pub mod cli;
pub mod clock;
pub mod config;
pub mod crash;
pub mod credentials;
pub mod daemon;
pub mod delta;
pub mod demo;
pub mod descent;
pub mod descriptors;
pub mod disk;
pub mod doctor;
pub mod error;
pub mod http;
pub mod lanes;
pub mod lineage;
pub mod memory;
pub mod metrics;
pub mod prune;
pub mod random;
pub mod restore;
pub mod retention;
pub mod schedule;
pub mod setup;
pub mod snapshot;
pub mod source;
pub mod spool;
pub mod storage;
pub mod supervise;
pub mod telemetry;
pub mod verify;
pub mod worker;
