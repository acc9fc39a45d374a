//! Everything that is tried from outside the library, in one binary: the AWS crates are linked once.
#![allow(
    clippy::disallowed_methods,
    reason = "tests look at the clock, sleep, and read what cargo tells them"
)]

mod bad_input;
mod budget;
mod capture;
mod capture_app;
mod capture_bounds;
mod capture_damage;
mod capture_default;
mod capture_life;
mod capture_oracle;
mod capture_rest;
mod capture_snapshots;
mod capture_upheaval;
mod command_user;
mod crash;
mod crash_process;
#[cfg(debug_assertions)]
mod crash_sweep;
#[cfg(not(debug_assertions))]
mod crash_without;
mod credentials;
mod credentials_canary;
mod credentials_exchange;
mod credentials_program;
mod credentials_token;
mod daemon;
mod damage;
mod damage_records;
mod delta;
mod descent;
mod disk_faults;
mod disk_full;
mod disk_scene;
mod doctor;
mod doctor_storage;
mod drills;
mod faults_disk;
mod faults_objects;
mod faults_operations;
mod faults_restore;
mod format_doc;
mod fuzz;
mod http;
mod http_access;
mod http_limits;
mod http_routes;
mod last_backup;
mod limits;
mod lineage;
mod moments;
mod old_format;
mod oracle;
mod oracle_facts;
mod oracle_writer;
mod packaging;
mod power_loss;
mod power_loss_disk;
mod power_loss_trace;
mod properties;
mod reliability;
mod restore;
mod restore_beside;
mod restore_open;
mod restore_undo;
mod round_trip;
mod schedule;
mod scripted_store;
mod scripted_store_network;
mod scripted_store_scene;
mod signals;
mod simulation;
mod soak;
mod spool;
mod spool_limits;
mod spool_place;
mod spool_shipping;
mod storage;
mod storage_s3;
mod support;
mod systemd;
mod tidy;
mod zoo;
mod zoo_crashed;
