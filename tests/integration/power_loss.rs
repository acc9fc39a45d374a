//! The power goes while the real program works, at every one of its calls: what it had said is stored
//! is there afterwards, what is listed restores, and a database is the old or the new one, whole.
//!
//! A run is recorded with strace, and played back on a disk that forgets what was not synced.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use lifeboat::restore;
use lifeboat::snapshot::SnapshotId;
use lifeboat::storage::Directory;
use rusqlite::Connection;
use tempfile::TempDir;

use crate::power_loss_disk::{Disk, Tree, write_out};
use crate::power_loss_trace::{CALLS, parse};
use crate::support::files::{copy_tree, names};
use crate::support::lab::Lab;
use crate::support::program::Program;

/// The states the power can leave a run in.
struct Losses {
    /// Before the run had ended.
    under_way: Vec<Tree>,
    /// After its last call, so after everything it said.
    acknowledged: Vec<Tree>,
}

/// Carries out a run, which must succeed, and says what a loss of power would have left at each call.
fn losses(program: &Program, arguments: &[&str]) -> Losses {
    let mut disk = Disk::of(program.dir.path());
    let log = program.path("strace");
    let (log_name, calls) = (log.display().to_string(), format!("trace=?{}", CALLS.replace(',', ",?")));
    let strace = ["strace", "-f", "-xx", "-s", "4000000", "-e", &calls, "-o", &log_name];
    let ended = program.start_under(&strace, arguments).wait();
    assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
    let steps = parse(&fs::read_to_string(&log).expect("strace wrote"));
    fs::remove_file(log).expect("removed");
    let mut seen = HashSet::new();
    let mut under_way = disk.after_power_loss();
    for step in &steps {
        if disk.apply(step) {
            under_way.extend(disk.after_power_loss());
        }
    }
    under_way.retain(|tree| seen.insert(tree.clone()));
    let mut acknowledged = disk.after_power_loss();
    acknowledged.dedup();
    Losses { under_way, acknowledged }
}

/// A directory in memory where that can be had: nothing in it has to survive, so no sync has to wait.
fn directory() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).expect("a directory")
}

/// A laboratory in which the power just came back.
fn after(tree: &Tree) -> Lab {
    let dir = directory();
    write_out(tree, dir.path());
    let storage = Directory::open(dir.path().join("backups")).expect("the directory opens");
    Lab::over(dir, Arc::new(storage))
}

fn shown(tree: &Tree) -> String {
    let line = |(path, content): (&std::path::PathBuf, &Option<(usize, Vec<u8>)>)| {
        content.as_ref().map(|(_, bytes)| format!("{} {}\n", path.display(), bytes.len()))
    };
    tree.iter().filter_map(line).collect()
}

/// What a database says; an error if it is not whole.
fn words(database: &Path) -> rusqlite::Result<String> {
    let app = Connection::open(database)?;
    let verdict: String = app.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    assert_eq!(verdict, "ok");
    app.query_row("SELECT group_concat(word) FROM t", [], |row| row.get(0))
}

/// What must be so in a storage, whatever was under way.
async fn judge_storage(tree: &Tree, known: &BTreeMap<SnapshotId, String>, required: &[&SnapshotId]) {
    let lab = after(tree);
    let catalog = lab.catalog();
    let listing = catalog.list().await.expect("listed");
    assert!(listing.damaged.is_empty(), "{:?}\n{}", listing.damaged, shown(tree));
    let listed: Vec<&SnapshotId> = listing.snapshots.iter().map(|manifest| &manifest.id).collect();
    for id in required {
        assert!(listed.contains(id), "{id} was acknowledged:\n{}", shown(tree));
    }
    for manifest in &listing.snapshots {
        let output = lab.path(manifest.id.as_str());
        let restored = lab.restored_to(manifest, &output).await;
        restored
            .unwrap_or_else(|error| panic!("{} is listed: {}\n{}", manifest.id, error.chain(), shown(tree)));
        assert_eq!(words(&output).as_ref(), Ok(&known[&manifest.id]));
        catalog.proof(&manifest.id).await.expect("there is a whole one or none");
    }
    let newest = catalog.newest().await.unwrap_or_else(|error| panic!("{}\n{}", error.chain(), shown(tree)));
    let newest = newest.map(|manifest| manifest.id);
    assert!(required.iter().all(|id| newest.as_ref() >= Some(id)), "{newest:?}\n{}", shown(tree));
    // And it goes on from there.
    let app = lab.database("data/app.db", "INSERT INTO t VALUES ('after')");
    let next = lab.stored(&lab.path("data/app.db")).await;
    drop(app);
    assert_eq!(catalog.newest().await.expect("readable").map(|newest| newest.id), Some(next.id));
}

fn newest(program: &Program) -> SnapshotId {
    program.snapshots()[0].parse().expect("an id")
}

