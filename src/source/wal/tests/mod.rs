//! Logs that SQLite wrote, read in every way we could think of.

#[cfg(target_os = "linux")]
mod locks;
mod plain;
mod restarts;
mod scripts;
mod truncation;
mod writers;
