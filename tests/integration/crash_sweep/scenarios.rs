//! What the program is doing when it is killed.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, SystemTime};

use lifeboat::crash::AT_VARIABLE;
use lifeboat::error::ErrorKind;
use rustix::process::Signal;

use super::site::{Site, Store};
use crate::support::program::Ended;

/// Variables for one run.
pub type Orders<'a> = &'a [(&'a str, String)];

/// What becomes of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It is read, at most.
    Reads,
    /// It is replaced by what a snapshot, or a file that was kept, holds.
    Replaces,
}

pub struct Scenario {
    pub name: &'static str,
    pub store: Store,
    /// Brings a site to where the program is started.
    pub prepare: fn(&mut Site),
    /// Starts it and waits for its end, whatever that is.
    pub act: fn(&Site, Orders) -> Ended,
    pub effect: Effect,
    /// With which codes it may end.
    pub codes: &'static [i32],
    /// With which others, after it was killed the first time.
    pub again: &'static [i32],
    /// How the names of the points begin that it is about; those of others are in another scenario.
    pub about: &'static [&'static str],
}

impl Scenario {
    pub fn is_about(&self, point: &str) -> bool {
        self.about.iter().any(|beginning| point.starts_with(beginning))
    }
}

const EVERYTHING: &[&str] = &[""];
const RESTORING: &[&str] = &["copy-", "intent-", "swap-", "kept-", "note-"];
const SETTLING: &[&str] = &["copy-swept", "intent-removed", "recovery-", "swap-companion-followed"];

const WELL: &[i32] = &[0];
const TARGET: i32 = ErrorKind::Target.exit_code() as i32;
const CONFLICT: i32 = ErrorKind::Conflict.exit_code() as i32;
const UNHEALTHY: i32 = ErrorKind::Unhealthy.exit_code() as i32;

/// What most scenarios are.
pub const PLAIN: Scenario = Scenario {
    name: "",
    store: Store::Directory,
    prepare: |_| {},
    act: |_, _| panic!("a scenario does something"),
    effect: Effect::Reads,
    codes: WELL,
    again: &[],
    about: EVERYTHING,
};

/// Several frames, and several steps of an overwrite, which compress to next to nothing.
const SEVERAL_FRAMES: &str = "INSERT INTO fill VALUES (zeroblob(2200000))";

/// Two parts of an upload: 9 MB that do not compress.
const TWO_PARTS: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<9)
    INSERT INTO fill SELECT randomblob(1000000) FROM n";

/// Three parts: an upload begins with the second, and ends early if the third is not to be sent.
const THREE_PARTS: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<17)
    INSERT INTO fill SELECT randomblob(1000000) FROM n";

pub const BACKUP: &[Scenario] = &[
    Scenario {
        name: "the first backup",
        prepare: |site| {
            site.make("wal", "");
            site.write_and_die();
        },
        act: |site, orders| run(site, &["backup"], orders),
        ..PLAIN
    },
    Scenario {
        name: "a later backup",
        prepare: changed,
        act: |site, orders| run(site, &["backup"], orders),
        ..PLAIN
    },
    Scenario {
        name: "a backup of what is stored already",
        prepare: stored,
        act: |site, orders| run(site, &["backup"], orders),
        ..PLAIN
    },
    Scenario {
        name: "a backup without a write-ahead log",
        prepare: |site| {
            site.make("delete", SEVERAL_FRAMES);
            site.back_up();
            site.write();
        },
        act: |site, orders| run(site, &["backup"], orders),
        about: &["data-", "source-", "note-"],
        ..PLAIN
    },
];

pub const PROOF_AND_PRUNE: &[Scenario] = &[
    Scenario {
        name: "a proof",
        prepare: |site| {
            site.make("wal", SEVERAL_FRAMES);
            site.back_up();
        },
        act: |site, orders| run(site, &["verify"], orders),
        ..PLAIN
    },
    Scenario {
        name: "a prune",
        prepare: |site| {
            site.set("BACKUP_RETENTION", "2l");
            site.keeps = 2;
            site.make("wal", "");
            for nth in 1..=5 {
                site.write();
                if nth == 4 {
                    crash(site, &["backup"], "data-created");
                }
                site.back_up();
                if nth <= 2 {
                    site.prove();
                }
            }
        },
        act: |site, orders| run(site, &["prune", "--apply"], orders),
        ..PLAIN
    },
];

pub const RESTORE: &[Scenario] = &[
    Scenario {
        name: "a restore onto a database with a log",
        prepare: |site| {
            site.set("BACKUP_KEEP_REPLACED", "1");
            site.make("wal", SEVERAL_FRAMES);
            site.back_up();
            site.write();
            site.program.succeed(&["restore"]);
            site.write();
            let id = site.back_up();
            site.write_and_die();
            site.allow(&id);
        },
        act: |site, orders| run(site, &["restore"], orders),
        effect: Effect::Replaces,
        ..PLAIN
    },
    Scenario {
        name: "a restore of an older snapshot",
        prepare: older,
        act: |site, orders| {
            let id = site.chosen.as_ref().expect("chosen").to_string();
            run(site, &["restore", "--snapshot", &id], orders)
        },
        effect: Effect::Replaces,
        about: &["intent-removed", "note-", "swap-rename"],
        ..PLAIN
    },
    Scenario {
        name: "a restore to a new file",
        prepare: |site| {
            changed(site);
            fs::create_dir(site.program.path("elsewhere")).expect("made");
        },
        act: |site, orders| run(site, &["restore", "--output", "elsewhere/new.db"], orders),
        again: &[TARGET],
        ..PLAIN
    },
];