async fn storage_survives(journal_mode: &str) {
    let program = Program::new().with("BACKUP_PRUNE_SAFETY_AGE", "0s").with("BACKUP_RETENTION", "1l");
    drop(program.app(&format!("PRAGMA journal_mode={journal_mode}; CREATE TABLE t(word)")));
    let mut known = BTreeMap::new();
    let mut count = 0;
    for round in ["one", "two", "three"] {
        drop(program.app(&format!("INSERT INTO t VALUES ('{round}')")));
        let before: Vec<SnapshotId> = known.keys().cloned().collect();
        let losses = losses(&program, &["backup"]);
        let id = newest(&program);
        known.insert(id.clone(), words(&program.database()).expect("whole"));
        let before: Vec<&SnapshotId> = before.iter().collect();
        for tree in &losses.under_way {
            judge_storage(tree, &known, &before).await;
        }
        for tree in &losses.acknowledged {
            judge_storage(tree, &known, &[&before[..], &[&id]].concat()).await;
        }
        count += losses.under_way.len() + losses.acknowledged.len();
    }
    let last = newest(&program);
    for (arguments, left) in [(&["verify"][..], known.len()), (&["prune", "--apply"], 1)] {
        let losses = losses(&program, arguments);
        let required: Vec<SnapshotId> =
            program.snapshots().iter().map(|id| id.parse().expect("an id")).collect();
        assert_eq!(required.len(), left, "{arguments:?}");
        for tree in losses.under_way.iter().chain(&losses.acknowledged) {
            judge_storage(tree, &known, &required.iter().collect::<Vec<_>>()).await;
        }
        for tree in &losses.acknowledged {
            let proof = after(tree).catalog().proof(&last).await.expect("readable");
            assert!(proof.is_some(), "the proof was acknowledged:\n{}", shown(tree));
        }
        count += losses.under_way.len() + losses.acknowledged.len();
    }
    println!("{journal_mode}: {count} losses of power");
    assert!(count > 100, "{count}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_survives_a_loss_of_power_at_any_call_of_a_backup_a_proof_and_a_prune() {
    storage_survives("wal").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_it_does_where_a_backup_goes_over_a_scratch_file() {
    storage_survives("delete").await;
}

/// A snapshot that says `old`, and a database that says `old,new`, half of it in its log.
fn with_snapshot() -> Program {
    let program = Program::new();
    let app = program.app("PRAGMA journal_mode=wal; CREATE TABLE t(word); INSERT INTO t VALUES ('old')");
    program.succeed(&["backup"]);
    app.execute_batch("INSERT INTO t VALUES ('new')").expect("written");
    let (data, copy) = (program.path("data"), program.path("as-killed"));
    copy_tree(&data, &copy);
    drop(app);
    fs::remove_dir_all(&data).expect("removed");
    fs::rename(copy, &data).expect("renamed");
    assert!(fs::metadata(program.path("data/app.db-wal")).expect("a log").len() > 0);
    program
}

/// Judges the states of one run onto `data/app.db`: how many, and what the database says in them.
fn judge_target(losses: &Losses, before: Option<&str>, now: &str) {
    let mut found = HashSet::new();
    let states = losses.under_way.iter().map(|tree| (tree, false));
    for (tree, is_acknowledged) in states.chain(losses.acknowledged.iter().map(|tree| (tree, true))) {
        let dir = directory();
        write_out(tree, dir.path());
        let database = dir.path().join("data/app.db");
        let recovered = restore::recover(&database);
        recovered.unwrap_or_else(|error| panic!("{}\n{}", error.chain(), shown(tree)));
        let left = names(&dir.path().join("data"));
        let of_swap = |name: &String| name.starts_with(".lifeboat-copy") || name.ends_with("-intent");
        assert!(!left.iter().any(of_swap), "{left:?}\n{}", shown(tree));
        let says = match database.exists() {
            false => None,
            true => Some(words(&database).unwrap_or_else(|error| panic!("{error}\n{}", shown(tree)))),
        };
        assert!(says.as_deref() == Some(now) || says.as_deref() == before, "{says:?}\n{}", shown(tree));
        assert!(!is_acknowledged || says.as_deref() == Some(now), "acknowledged: {says:?}\n{}", shown(tree));
        found.insert(says);
        // What was replaced is kept, or still in its place.
        if let Some(before) = before.filter(|_| is_acknowledged) {
            let is_kept = |name: &&String| name.contains(".pre-restore-") && name.ends_with('Z');
            let kept = left.iter().rfind(is_kept).expect("the old one is kept");
            assert_eq!(words(&dir.path().join("data").join(kept)).expect("whole"), before);
        }
    }
    println!("{} losses of power", losses.under_way.len() + losses.acknowledged.len());
    let expected = 1 + usize::from(before != Some(now));
    assert_eq!(found.len(), expected, "the power went before the swap and after it: {found:?}");
}

#[test]
fn a_loss_of_power_in_a_restore_and_in_its_undo_leaves_the_old_or_the_new_database() {
    let program = with_snapshot();
    judge_target(&losses(&program, &["restore"]), Some("old,new"), "old");
    judge_target(&losses(&program, &["restore", "--undo"]), Some("old"), "old,new");
}

#[test]
fn a_loss_of_power_in_a_restore_onto_nothing_leaves_nothing_or_the_new_database() {
    let program = with_snapshot();
    for name in names(&program.path("data")) {
        fs::remove_file(program.path("data").join(name)).expect("removed");
    }
    judge_target(&losses(&program, &["restore"]), None, "old");
}

#[test]
fn a_loss_of_power_while_an_interrupted_restore_is_settled_leaves_the_old_or_the_new_database() {
    for is_renamed in [false, true] {
        let program = with_snapshot();
        let data = program.path("data");
        let copy = data.join(".lifeboat-copy-abcdef").display().to_string();
        program.succeed(&["restore", "--output", &copy]);
        let kept = "app.db.pre-restore-20200101T000000.000Z";
        let intent = format!(r#"{{"format":1,"copy":".lifeboat-copy-abcdef","kept":"{kept}"}}"#);
        fs::write(data.join(".app.db.lifeboat-intent"), intent).expect("written");
        fs::hard_link(data.join("app.db"), data.join(kept)).expect("linked");
        fs::rename(data.join("app.db-wal"), data.join(format!("{kept}-wal"))).expect("renamed");
        if is_renamed {
            fs::rename(&copy, data.join("app.db")).expect("renamed");
        }
        let interrupted = if is_renamed { "old" } else { "old,new" };
        // It settles what was interrupted, and then restores.
        judge_target(&losses(&program, &["restore"]), Some(interrupted), "old");
    }
}
