//! Calls that fail: a sync, a rename or a link, a write by SQLite, each in turn; files that may not grow;
//! and too few descriptors. strace stands between the program and the kernel.
//!
//! With several threads the n-th call of each one fails, so one run may meet more than one failure.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use lifeboat::error::ErrorKind;
use lifeboat::restore;

use crate::disk_scene::{Scene, code};

/// Calls that fail together, and how.
const SYNCS: &str = "?fsync,?fdatasync:error=EIO";
const NAMES: &str = "?rename,?renameat,?renameat2,?link,?linkat:error=ENOSPC";
const SQLITE_WRITES: &str = "?pwrite64,?ftruncate:error=ENOSPC";

/// More calls of one kind than any thread makes here.
const CALLS_MAX: usize = 60;

/// What is run, on a scene that `prepare` has made ready for it.
struct Run {
    journal_mode: &'static str,
    prepare: fn(&Scene),
    arguments: &'static [&'static str],
}

const BACKUP: Run = Run { journal_mode: "wal", prepare: |_| {}, arguments: &["backup"] };
const BACKUP_OVER_SCRATCH: Run = Run { journal_mode: "delete", ..BACKUP };
const RESTORE: Run = Run {
    journal_mode: "wal",
    prepare: |scene| {
        scene.back_up();
        scene.change();
    },
    arguments: &["restore"],
};
const UNDO: Run = Run {
    prepare: |scene| {
        (RESTORE.prepare)(scene);
        scene.program.succeed(&["restore"]);
    },
    arguments: &["restore", "--undo"],
    ..RESTORE
};
const VERIFY: Run = Run { arguments: &["verify"], ..RESTORE };

impl Run {
    fn changes_the_database(&self) -> bool {
        self.arguments[0] == "restore"
    }

    /// Fails every call of `calls` in turn, until a run makes fewer. How many runs met a failure, and
    /// how many of them said so: what does not matter to the outcome (a note, a file swept) may fail.
    fn with_each_failing(&self, calls: &str) -> (usize, usize) {
        let mut refused = 0;
        for at in 1..CALLS_MAX {
            let scene = Scene::new(self.journal_mode);
            (self.prepare)(&scene);
            let log = scene.program.path("strace").display().to_string();
            let what = format!("trace={}", calls.split_once(':').expect("calls and an error").0);
            let inject = format!("inject={calls}:when={at}");
            let strace = ["strace", "-f", "-e", &what, "-e", &inject, "-o", &log];
            let before = scene.says();
            let ended = scene.program.start_under(&strace, self.arguments).wait();
            let has_failed = fs::read_to_string(&log).expect("strace wrote").contains("(INJECTED)");
            let what = format!("{:?}, call {at} of {calls}: {ended:?}", self.arguments);
            self.judge(&scene, before, ended.code, &what);
            if !has_failed {
                assert_eq!(ended.code, Some(0), "{what}");
                return (at - 1, refused);
            }
            refused += usize::from(ended.code != Some(0));
        }
        panic!("{:?} made {CALLS_MAX} calls of {calls}", self.arguments);
    }

    /// Whatever failed: the exit code says a kind, nothing is lost, and the same command goes again.
    fn judge(&self, scene: &Scene, before: i64, ended: Option<i32>, what: &str) {
        let kinds =
            [ErrorKind::Limit, ErrorKind::Target, ErrorKind::Unavailable, ErrorKind::Source, ErrorKind::Busy];
        assert!(ended == Some(0) || kinds.map(code).contains(&ended), "{what}");
        scene.assert_storage_is_whole();
        let says = scene.says();
        if !self.changes_the_database() {
            assert_eq!(says, before, "{what}");
            if ended == Some(0) && self.arguments == ["backup"] {
                scene.assert_newest_is_now();
            }
            scene.program.succeed(self.arguments);
            scene.program.succeed(&["verify"]);
            if self.arguments == ["backup"] {
                scene.assert_newest_is_now();
            }
            assert_eq!(scene.left_over("backups/app"), Vec::<PathBuf>::new(), "{what}");
            return;
        }
        // One of the two, whole; what an interrupted swap left is settled by whoever comes next.
        let replaced = [before - 1, before + 1];
        assert!(says == before || replaced.contains(&says), "{what}");
        assert!(ended != Some(0) || says != before, "it said that it was done: {what}");
        let settled = restore::recover(&scene.program.database());
        settled.unwrap_or_else(|error| panic!("{what}: {}", error.chain()));
        assert_eq!(scene.left_over("data"), Vec::<PathBuf>::new(), "{what}");
        assert_eq!(scene.says(), says, "it is settled as what is there: {what}");
        if says == before {
            scene.program.succeed(self.arguments);
            assert_ne!(scene.says(), before, "{what}");
        }
    }
}