pub const UNDO: &[Scenario] = &[
    Scenario {
        name: "an undo",
        prepare: |site| {
            changed(site);
            let replaced = site.allowed.clone();
            site.program.succeed(&["restore"]);
            site.remember();
            site.allowed.extend(replaced);
        },
        act: |site, orders| run(site, &["restore", "--undo"], orders),
        effect: Effect::Replaces,
        ..PLAIN
    },
    Scenario {
        name: "an undo that brings a log back",
        prepare: quarantined,
        act: |site, orders| run(site, &["restore", "--undo"], orders),
        effect: Effect::Replaces,
        about: RESTORING,
        ..PLAIN
    },
];

pub const BOOT: &[Scenario] = &[
    Scenario {
        name: "a boot without a database",
        prepare: |site| {
            stored(site);
            // So that no proof follows, which may come by the same points or be too late.
            site.prove();
            for name in ["app.db", "app.db-wal", "app.db-shm"] {
                let _ = fs::remove_file(site.data().join(name));
            }
            site.allowed.insert(None);
            site.set("BACKUP_RESTORE_ON_BOOT", "true");
        },
        act: |site, orders| run(site, &["run", "--", "true"], orders),
        effect: Effect::Replaces,
        about: RESTORING,
        ..PLAIN
    },
    Scenario {
        name: "a boot over what is no database",
        prepare: |site| {
            stored(site);
            site.prove();
            let stored = site.allowed.clone();
            spoil(site);
            site.allowed.extend(stored);
            site.set("BACKUP_RESTORE_ON_BOOT", "true");
        },
        act: |site, orders| run(site, &["run", "--", "true"], orders),
        effect: Effect::Replaces,
        about: RESTORING,
        ..PLAIN
    },
];

pub const RECOVERY: &[Scenario] = &[
    Scenario {
        name: "undoing what was interrupted before the rename",
        prepare: |site| interrupted(site, "swap-kept-synced"),
        act: |site, orders| run(site, &["run", "--", "true"], orders),
        effect: Effect::Replaces,
        about: SETTLING,
        ..PLAIN
    },
    Scenario {
        name: "finishing what was interrupted after the rename",
        prepare: |site| interrupted(site, "swap-renamed"),
        act: |site, orders| run(site, &["restore"], orders),
        effect: Effect::Replaces,
        about: SETTLING,
        ..PLAIN
    },
    Scenario {
        name: "removing what was interrupted before the swap",
        prepare: |site| interrupted(site, "copy-fetched"),
        act: |site, orders| run(site, &["run", "--", "true"], orders),
        effect: Effect::Replaces,
        about: SETTLING,
        ..PLAIN
    },
    Scenario {
        name: "finishing an undo that brings a log back",
        prepare: |site| {
            quarantined(site);
            crash(site, &["restore", "--undo"], "swap-released");
        },
        act: |site, orders| run(site, &["run", "--", "true"], orders),
        effect: Effect::Replaces,
        about: SETTLING,
        ..PLAIN
    },
];

pub const DAEMON: &[Scenario] = &[Scenario {
    name: "a daemon from its first start to its end",
    prepare: |site| {
        site.make("wal", "");
        site.write_and_die();
        let folder = site.program.path("backups/app/snapshots");
        fs::create_dir_all(&folder).expect("made");
        let left = File::create(folder.join(".lifeboat-tmp-left")).expect("written");
        left.set_modified(SystemTime::now() - Duration::from_secs(2 * 24 * 3600)).expect("set");
    },
    act: |site, orders| {
        let mut daemon = site.program.start_with(&["run"], orders);
        daemon.says(if site.is_proven() { "backing up app to" } else { "proved snapshot" });
        daemon.end(Signal::TERM)
    },
    ..PLAIN
}];

