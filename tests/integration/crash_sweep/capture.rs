//! Captures that are killed, and restores of what they stored.

use std::fs::{self, File};
use std::thread;
use std::time::{Duration, SystemTime};

use lifeboat::error::ErrorKind;
use lifeboat::restore::{self, Damage, Moment, Target};
use rusqlite::Connection;
use rustix::process::Signal;

use super::scenarios::{Effect, Orders, PLAIN, Scenario, run};
use super::site::{Content, Site, normalised};
use crate::support::program::Ended;

/// What the application commits beside the program.
const VERSIONS: [u32; 2] = [1_000, 1_001];

pub const CAPTURE: &[Scenario] = &[
    Scenario {
        name: "a capture from its first snapshot on",
        prepare: |site| {
            site.make("wal", "");
            site.foresee(&VERSIONS);
            site.set("BACKUP_CAPTURE", "on");
            site.set("BACKUP_INTERVAL", "100ms");
        },
        act: commit_beside,
        effect: Effect::Replaces,
        about: &["delta-", "source-pinned", "manifest-created", "head-replaced"],
        ..PLAIN
    },
    Scenario {
        name: "a capture that goes on",
        prepare: captured,
        act: commit_beside,
        effect: Effect::Replaces,
        about: &["delta-"],
        ..PLAIN
    },
    Scenario {
        name: "a restore with deltas",
        prepare: |site| {
            captured(site);
            let stored = site.allowed.clone();
            site.write_and_die();
            site.allowed.extend(stored);
        },
        act: |site, orders| run(site, &["restore"], orders),
        effect: Effect::Replaces,
        about: &["delta-", "copy-", "swap-renamed", "note-"],
        ..PLAIN
    },
    Scenario {
        name: "a prune of deltas that no snapshot leads to",
        prepare: |site| {
            site.make("wal", "");
            site.back_up();
            site.prove();
            site.set("BACKUP_POINT_IN_TIME", "1h");
            let folder = site.program.path("backups/app/deltas/0");
            fs::create_dir_all(&folder).expect("made");
            for from in 64..67 {
                let lost = File::create(folder.join(format!("{from:016x}-{:016x}", from + 1)));
                let lost = lost.expect("written");
                lost.set_modified(SystemTime::now() - Duration::from_secs(2 * 24 * 3600)).expect("set");
            }
        },
        act: |site, orders| run(site, &["prune", "--apply"], orders),
        about: &["delta-"],
        ..PLAIN
    },
];

/// Both versions are in deltas.
fn captured(site: &mut Site) {
    site.make("wal", "");
    site.foresee(&VERSIONS);
    site.set("BACKUP_CAPTURE", "on");
    site.set("BACKUP_INTERVAL", "100ms");
    let ended = commit_beside(site, &[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(site.stored_version.get(), VERSIONS[1]);
}

/// The application commits while the daemon runs, and waits until storage has it, unless the daemon dies.
fn commit_beside(site: &Site, orders: Orders) -> Ended {
    let mut daemon = site.program.start_with(&["run"], orders);
    if daemon.says("deltas of app are stored up to position") {
        while newest(site).is_none() && !daemon.has_ended() {
            thread::sleep(Duration::from_millis(10));
        }
        for version in VERSIONS {
            let app = Connection::open(site.program.database()).expect("opens");
            app.busy_timeout(Duration::ZERO).expect("set");
            app.execute("UPDATE t SET version = ?1", [version]).expect("no lock is in the way");
            drop(app);
            while newest(site).is_none_or(|(_, stored)| stored != version) && !daemon.has_ended() {
                thread::sleep(Duration::from_millis(10));
            }
            if newest(site).is_some_and(|(_, stored)| stored == version) {
                site.stored_version.set(version);
            }
        }
    }
    daemon.end(Signal::TERM)
}

/// The newest moment that storage has, and the version in it; `None` where there is no snapshot.
fn newest(site: &Site) -> Option<(Content, u32)> {
    let moment = match site.block_on(Moment::find(&Target::Newest, &site.catalog())) {
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        moment => moment.unwrap_or_else(|error| panic!("there is one: {}", error.chain())),
    };
    let folder = tempfile::tempdir_in(site.program.dir.path()).expect("a folder");
    let output = folder.path().join("restored.db");
    let resources = site.resources(folder.path());
    let restored = site.block_on(restore::to_new_file(&resources, &moment, &output, Damage::Refused));
    restored.unwrap_or_else(|error| panic!("the newest moment is refused: {}", error.chain()));
    let content = Some(normalised(&output));
    let restored = Connection::open(&output).expect("opens");
    let version = restored.query_row("SELECT version FROM t LIMIT 1", [], |row| row.get(0));
    Some((content, version.expect("asked")))
}

/// The newest moment is one that was committed, and not before what storage was seen to have.
pub fn require_captured(site: &Site) {
    let stored = site.stored_version.get();
    if stored == 0 && !site.program.path("backups/app/deltas").exists() {
        return;
    }
    let (content, version) = newest(site).expect("there is a snapshot");
    assert!(site.was_committed(&content), "the newest moment is {content:?}, which never was");
    assert!(version >= stored, "version {version} is what is left of {stored}");
}
