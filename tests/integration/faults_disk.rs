//! Faults of disks and file systems under the source: reads that fail, a directory that cannot be
//! written, files of another owner, and what others may read of what is written.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use lifeboat::error::ErrorKind;
use rustix::process::Signal;

use crate::support::files::{copy_tree, names, state};
use crate::support::mount::SmallDisk;
use crate::support::program::Program;

const PROGRAM: &str = env!("CARGO_BIN_EXE_lifeboat");
const SOURCE: i32 = ErrorKind::Source.exit_code() as i32;

const FILL: &str = "PRAGMA journal_mode=wal; CREATE TABLE t(x BLOB);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<300)
    INSERT INTO t SELECT randomblob(1000) FROM n;";

/// Somebody who is not root.
const SOMEBODY: u32 = 65_534;

/// A library that, loaded before the system's, has the disk fail: every read of the file `FAIL_READ` at or
/// behind the byte `FAIL_FROM`, and every sync of a regular file below `FAIL_SYNC`.
const FAILING_DISK: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/stat.h>
#include <sys/types.h>

static int is_at(int fd, const char *place, int below) {
    char link[64], path[4096];
    if (!place) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below ? strncmp(path, place, strlen(place)) == 0 : strcmp(path, place) == 0;
}

static int fails(int fd, off64_t at) {
    return is_at(fd, getenv("FAIL_READ"), 0) && at >= atoll(getenv("FAIL_FROM"));
}

static int fails_to_sync(int fd) {
    struct stat found;
    return is_at(fd, getenv("FAIL_SYNC"), 1) && fstat(fd, &found) == 0 && S_ISREG(found.st_mode);
}

int fsync(int fd) {
    static int (*next)(int);
    if (!next) next = dlsym(RTLD_NEXT, "fsync");
    if (fails_to_sync(fd)) { errno = EIO; return -1; }
    return next(fd);
}

int fdatasync(int fd) {
    static int (*next)(int);
    if (!next) next = dlsym(RTLD_NEXT, "fdatasync");
    if (fails_to_sync(fd)) { errno = EIO; return -1; }
    return next(fd);
}

ssize_t read(int fd, void *to, size_t count) {
    static ssize_t (*next)(int, void *, size_t);
    if (!next) next = dlsym(RTLD_NEXT, "read");
    if (fails(fd, lseek64(fd, 0, SEEK_CUR))) { errno = EIO; return -1; }
    return next(fd, to, count);
}

ssize_t pread64(int fd, void *to, size_t count, off64_t at) {
    static ssize_t (*next)(int, void *, size_t, off64_t);
    if (!next) next = dlsym(RTLD_NEXT, "pread64");
    if (fails(fd, at)) { errno = EIO; return -1; }
    return next(fd, to, count, at);
}
"#;

fn failing_disk(folder: &Path) -> PathBuf {
    let (source, library) = (folder.join("failing-disk.c"), folder.join("failing-disk.so"));
    fs::write(&source, FAILING_DISK).expect("written");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).output();
    let built = built.expect("there is a C compiler");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    library
}

#[test]
fn a_disk_that_fails_in_the_middle_of_the_database_is_told_and_loses_no_backup() {
    for mode in ["wal", "delete"] {
        let program = Program::new();
        drop(program.app(&FILL.replace("wal", mode)));
        program.succeed(&["backup"]);
        drop(program.app("INSERT INTO t VALUES (randomblob(1000))"));
        let listed = program.snapshots();
        let library = failing_disk(program.dir.path());
        let database = fs::canonicalize(program.database()).expect("it is there");
        let bytes = fs::metadata(&database).expect("it is there").len();
        let backup = |fail_from: u64| {
            let mut command = program.command(PROGRAM);
            command.arg("backup").env("LD_PRELOAD", &library);
            command.env("FAIL_READ", &database).env("FAIL_FROM", fail_from.to_string());
            command.output().expect("it runs")
        };
        for fail_from in [4096, bytes / 2, bytes - 4096] {
            let ended = backup(fail_from);
            let stderr = String::from_utf8_lossy(&ended.stderr);
            assert_eq!(ended.status.code(), Some(SOURCE), "{mode}, from {fail_from}: {stderr}");
            assert!(stderr.contains("the disk reports an error") && stderr.contains("app.db"), "{stderr}");
            assert_eq!(program.snapshots(), listed, "{mode}, from {fail_from}");
        }
        let ended = backup(bytes);
        assert!(ended.status.success(), "the failing disk was the reason: {ended:?}");
        program.succeed(&["verify"]);
    }
}

