//! Lifeboat backs SQLite databases up to S3 or a directory, proves that the backups restore,
//! and brings the databases back.
//!
//! The modules stand in floors and import only downward; `tests/integration/tidy.rs` holds the
//! table. `ARCHITECTURE.md` is the map.

pub mod clock;
pub mod credentials;
pub mod error;
pub mod metrics;
pub mod snapshot;
pub mod storage;
