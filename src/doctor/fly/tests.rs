//! What holds on fly.io, found by found.

use super::*;
use crate::catalog::fixture::{at, manifest};
use crate::config::Sources;
use crate::doctor::check::Status::{self, *};

fn config(pairs: &[(&str, &str)]) -> Config {
    let base = [("BACKUP_DATABASE", "/data/app.db"), ("FLY_APP_NAME", "shop")];
    let environment = [&base, pairs].concat().into_iter().collect();
    Config::load(&Sources { environment, current_directory: "/srv".into(), ..Sources::default() })
        .expect("valid")
        .0
}

fn statuses(pairs: &[(&str, &str)], mounted_at: &str, took_ms: u64) -> Vec<Status> {
    let name = "app".parse().expect("a name");
    let mount = Mount { point: mounted_at.into(), kind: "ext4".to_owned() };
    let newest = Manifest { took_ms, ..manifest(at("2026-11-21T14:05:00Z"), 1, None, &[]) };
    let fact = Fact { name: &name, mount: Some(&mount), newest: Some(&newest) };
    judge(&config(pairs), &[fact]).into_iter().map(|check| check.status).collect()
}

#[test]
fn elsewhere_nothing_is_said_of_fly() {
    assert_eq!(statuses(&[("FLY_APP_NAME", "")], "/", 1), [Skipped; 3]);
}

#[test]
fn a_database_needs_a_volume() {
    assert_eq!(statuses(&[], "/data", 1), [Ok, Note, Note]);
    assert_eq!(statuses(&[], "/", 1), [Failure, Note, Note]);
    assert_eq!(statuses(&[("BACKUP_RESTORE_ON_BOOT", "true")], "/", 1), [Warning, Note, Note]);
    let name = "app".parse().expect("a name");
    let absent = Fact { name: &name, mount: None, newest: None };
    assert_eq!(judge(&config(&[]), &[absent])[0].status, Skipped);
}

#[test]
fn the_last_snapshot_has_to_end_before_the_kill() {
    assert_eq!(statuses(&[], "/data", 59_000)[1], Note);
    assert_eq!(statuses(&[], "/data", 60_000)[1], Warning);
    assert_eq!(statuses(&[("BACKUP_SHUTDOWN_DEADLINE", "270s")], "/data", 60_000)[1], Note);
    assert_eq!(statuses(&[("BACKUP_SHUTDOWN_DEADLINE", "10m")], "/data", 1)[1], Warning);
    assert_eq!(statuses(&[("BACKUP_ON_SHUTDOWN", "false")], "/data", 1), [Ok, Note, Warning]);
}