#[test]
fn a_disk_that_cannot_sync_is_told_and_nothing_is_listed_or_replaced() {
    let program = Program::new();
    drop(program.app(FILL));
    program.succeed(&["backup"]);
    drop(program.app("INSERT INTO t VALUES (randomblob(1000))"));
    let library = failing_disk(program.dir.path());
    let root = fs::canonicalize(program.dir.path()).expect("it is there");
    let fails = |verb: &str, folder: &str| {
        let (listed, before) = (program.snapshots(), state(&program.path("data")));
        let mut command = program.command(PROGRAM);
        command.arg(verb).env("LD_PRELOAD", &library).env("FAIL_SYNC", root.join(folder));
        let ended = command.output().expect("it runs");
        let stderr = String::from_utf8_lossy(&ended.stderr);
        assert!(!ended.status.success(), "{verb} {folder}: {stderr}");
        assert!(stderr.contains("Input/output error"), "{verb} {folder}: {stderr}");
        assert_eq!(program.snapshots(), listed, "{verb} {folder}: {stderr}");
        assert_eq!(state(&program.path("data")), before, "{verb} {folder}: {stderr}");
    };
    for folder in ["backups/app/snapshots", "backups/app/manifests"] {
        fails("backup", folder);
    }
    fails("restore", "data");
    program.succeed(&["backup"]);
    program.succeed(&["restore"]);
}

/// A manifest that may come back after a power loss must find its data.
#[test]
fn data_stays_while_the_removal_of_its_manifest_is_not_synced() {
    let program = Program::new().with("BACKUP_RETENTION", "1l").with("BACKUP_PRUNE_SAFETY_AGE", "0s");
    for number in 0..2 {
        drop(program.app(&format!("{FILL} ALTER TABLE t RENAME TO t{number}")));
        program.succeed(&["backup"]);
        program.succeed(&["verify"]);
    }
    let log = program.path("strace").display().to_string();
    let manifests = program.path("backups/app/manifests").display().to_string();
    let inject = "inject=fsync:error=EIO";
    let strace = ["strace", "-f", "-P", &manifests, "-e", "trace=fsync", "-e", inject, "-o", &log];
    let ended = program.start_under(&strace, &["prune", "--apply"]).wait();
    assert!(fs::read_to_string(&log).expect("strace wrote").contains("(INJECTED)"), "{ended:?}");
    assert!(ended.code != Some(0) && ended.stderr.contains("Input/output error"), "{ended:?}");
    assert_eq!(names(&program.path("backups/app/snapshots")).len(), 2, "{ended:?}");
}

/// The root of a volume has such a folder, `lost+found`.
#[test]
fn folders_beside_the_backups_that_nobody_may_read_stop_nothing() {
    let program = Program::new();
    drop(program.app(FILL));
    let folder = |name: String| {
        let path = program.path("backups").join(name);
        fs::create_dir_all(&path).expect("a folder");
        path
    };
    // In whatever order they are listed, some of the latter come behind one of the former.
    let foreign: Vec<PathBuf> = (0..10).map(|number| folder(format!("lost+found{number}"))).collect();
    let stale: Vec<PathBuf> =
        (0..10).map(|number| folder(format!("app{number}")).join(".lifeboat-tmp-old")).collect();
    for path in &stale {
        let two_days_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(2 * 86_400);
        fs::File::create(path).and_then(|file| file.set_modified(two_days_ago)).expect("left behind");
    }
    let log = program.path("strace").display().to_string();
    let foreign: Vec<String> = foreign.iter().map(|path| path.display().to_string()).collect();
    let only = foreign.iter().flat_map(|path| ["-P", path]);
    let inject = ["-e", "trace=openat", "-e", "inject=openat:error=EACCES", "-o", &log];
    let strace: Vec<&str> = ["strace", "-D", "-f"].into_iter().chain(only).chain(inject).collect();
    let mut daemon = program.start_under(&strace, &["run"]);
    daemon.wait_for_log("proved snapshot");
    assert_eq!(daemon.end(Signal::TERM).code, Some(0));
    assert!(fs::read_to_string(&log).expect("strace wrote").contains("(INJECTED)"));
    let left: Vec<&PathBuf> = stale.iter().filter(|path| path.exists()).collect();
    assert!(left.is_empty(), "not swept: {left:?}");
}