pub const ONLINE: &[Scenario] = &[Scenario {
    name: "a restore into the open database",
    prepare: |site| {
        site.listen();
        older(site);
    },
    act: |site, orders| {
        let mut daemon = site.program.start_with(&["run"], orders);
        if daemon.says("backing up app to") {
            let address = site.program.variable("BACKUP_HTTP_ADDR").parse().expect("an address");
            let id = site.chosen.as_ref().expect("chosen");
            let body = format!(r#"{{"database":"app","confirm":"app","snapshot":"{id}"}}"#);
            ask_to_restore(address, site.token(), &body);
        }
        daemon.end(Signal::TERM)
    },
    effect: Effect::Replaces,
    about: &["copy-", "note-", "overwrite-", "source-", "data-", "manifest-", "head-"],
    ..PLAIN
}];

pub const ADOPTION: &[Scenario] = &[Scenario {
    name: "an adoption",
    prepare: |site| {
        stored(site);
        site.program.succeed(&["restore", "--output", "old.db"]);
        site.write();
        site.back_up();
        // The volume of another machine: the old content, and nothing is noted of the file.
        fs::rename(site.program.path("old.db"), site.program.database()).expect("renamed");
        site.remember();
        site.program.succeed(&["backup"]);
        site.write();
        let report = site.program.json(&["backup"]);
        assert_eq!(report["snapshot"]["flags"], serde_json::json!(["branch"]));
        let branch = report["snapshot"]["id"].as_str().expect("an id").parse().expect("an id");
        let content = site.content();
        site.acknowledged.insert(branch, content);
    },
    act: |site, orders| run(site, &["adopt", "--apply"], orders),
    again: &[CONFLICT, ErrorKind::NotFound.exit_code() as i32],
    ..PLAIN
}];

pub const BUCKET: &[Scenario] = &[
    Scenario {
        name: "the first backup to a bucket",
        store: Store::Bucket,
        prepare: |site| site.make("wal", ""),
        act: |site, orders| run(site, &["backup"], orders),
        ..PLAIN
    },
    Scenario {
        name: "a proof from a bucket",
        store: Store::Bucket,
        prepare: stored,
        act: |site, orders| run(site, &["verify"], orders),
        about: &["proof-"],
        ..PLAIN
    },
    Scenario {
        name: "a doctor's visit",
        store: Store::Bucket,
        prepare: stored,
        act: |site, orders| run(site, &["doctor"], orders),
        codes: &[0, UNHEALTHY],
        about: &["s3-"],
        ..PLAIN
    },
];

pub const PARTS: &[Scenario] = &[
    Scenario {
        name: "a backup in several parts",
        store: Store::Bucket,
        prepare: |site| site.make("wal", TWO_PARTS),
        act: |site, orders| run(site, &["backup"], orders),
        about: &["s3-", "data-"],
        ..PLAIN
    },
    Scenario {
        name: "a backup in several parts of what is stored already",
        store: Store::Bucket,
        prepare: |site| {
            site.make("wal", THREE_PARTS);
            site.back_up();
        },
        act: |site, orders| run(site, &["backup"], orders),
        about: &["s3-upload-aborted"],
        ..PLAIN
    },
    Scenario {
        name: "the end of an upload that a killed process began",
        store: Store::Bucket,
        prepare: |site| {
            site.make("wal", TWO_PARTS);
            crash(site, &["backup"], "s3-part-sent");
            site.age_unfinished();
        },
        act: |site, orders| run(site, &["run", "--", "true"], orders),
        about: &["s3-unfinished-aborted", "unfinished-"],
        ..PLAIN
    },
];

/// A database with one snapshot that holds it.
fn stored(site: &mut Site) {
    site.make("wal", "");
    site.back_up();
}

/// A database that was changed since its newest snapshot, which may be restored.
fn changed(site: &mut Site) {
    site.make("wal", SEVERAL_FRAMES);
    site.chosen = Some(site.back_up());
    site.write_and_die();
}

/// A database with two snapshots, of which the older one is to be restored; it was changed since.
fn older(site: &mut Site) {
    site.make("wal", SEVERAL_FRAMES);
    let id = site.back_up();
    site.write();
    site.back_up();
    site.write();
    site.allow(&id);
    site.chosen = Some(id);
}

/// A restore of the newest snapshot that was killed at `point`.
fn interrupted(site: &mut Site, point: &str) {
    changed(site);
    let id = site.chosen.clone().expect("chosen");
    crash(site, &["restore"], point);
    site.allow(&id);
}

/// What stands there is no database, and has a log.
fn spoil(site: &mut Site) {
    fs::write(site.program.database(), "garbage ".repeat(1000)).expect("written");
    fs::write(site.data().join("app.db-wal"), "the log").expect("written");
    site.remember();
}

/// A boot restored the database; what stood there before is kept, with its log.
fn quarantined(site: &mut Site) {
    stored(site);
    let stored = site.allowed.clone();
    spoil(site);
    site.set("BACKUP_RESTORE_ON_BOOT", "true");
    site.program.succeed(&["run", "--", "true"]);
    site.set("BACKUP_RESTORE_ON_BOOT", "false");
    site.allowed.extend(stored);
}

pub fn run(site: &Site, arguments: &[&str], orders: Orders) -> Ended {
    site.program.start_with(arguments, orders).wait()
}

/// Runs what dies at `point`.
pub fn crash(site: &Site, arguments: &[&str], point: &str) {
    let ended = run(site, arguments, &[(AT_VARIABLE, point.to_owned())]);
    assert_eq!(ended.signal, Some(9), "{arguments:?} at {point}: {ended:?}");
}

/// Whatever comes of it: the daemon may die meanwhile. One that is not ready yet is asked again.
fn ask_to_restore(address: SocketAddr, token: &str, body: &str) {
    while let Ok(mut stream) = TcpStream::connect(address) {
        let _ = write!(
            stream,
            "POST /restore HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAuthorization: Bearer \
             {token}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        if !answer.starts_with("HTTP/1.1 503") {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
