//! Which moments can be restored, where there are gaps, and what is said of those that cannot.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use axum::http::StatusCode;
use lifeboat::clock::Timestamp;
use lifeboat::error::{Error, ErrorKind};
use lifeboat::restore::{Target, when};
use lifeboat::snapshot::{Anchor, Manifest, Record, SnapshotId};
use lifeboat::storage::{Fault, Faulty, How, Memory, Operation, whole};
use lifeboat::verify;
use lifeboat::worker::{Handle, Job, Reason, Report};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::lab::Lab;
use crate::support::line::{Line, time};
use crate::support::program::Program;
use crate::support::station::Station;
use crate::support::word::word;

fn at(clock: &str) -> Target {
    Target::At(time(clock))
}

/// The target that a message names in a command.
fn named(error: &Error) -> Target {
    let chain = error.chain();
    let (_, command) = chain.split_once("`lifeboat restore ").expect("a command");
    let (arguments, _) = command.split_once('`').expect("it ends");
    match arguments.split_once(' ').expect("a flag and a value") {
        ("--at", time) => Target::At(when(time, Timestamp::MAX).expect("a time")),
        ("--snapshot", id) => Target::Snapshot(id.parse().expect("an id")),
        other => panic!("{other:?}"),
    }
}

/// 12:00 to 12:00:02 with two rows; then two rows that nobody captured; from 13:00 on two more.
async fn with_gap() -> Line {
    let mut line = Line::new().await;
    line.commit("12:00:01").await;
    line.commit("12:00:02").await;
    line.stop();
    line.write();
    line.write();
    line.start("13:00:00").await;
    line.commit("13:00:01").await;
    line.commit("13:00:02").await;
    line
}