#[test]
fn a_scratch_copy_that_has_no_room_is_not_begun() {
    let program = Program::new();
    fs::create_dir(program.path("backups")).expect("a folder");
    // Room for the copy, and less than for it beside what is left to others.
    let _disk = SmallDisk::mount(program.path("backups"), "36m");
    drop(program.app(&FILL.replace("wal", "delete").replace("i<300", "i<6000")));
    let ended = program.run(&["backup"]);
    ended.refused(i32::from(ErrorKind::Target.exit_code()), &["not enough space", "nothing was changed"]);
    assert_eq!(names(&program.path("backups/.lifeboat-scratch")), Vec::<String>::new());
    assert_eq!(names(&program.path("data")), ["app.db"]);
}

#[test]
fn a_read_only_file_system_is_explained_and_not_read_past_its_log() {
    let program = Program::new();
    let _disk = SmallDisk::mount(program.path("data"), "8m");
    let app = program.app(FILL);
    copy_tree(&program.path("data"), &program.path("crashed"));
    drop(app);
    for name in names(&program.path("crashed")).iter().filter(|name| !name.ends_with("-shm")) {
        copy_tree(&program.path("crashed").join(name), &program.path("data").join(name));
    }
    let remount = |how: &str| {
        let options = format!("remount,{how}");
        let mounted = Command::new("mount").args(["-o", &options]).arg(program.path("data")).status();
        assert!(mounted.expect("`mount` is there").success(), "this test wants to mount, so run it as root");
    };
    remount("ro");
    let before = state(&program.path("data"));
    let ended = program.run(&["backup"]);
    ended.refused(SOURCE, &["app.db", "writable"]);
    assert_eq!(state(&program.path("data")), before);
    assert!(!program.path("backups/app/manifests").exists(), "a database without its log is not stored");
    remount("rw");
    program.succeed(&["backup"]);
}

#[test]
fn what_sqlite_makes_beside_a_database_belongs_to_the_owner_of_the_database() {
    let program = Program::new();
    let app = program.app(FILL);
    copy_tree(&program.path("data"), &program.path("crashed"));
    drop(app);
    for name in names(&program.path("crashed")).iter().filter(|name| !name.ends_with("-shm")) {
        let file = program.path("data").join(name);
        copy_tree(&program.path("crashed").join(name), &file);
        chown(&file, Some(SOMEBODY), Some(SOMEBODY)).expect("this test gives files away, so run it as root");
    }
    chown(program.path("data"), Some(SOMEBODY), Some(SOMEBODY)).expect("root may");
    assert_eq!(names(&program.path("data")), ["app.db", "app.db-wal"]);
    program.succeed(&["backup"]);
    for name in names(&program.path("data")) {
        let made = fs::metadata(program.path("data").join(&name)).expect("it is there");
        assert_eq!((made.uid(), made.gid()), (SOMEBODY, SOMEBODY), "{name}");
    }
}

#[test]
fn what_is_written_is_for_its_owner_only() {
    let program = Program::new();
    drop(program.app(FILL));
    for verb in ["backup", "verify"] {
        let run = format!("umask 0; exec \"$0\" {verb}");
        let ended = program.command("sh").args(["-c", &run, PROGRAM]).output().expect("it runs");
        assert!(ended.status.success(), "{ended:?}");
    }
    let copy = program.path("copy.db").display().to_string();
    let run = format!("umask 0; exec \"$0\" restore --output {copy}");
    let ended = program.command("sh").args(["-c", &run, PROGRAM]).output().expect("it runs");
    assert!(ended.status.success(), "{ended:?}");
    let mut folders = vec![program.path("backups")];
    let mut files = vec![program.path("copy.db")];
    while let Some(folder) = folders.pop() {
        assert_eq!(fs::metadata(&folder).expect("there").mode() & 0o077, 0, "{}", folder.display());
        for name in names(&folder) {
            let path = folder.join(name);
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    for file in &files {
        assert_eq!(fs::metadata(file).expect("there").mode() & 0o077, 0, "{}", file.display());
    }
    assert!(files.len() > 4, "{files:?}");
}