fn each_fails(run: &Run, calls: &str, at_least: usize) {
    let (failed, refused) = run.with_each_failing(calls);
    println!("{:?}: {failed} runs with failures of {calls}, {refused} refused", run.arguments);
    assert!(refused >= at_least, "{failed} {refused}");
    assert!(calls != SYNCS || refused == failed, "a failed sync is no success: {failed} {refused}");
}

#[test]
fn each_sync_of_a_backup_fails() {
    each_fails(&BACKUP, SYNCS, 2);
}

#[test]
fn each_sync_of_a_backup_over_a_scratch_file_fails() {
    each_fails(&BACKUP_OVER_SCRATCH, SYNCS, 2);
}

#[test]
fn each_sync_of_a_restore_fails() {
    each_fails(&RESTORE, SYNCS, 2);
}

#[test]
fn each_sync_of_an_undo_fails() {
    each_fails(&UNDO, SYNCS, 2);
}

#[test]
fn each_sync_of_a_proof_fails() {
    each_fails(&VERIFY, SYNCS, 1);
}

#[test]
fn each_rename_and_link_of_a_backup_fails() {
    each_fails(&BACKUP, NAMES, 2);
}

#[test]
fn each_rename_and_link_of_a_restore_fails() {
    each_fails(&RESTORE, NAMES, 2);
}

#[test]
fn each_rename_and_link_of_an_undo_fails() {
    each_fails(&UNDO, NAMES, 2);
}

#[test]
fn each_write_of_sqlite_in_a_restore_fails() {
    each_fails(&RESTORE, SQLITE_WRITES, 1);
}

/// Runs the program under a limit of the shell.
fn limited(scene: &Scene, limit: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let script = format!("trap '' XFSZ; ulimit {limit}; exec \"$0\" \"$@\"");
    // Pipes, for a file for the output could not grow, either.
    let ended = Command::new("sh")
        .args(["-c", &script, env!("CARGO_BIN_EXE_lifeboat")])
        .args(arguments)
        .env_clear()
        .env("PATH", scene.program.variable("PATH"))
        .env("BACKUP_DATABASE", scene.program.database())
        .env("BACKUP_DIR", scene.program.path("backups"))
        .output()
        .expect("it runs");
    (ended.status.code(), String::from_utf8_lossy(&ended.stderr).into_owned())
}

#[test]
fn files_that_may_grow_to_any_size_up_to_enough() {
    for run in [BACKUP, BACKUP_OVER_SCRATCH, RESTORE, VERIFY] {
        let mut refused = 0;
        // In units of 512 bytes: what is written has some 45,000 bytes.
        for units in [0, 1, 2, 8, 40, 80, 88, 200] {
            let scene = Scene::new(run.journal_mode);
            (run.prepare)(&scene);
            let before = scene.says();
            let (ended, stderr) = limited(&scene, &format!("-f {units}"), run.arguments);
            let what = format!("{:?} with files of {units} units: {ended:?} {stderr}", run.arguments);
            assert!(ended == Some(0) || !stderr.is_empty(), "{what}");
            run.judge(&scene, before, ended, &what);
            refused += u32::from(ended != Some(0));
            assert!(units < 200 || ended == Some(0), "{what}");
        }
        assert!(refused >= 4, "{:?}: {refused}", run.arguments);
    }
}

#[test]
fn too_few_descriptors_are_an_error_like_any_other() {
    for run in [BACKUP, RESTORE] {
        let mut refused = 0;
        for descriptors in (8..40).step_by(2) {
            let scene = Scene::new(run.journal_mode);
            (run.prepare)(&scene);
            let before = scene.says();
            let (ended, stderr) = limited(&scene, &format!("-n {descriptors}"), run.arguments);
            let what = format!("{:?} with {descriptors} descriptors: {ended:?} {stderr}", run.arguments);
            assert!(ended.is_some() && !stderr.contains("panicked"), "{what}");
            // With the fewest the program cannot even set itself up, which is not foreseen: `Internal`.
            match ended == code(ErrorKind::Internal) {
                true => assert_eq!(scene.says(), before, "{what}"),
                false => run.judge(&scene, before, ended, &what),
            }
            refused += u32::from(ended != Some(0));
            if ended == Some(0) {
                break;
            }
        }
        println!("{:?}: {refused} refusals", run.arguments);
        assert!(refused > 0, "{:?}", run.arguments);
    }
}