#[tokio::test(flavor = "multi_thread")]
async fn every_moment_of_a_window_is_restored_as_it_was() {
    let line = with_gap().await;
    for (clock, rows) in [
        ("12:00:00", 0),
        ("12:00:00.999", 0),
        ("12:00:01", 1),
        ("12:00:01.500", 1),
        ("12:00:02", 2),
        ("13:00:00", 4),
        ("13:00:01", 5),
        ("13:00:02", 6),
        ("23:00:00", 6),
    ] {
        assert_eq!(line.restored(&at(clock)).await.expect(clock), rows, "{clock}");
    }
    assert_eq!(line.restored(&Target::Newest).await.expect("restored"), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_and_gaps_are_told_with_their_times() {
    let line = with_gap().await;
    let catalog = line.lab.catalog();
    let snapshots = catalog.list().await.expect("listed").snapshots;
    let reach = catalog.reach(&snapshots).await.expect("read").expect("there are deltas");
    let windows: Vec<_> = reach.windows.iter().map(|window| (window.from, window.until)).collect();
    assert_eq!(
        windows,
        [(time("12:00:00"), time("12:00:02")), (time("13:00:00"), time("13:00:02"))],
        "a start that could not go on claims no time of its own"
    );
    let gaps: Vec<_> = reach.gaps.iter().map(|gap| (gap.after, gap.until)).collect();
    assert_eq!(gaps, [(time("12:00:02"), time("13:00:00"))]);
    assert!(reach.windows.iter().all(|window| window.deltas >= 2 && window.delta_bytes > 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moment_in_a_gap_is_refused_and_the_one_before_is_named() {
    let line = with_gap().await;
    for clock in ["12:00:02.001", "12:30:00", "12:59:59.999"] {
        let error = line.find(&at(clock)).await.expect_err(clock);
        assert_eq!(error.kind(), ErrorKind::NotFound);
        for part in [
            "gap from 2026-11-21T12:00:02Z to 2026-11-21T13:00:00Z",
            "from 2026-11-21T12:00:00Z to 2026-11-21T12:00:02Z",
            "from 2026-11-21T13:00:00Z to 2026-11-21T13:00:02Z",
        ] {
            assert!(error.chain().contains(part), "{clock}: {error}");
        }
        assert_eq!(line.restored(&named(&error)).await.expect("what is named is there"), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moment_before_all_snapshots_names_the_windows() {
    let line = with_gap().await;
    let error = line.find(&at("11:59:59")).await.expect_err("too early");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    for part in ["no snapshot is that old", "from 2026-11-21T12:00:00Z to 2026-11-21T12:00:02Z"] {
        assert!(error.chain().contains(part), "{error}");
    }
}

/// What nobody captured between has only its snapshots.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_within_a_gap_is_named_if_it_is_nearer() {
    let mut line = Line::new().await;
    line.commit("12:00:01").await;
    line.stop();
    line.write();
    let uncaptured = line.snapshot("12:30:00").await;
    assert_eq!(uncaptured.anchor, None);
    line.write();
    line.start("13:00:00").await;
    line.commit("13:00:01").await;
    let error = line.find(&at("12:45:00")).await.expect_err("in a gap");
    assert_eq!(named(&error), Target::Snapshot(uncaptured.id));
    assert_eq!(line.restored(&named(&error)).await.expect("restored"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_delta_begins_a_gap_behind_the_last_window() {
    let line = Line::new().await;
    for clock in ["12:00:01", "12:00:02", "12:00:03"] {
        line.commit(clock).await;
    }
    fs::remove_file(deltas(&line)[1].clone()).expect("removed");
    let error = line.find(&at("12:00:02")).await.expect_err("in a gap");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.chain().contains("gap from 2026-11-21T12:00:01Z to 2026-11-21T12:00:03Z"), "{error}");
    assert_eq!(line.restored(&named(&error)).await.expect("restored"), 1);
    assert_eq!(line.restored(&at("12:00:01")).await.expect("restored"), 1);
}

/// The deltas in storage, by position.
fn deltas(line: &Line) -> Vec<PathBuf> {
    let folder = line.lab.path("backups/app/deltas/0");
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_prove_names_the_newest_moment_that_does() {
    let clocks = ["12:00:01", "12:00:02", "12:00:03"];
    // In the format byte, in the pages, in the checksum of the database before, and in the digest.
    for place in ["format", "pages", "before", "digest"] {
        for damaged in 0..clocks.len() {
            let line = Line::new().await;
            for clock in clocks {
                line.commit(clock).await;
            }
            let path = &deltas(&line)[damaged];
            let mut bytes = fs::read(path).expect("readable");
            let at = match place {
                "format" => 3,
                "before" => 77,
                "pages" => 120,
                _ => bytes.len() - 1,
            };
            bytes[at] ^= 1;
            fs::write(path, bytes).expect("written");

            let error = line.restored(&Target::Newest).await.expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            let rows = line.restored(&named(&error)).await.unwrap_or_else(|error| panic!("{place}: {error}"));
            assert_eq!(rows, damaged as i64, "{place}: all that proves: {}", error.chain());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moment_that_may_be_in_a_damaged_delta_is_no_older_one() {
    let line = Line::new().await;
    for clock in ["12:00:01", "12:00:02", "12:00:03"] {
        line.commit(clock).await;
    }
    let path = &deltas(&line)[1];
    fs::write(path, b"no delta").expect("written");
    for clock in ["12:00:01.500", "12:00:02"] {
        let error = line.find(&at(clock)).await.expect_err(clock);
        assert_eq!((error.kind(), named(&error)), (ErrorKind::Corrupt, at("12:00:01")), "{error}");
    }
    assert_eq!(line.restored(&at("12:00:01")).await.expect("restored"), 1);
    assert_eq!(line.restored(&at("12:00:00.500")).await.expect("restored"), 0);
}

/// A station whose database is captured, with one delta.
async fn captured() -> (Station, Handle) {
    let station = Station::new().await;
    let handle = station.app.fleet.members()[0].handle().expect("open");
    run(&handle, Job::Capture).await;
    run(&handle, Job::Backup { accept_shrunken: false }).await;
    station.connections[0].execute_batch("INSERT INTO t VALUES ('second')").expect("written");
    run(&handle, Job::Capture).await;
    (station, handle)
}

async fn run(handle: &Handle, job: Job) -> Report {
    let record = handle.run(job, Reason::FollowUp).await.expect("asked");
    record.report().expect("done")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_http_interface_shows_windows_and_takes_moments() {
    let (station, handle) = captured().await;
    let shown = station.get("/snapshots").await.json();
    let windows = shown["point_in_time"]["windows"].as_array().expect("windows");
    assert_eq!((windows.len(), windows[0]["deltas"].clone()), (1, json!(1)), "{shown}");
    assert_eq!(shown["point_in_time"]["gaps"], json!([]));

    let restore = |at: &str| json!({"database": "app", "confirm": "app", "at": at});
    let early = station.post("/restore", &restore("1d ago")).await;
    assert_eq!((early.status, early.error_kind().as_str()), (StatusCode::NOT_FOUND, "not-found"));
    let from = windows[0]["from"].as_str().expect("a time");
    assert!(early.body.contains(&format!("any moment can be restored from {from}")), "{}", early.body);
    for refused in ["tomorrow", "10m", "2999-01-01T00:00:00Z"] {
        let answer = station.post("/restore", &restore(refused)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{refused}: {}", answer.body);
    }
    let restored = station.post("/restore", &restore(from)).await;
    assert_eq!(restored.status, StatusCode::OK, "{}", restored.body);
    assert_eq!(restored.json()["restored"]["deltas"], 0);
    let rows = "SELECT count(*) FROM t";
    let count: i64 = station.connections[0].query_row(rows, [], |row| row.get(0)).expect("counted");
    assert_eq!(count, 1, "what was committed later is gone");

    run(&handle, Job::Capture).await;
    station.storage.script(Fault::at(Operation::List, 1, How::Before(ErrorKind::Denied)).on("deltas"));
    let shown = station.get("/snapshots").await.json();
    assert_eq!((&shown["point_in_time"], &shown["point_in_time_denied"]), (&Value::Null, &json!(true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_count_what_was_captured() {
    let (station, handle) = captured().await;
    let metrics = station.get("/metrics").await.body;
    for line in [
        r#"lifeboat_capture_lag_seconds{database="app"} 0.0"#,
        r#"lifeboat_capture_position{database="app"} 2"#,
        r#"lifeboat_capture_deltas_total{database="app"} 1"#,
        r#"lifeboat_capture_gaps_total{database="app"} 0"#,
    ] {
        assert!(metrics.contains(&format!("{line}\n")), "{line}: {metrics}");
    }
    let value = |name: &str| -> f64 {
        let start = format!("lifeboat_capture_{name}{{database=\"app\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&start)).expect("a line");
        line.parse().expect("a number")
    };
    assert!(value("deltas_stored_bytes_total") > 135.0, "a delta with a page has more than one without");
    assert!(value("log_bytes") > 4_096.0);
    let now = Timestamp::now().as_second() as f64;
    assert!((now - 100.0..=now + 1.0).contains(&value("stored_until_timestamp_seconds")));
    assert!(!metrics.contains("lifeboat_capture_comparisons_total{"), "nothing was compared");

    let app = &station.connections[0];
    app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("truncated");
    app.execute_batch("INSERT INTO t VALUES ('third')").expect("written");
    app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("truncated");
    // The first sees that the log tells nothing any more, the second compares.
    run(&handle, Job::Capture).await;
    run(&handle, Job::Capture).await;
    let metrics = station.get("/metrics").await.body;
    let compared = r#"lifeboat_capture_comparisons_total{database="app",reason="emptied"} 1"#;
    assert!(metrics.contains(compared), "{metrics}");
}

/// What a command reports, once it is what is waited for.
fn wait_for(program: &Program, arguments: &[&str], is_so: impl Fn(&Value) -> bool) -> Value {
    let began = std::time::Instant::now();
    loop {
        let report = program.json(arguments);
        if is_so(&report) {
            return program.json(arguments);
        }
        assert!(began.elapsed().as_secs() < 100, "{report:#}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn the_program_shows_windows_and_restores_moments() {
    let program = Program::new().with("BACKUP_CAPTURE", "true").with("BACKUP_INTERVAL", "100ms");
    let app = program.app("PRAGMA journal_mode=wal; CREATE TABLE t(word TEXT); INSERT INTO t VALUES ('0')");
    let daemon = program.start(&["run"]);
    wait_for(&program, &["snapshots"], |listed| {
        listed["snapshots"].as_array().is_some_and(|all| !all.is_empty())
    });
    let output = program.path("restored.db");
    let output_text = output.display().to_string();
    let restored = |which: &[&str]| {
        program.succeed(&[&["restore", "--output", &output_text], which].concat());
        let restored = word(&output);
        fs::remove_file(&output).expect("removed");
        restored
    };
    let mut until = Vec::new();
    for number in ["1", "2"] {
        app.execute("UPDATE t SET word = ?1", [number]).expect("updated");
        let status = wait_for(&program, &["status"], |_| restored(&["--latest"]) == number);
        until.push(status["captured"]["until"].as_str().expect("a time").to_owned());
    }
    assert!(program.succeed(&["status"]).contains(&format!("captured  up to {}, ", until[1])));
    assert_eq!(daemon.end(Signal::TERM).code, Some(0));

    let listed = program.json(&["snapshots"]);
    assert_eq!(listed["point_in_time"]["windows"].as_array().map(Vec::len), Some(1), "{listed:#}");
    assert!(program.succeed(&["snapshots"]).contains("any moment  "));
    for (which, expected) in [
        (&["--at", until[0].as_str()][..], "1"),
        (&["--at", until[1].as_str()], "2"),
        (&["--at", "1ms ago"], "2"),
        (&[], "2"),
    ] {
        assert_eq!(restored(which), expected, "{which:?}");
    }
    let plan = program.json(&["restore", "--at", &until[0], "--dry-run"]);
    assert_eq!((plan["deltas"].as_u64() >= Some(1), &plan["shows"]), (true, &json!(until[0])), "{plan:#}");
    assert!(plan["delta_bytes"].as_u64() > Some(135) && plan["position"].is_u64(), "{plan:#}");
    let alone =
        program.json(&["restore", "--snapshot", plan["snapshot"].as_str().expect("an id"), "--dry-run"]);
    let sum = [&alone["stored_bytes"], &plan["delta_bytes"]].map(|bytes| bytes.as_u64().expect("bytes"));
    assert_eq!(plan["stored_bytes"].as_u64(), Some(sum[0] + sum[1]), "{plan:#}");
    assert!(sum[0] > 100, "{alone:#}");
    let shown = program.succeed(&["restore", "--at", &until[0], "--dry-run"]);
    assert!(shown.contains("deltas     ") && shown.contains(", up to position "), "{shown}");

    program.run(&["restore", "--at", "99d ago"]).refused(7, &["any moment can be restored from "]);
    program.run(&["restore", "--at", "2999-01-01T00:00:00Z"]).refused(2, &["has not come yet"]);
    program.run(&["restore", "--at", "soon"]).refused(2, &["how long ago it was"]);
    assert_eq!(program.run(&["restore", "--latest", "--at", "1h ago"]).code, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_without_a_place_does_not_end_what_deltas_lead_to() {
    let line = Line::new().await;
    line.commit("12:00:01").await;
    assert_eq!(line.snapshot_by_hand("12:00:05").await.anchor, None);
    line.commit("12:00:08").await;
    for (clock, rows) in [("12:00:04", 1), ("12:00:06", 1), ("12:00:09", 2)] {
        assert_eq!(line.restored(&at(clock)).await.expect(clock), rows, "{clock}");
    }
    assert_eq!(line.find(&at("12:00:06")).await.expect("found").deltas.len(), 0, "the snapshot is later");
}

/// Checksums prove that it is what was committed, and a proof is of the snapshot alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_moment_is_looked_at_by_sqlite_though_its_snapshot_is_proven() {
    let line = Line::new().await;
    let catalog = line.lab.catalog();
    let snapshot = catalog.newest().await.expect("read").expect("there");
    verify::run(&catalog, &snapshot, &line.lab.resources())
        .await
        .map_err(|failure| failure.error)
        .expect("proven");
    line.commit("12:00:01").await;
    assert_eq!(line.restored(&Target::Newest).await.expect("it is whole"), 1);
    let damage = "CREATE TABLE u(x); PRAGMA writable_schema=ON;
        UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 't') WHERE name = 'u'";
    line.app.execute_batch(damage).expect("committed");
    line.commit("12:00:02").await;
    let error = line.restored(&Target::Newest).await.expect_err("two tables share their pages");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.chain());
    assert_eq!(line.restored(&at("12:00:01")).await.expect("before, it was whole"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_deltas_cannot_be_listed_or_read_for_now_nothing_older_is_restored() {
    let storage = Faulty::new(Arc::new(Memory::default()));
    let dir = tempfile::tempdir().expect("a temporary directory");
    let line = Line::over(Lab::over(dir, Arc::new(storage.clone()))).await;
    line.commit("12:00:01").await;
    let refuse = |kind| storage.script(Fault::at(Operation::List, 1, How::Before(kind)).on("deltas/"));
    refuse(ErrorKind::Unavailable);
    let error = line.find(&Target::Newest).await.expect_err("nobody knows what there is");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    refuse(ErrorKind::Denied);
    assert_eq!(line.restored(&Target::Newest).await.expect("the snapshot alone"), 0);
    assert_eq!(line.restored(&Target::Newest).await.expect("all of it"), 1);
    for target in [Target::Newest, at("12:00:01")] {
        let away = How::Before(ErrorKind::Unavailable);
        storage.script(Fault::at(Operation::ReadRange, 1, away).on("deltas/"));
        let error = line.find(&target).await.expect_err("nobody knows what it shows");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
    // The second time it is read to be applied.
    let away = How::Before(ErrorKind::Unavailable);
    storage.script(Fault::at(Operation::ReadRange, 2, away).on("deltas/"));
    let error = line.restored(&Target::Newest).await.expect_err("half of it is not there");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(storage.is_spent());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_was_never_published_is_no_end_of_the_line() {
    let mut line = Line::new().await;
    line.commit("12:00:01").await;
    let catalog = line.lab.catalog();
    let anchored = catalog.newest().await.expect("read").expect("there");
    let end = catalog.line_end(Some(&anchored)).await.expect("read").expect("there").position;
    line.stop();
    line.write();
    let newest = line.snapshot_by_hand("12:00:02").await;
    assert_eq!(newest.anchor, None);
    let unpublished = Manifest {
        id: SnapshotId::next(time("12:00:03"), Some(&newest.id), 7),
        anchor: Some(Anchor { position: end + 9, checksum: 0 }),
        ..anchored
    };
    let encoded = whole(unpublished.encode());
    line.lab.storage.create(&unpublished.key(), encoded).await.expect("stored");
    let found = catalog.line_end(Some(&newest)).await.expect("read").expect("there");
    assert_eq!(found.position, end);
}
