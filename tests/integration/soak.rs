//! One daemon over many cycles: what it holds of the machine does not grow with what it has done.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::program::{Program, Running, ask, free_address};

/// Cycles until everything that is kept on purpose (job history, connections, arenas) is there, and cycles measured.
const WARM_UP: usize = 100;
const CYCLES: usize = 300;

/// What measured cycles may add to resident memory: an allocator's noise. A leak of 7 KiB in each is found.
const GROWTH_KIB_MAX: u64 = 2 << 10;

/// What the daemon may hold at its peak. The unit for systemd allows 512 MiB.
const PEAK_KIB_MAX: u64 = 128 << 10;

/// An answer that must be 200.
fn succeeds(address: SocketAddr, line: &str) -> String {
    let answer = ask(address, line, "");
    assert!(answer.starts_with("HTTP/1.1 200"), "{line}: {answer}");
    answer
}

fn proc(daemon: &Running, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/{name}", daemon.id()))
}

/// What the daemon's descriptors are open on, sorted.
fn descriptors(daemon: &Running) -> Vec<String> {
    let entries = fs::read_dir(proc(daemon, "fd")).expect("there is a daemon");
    let target = |entry: fs::DirEntry| fs::read_link(entry.path()).map(|target| target.display().to_string());
    // One that is closed meanwhile is not there any more.
    let mut open: Vec<String> = entries.filter_map(|entry| target(entry.ok()?).ok()).collect();
    open.sort();
    open
}

/// The same once there are at most `expected`: a connection of ours is closed a moment after its answer.
fn settled(daemon: &Running, expected: usize) -> Vec<String> {
    let waiting = Instant::now();
    loop {
        let open = descriptors(daemon);
        if open.len() <= expected || waiting.elapsed() > Duration::from_secs(10) {
            return open;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A line of the daemon's status, in KiB or as a number.
fn status(daemon: &Running, name: &str) -> u64 {
    let text = fs::read_to_string(proc(daemon, "status")).expect("there is a daemon");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel tells");
    line.trim_start_matches(':')
        .split_whitespace()
        .next()
        .and_then(|number| number.parse().ok())
        .expect("a number")
}

#[test]
fn descriptors_memory_and_threads_do_not_grow_with_the_cycles() {
    let address = free_address();
    let program = Program::new()
        .with("BACKUP_HTTP_ADDR", address.to_string())
        .with("BACKUP_VERIFY_SCHEDULE", "off")
        .with("BACKUP_PRUNE_SCHEDULE", "off");
    let app = program.app("PRAGMA journal_mode=wal; CREATE TABLE t(x); INSERT INTO t VALUES (1);");
    let mut daemon = program.start(&["run"]);
    daemon.wait_for_log("proved snapshot");
    let cycle = || {
        // The database stays as large as it is: up to one frame of 1 MiB, buffers grow with it.
        app.execute("UPDATE t SET x = randomblob(1000)", []).expect("writes");
        assert!(succeeds(address, "POST /backup-now").contains(r#""outcome":"stored""#));
        succeeds(address, "POST /verify");
    };
    (0..WARM_UP).for_each(|_| cycle());
    std::thread::sleep(Duration::from_secs(1));
    let before = descriptors(&daemon);
    let (resident, threads) = (status(&daemon, "VmRSS"), status(&daemon, "Threads"));
    (0..CYCLES).for_each(|_| cycle());
    let after = settled(&daemon, before.len());
    assert_eq!(after.len(), before.len(), "{before:#?}\n{after:#?}");
    let grown = status(&daemon, "VmRSS").saturating_sub(resident);
    assert!(grown <= GROWTH_KIB_MAX, "{grown} KiB more than {resident} KiB");
    let peak = status(&daemon, "VmHWM");
    assert!(peak <= PEAK_KIB_MAX, "{peak} KiB");
    // Threads for blocking work end when they were idle for a while.
    assert!(status(&daemon, "Threads") <= threads + 8, "{threads}");
    assert_eq!(daemon.end(Signal::TERM).code, Some(0));
}

/// Adds so many MiB that do not compress.
fn grow(app: &rusqlite::Connection, mebibytes: usize) {
    for _ in 0..mebibytes {
        app.execute("INSERT INTO t VALUES (randomblob(1048576))", []).expect("writes");
    }
    app.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").expect("checkpoints");
}

#[test]
fn the_peak_of_memory_grows_neither_with_the_database_nor_from_snapshot_to_snapshot() {
    let address = free_address();
    let program = Program::new()
        .with("BACKUP_HTTP_ADDR", address.to_string())
        .with("BACKUP_THREADS", "2")
        .with("BACKUP_VERIFY_SCHEDULE", "off");
    let app = program.app("PRAGMA journal_mode=wal; CREATE TABLE t(x); INSERT INTO t VALUES (1);");
    let mut daemon = program.start(&["run"]);
    daemon.wait_for_log("proved snapshot");
    let stored_and_proven = || {
        assert!(succeeds(address, "POST /backup-now").contains(r#""outcome":"stored""#));
        succeeds(address, "POST /verify");
    };
    grow(&app, 64);
    stored_and_proven();
    let first = status(&daemon, "VmHWM");
    for _ in 0..8 {
        grow(&app, 1);
        stored_and_proven();
    }
    grow(&app, 128);
    stored_and_proven();
    let last = status(&daemon, "VmHWM");
    // 8 bytes of seek table for each MiB, and how full the queues happened to be.
    assert!(
        last <= first + (24 << 10),
        "{first} KiB with 64 MiB, {last} KiB with 200 MiB, nine snapshots later"
    );
    assert!(last <= PEAK_KIB_MAX, "{last} KiB");
    assert_eq!(daemon.end(Signal::TERM).code, Some(0));
}
