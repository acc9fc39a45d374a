//! What a database file shows of where it comes from: notes, times, size and content, over real SQLite.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use lifeboat::adopt;
use lifeboat::backup::{self, Outcome};
use lifeboat::clock::Clock;
use lifeboat::descent::Descent;
use lifeboat::error::ErrorKind;
use lifeboat::lineage::{Fork, Standing, Verdict};
use lifeboat::snapshot::{Flag, Manifest};
use rusqlite::Connection;
use tokio_util::sync::CancellationToken;

use crate::support::lab::Lab;

const FILL: &str = "PRAGMA journal_mode=wal; CREATE TABLE t(x); INSERT INTO t VALUES ('first')";

/// What was judged, and whether the content had to be read for it.
struct Found {
    verdict: Verdict,
    was_read: bool,
}

async fn judge(lab: &Lab, name: &str) -> Found {
    let descent = Descent::of(&"app".parse().expect("a name"), &lab.path(name), &lab.settings.scratch);
    let mut traces = descent.traces();
    let limits = lab.settings.limits(&CancellationToken::new());
    descent.compare(&lab.catalog(), &mut traces, limits).await.expect("compared");
    let judged = descent.judge(&lab.catalog(), &traces).await.expect("judged");
    Found { verdict: judged.verdict, was_read: traces.sha256.is_some() }
}

async fn two_snapshots() -> (Lab, Connection, [Manifest; 2]) {
    let lab = Lab::new();
    let app = lab.database("app.db", FILL);
    let first = lab.stored(&lab.path("app.db")).await;
    app.execute_batch("INSERT INTO t VALUES ('second')").expect("writes");
    let second = lab.stored(&lab.path("app.db")).await;
    (lab, app, [first, second])
}

fn stamp(path: &Path, age: Duration) {
    let file = fs::File::options().write(true).open(path).expect("opens");
    file.set_modified(SystemTime::now() - age).expect("stamped");
}

fn older(from: Option<&Manifest>, newest: &Manifest) -> Verdict {
    Verdict::Older(Fork { from: from.map(|from| from.id.clone()), newest: newest.id.clone() })
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_note_nothing_is_read() {
    let (lab, app, _) = two_snapshots().await;
    app.execute_batch("INSERT INTO t VALUES ('third')").expect("writes");
    let found = judge(&lab, "app.db").await;
    assert_eq!((found.verdict, found.was_read), (Verdict::Descends, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_note_content_and_times_tell() {
    let (lab, app, [first, second]) = two_snapshots().await;
    for (snapshot, name) in [(&first, "old.db"), (&second, "new.db"), (&first, "older.db")] {
        lab.restored_to(snapshot, &lab.path(name)).await.expect("restored");
    }
    assert_eq!(judge(&lab, "new.db").await.verdict, Verdict::Descends);
    let old = judge(&lab, "old.db").await;
    assert_eq!((old.verdict, old.was_read), (older(Some(&first), &second), true));

    // Content of its own: the times tell.
    let edit = Connection::open(lab.path("older.db")).expect("opens");
    edit.execute_batch("INSERT INTO t VALUES ('elsewhere')").expect("writes");
    drop(edit);
    assert_eq!(judge(&lab, "older.db").await.verdict, Verdict::Unknown);
    stamp(&lab.path("older.db"), Duration::from_secs(3600));
    assert_eq!(judge(&lab, "older.db").await.verdict, older(None, &second));

    // Another size needs no reading.
    let edit = Connection::open(lab.path("older.db")).expect("opens");
    edit.execute_batch("CREATE TABLE more(x); INSERT INTO more VALUES (randomblob(20000))").expect("writes");
    drop(edit);
    stamp(&lab.path("older.db"), Duration::from_secs(3600));
    let found = judge(&lab, "older.db").await;
    assert_eq!((found.verdict, found.was_read), (older(None, &second), false));

    // A database that is not there yet did not come from anywhere.
    assert_eq!(judge(&lab, "absent.db").await.verdict, older(None, &second));
    fs::write(lab.path("empty.db"), "").expect("written");
    assert_eq!(judge(&lab, "empty.db").await.verdict, older(None, &second));
    drop(app);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_in_the_place_of_another_has_no_note() {
    let (lab, app, [first, second]) = two_snapshots().await;
    drop(app);
    lab.restored_to(&first, &lab.path("old.db")).await.expect("restored");
    fs::rename(lab.path("old.db"), lab.path("app.db")).expect("replaced");
    assert_eq!(judge(&lab, "app.db").await.verdict, older(Some(&first), &second));
}

/// A database that is known to belong to one history is refused by another that has snapshots.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_database_under_the_same_name_is_refused() {
    let (lab, _app, _) = two_snapshots().await;
    let mut other = Lab::new();
    let foreign = other.database("app.db", FILL);
    other.stored(&other.path("app.db")).await;
    drop(foreign);
    // The same machine and scratch directory, and the other's storage.
    other.settings.scratch = lab.settings.scratch.clone();
    let descent = Descent::of(&"app".parse().expect("a name"), &lab.path("app.db"), &lab.settings.scratch);
    let error = descent.judge(&other.catalog(), &descent.traces()).await.expect_err("foreign");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("foreign database"), "{error}");
    // An empty storage is no other database's: there it begins.
    let empty = Lab::new();
    let judged = descent.judge(&empty.catalog(), &descent.traces()).await.expect("judged");
    assert_eq!(judged.verdict, Verdict::Descends);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_after_publishing_is_not_taken_for_somebody_elses_work() {
    let (lab, app, _) = two_snapshots().await;
    let note = lab.settings.scratch.join("app.lineage.json");
    app.execute_batch("INSERT INTO t VALUES ('third')").expect("writes");
    let before = fs::read_to_string(&note).expect("a note");
    let third = lab.stored(&lab.path("app.db")).await;
    // As the note was when the head had moved: the snapshot was about to be published.
    let pending = before.replace("\"pending\": null", &format!("\"pending\": \"{}\"", third.id));
    assert_ne!(pending, before);
    fs::write(&note, pending).expect("written");
    app.execute_batch("INSERT INTO t VALUES ('fourth')").expect("writes");
    assert_eq!(judge(&lab, "app.db").await.verdict, Verdict::Descends);
    // And if it was not published, what stands there is somebody else's.
    fs::write(&note, before).expect("written");
    assert!(matches!(judge(&lab, "app.db").await.verdict, Verdict::Older(_)));
}

async fn back_up_as(lab: &Lab, name: &str, standing: &Standing) -> Manifest {
    let (cancel, clock) = (CancellationToken::new(), Clock::system());
    let (catalog, quiet) = (lab.catalog(), std::sync::Arc::new(|_| {}));
    let outcome = backup::run(
        &catalog,
        standing,
        backup::Work {
            database: catalog.database(),
            path: &lab.path(name),
            settings: &lab.settings,
            clock: &clock,
            cancel: &cancel,
            on_progress: quiet,
            follower: None,
        },
    )
    .await;
    match outcome.expect("stored") {
        Outcome::Stored(manifest) => *manifest,
        Outcome::Unchanged(manifest) => panic!("unchanged since {}", manifest.id),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adopted_branch_is_the_newest_byte_for_byte_and_what_was_stored_stays() {
    let (lab, _app, [first, second]) = two_snapshots().await;
    lab.restored_to(&first, &lab.path("old.db")).await.expect("restored");
    let edit = Connection::open(lab.path("old.db")).expect("opens");
    edit.execute_batch("INSERT INTO t VALUES ('elsewhere')").expect("writes");
    let Verdict::Older(fork) = older(Some(&first), &second) else { unreachable!("made so") };
    let epoch = lab.catalog().claim_branch("test", Clock::system().now()).await.expect("claimed");
    let branch = back_up_as(&lab, "old.db", &Standing { epoch, fork: Some(fork) }).await;
    assert_eq!(
        (branch.flags.as_slice(), branch.parent.as_ref()),
        ([Flag::Branch].as_slice(), Some(&first.id))
    );
    // The note says that it is one, also while the branch is younger than the newest.
    assert_eq!(judge(&lab, "old.db").await.verdict, older(Some(&branch), &second));

    let plan = adopt::plan(&lab.catalog(), None).await.expect("one branch");
    assert_eq!((&plan.snapshot, plan.newest.as_ref()), (&branch.id, Some(&second.id)));
    let adopted = adopt::apply(&lab.catalog(), &plan, &Clock::system()).await.expect("adopted");
    assert_eq!(lab.catalog().newest().await.expect("read"), Some(adopted.clone()));
    assert_eq!(
        (&adopted.plain, &adopted.stored, adopted.taken_at),
        (&branch.plain, &branch.stored, branch.taken_at)
    );
    assert!(adopted.flags.is_empty() && adopted.id > second.id && adopted.parent == Some(branch.id.clone()));
    lab.restored_to(&adopted, &lab.path("copy.db")).await.expect("it restores");
    assert_eq!(lab.catalog().manifest(&branch.id).await.expect("it stands"), branch);
    // Who was on the branch is on the line now, and the other way round.
    assert_eq!(judge(&lab, "old.db").await.verdict, Verdict::Descends);
    assert_eq!(judge(&lab, "app.db").await.verdict, older(Some(&second), &adopted));
    let again = adopt::plan(&lab.catalog(), Some(branch.id)).await.expect_err("done");
    assert_eq!(again.kind(), ErrorKind::Conflict);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_adopted_is_told_and_leaves_the_newest() {
    let (lab, _app, [first, second]) = two_snapshots().await;
    let plan = async |id| adopt::plan(&lab.catalog(), id).await;
    assert_eq!(plan(None).await.expect_err("no branch").kind(), ErrorKind::NotFound);
    assert_eq!(plan(Some(first.id.clone())).await.expect_err("no branch's").kind(), ErrorKind::Config);

    lab.restored_to(&first, &lab.path("old.db")).await.expect("restored");
    let fork = || Some(Fork { from: None, newest: second.id.clone() });
    let one = back_up_as(&lab, "old.db", &Standing { epoch: 8, fork: fork() }).await;
    let _two = back_up_as(&lab, "old.db", &Standing { epoch: 9, fork: fork() }).await;
    let several = plan(None).await.expect_err("two branches");
    assert_eq!(several.kind(), ErrorKind::Config);
    assert!(several.to_string().contains(one.id.as_str()), "{several}");

    // Damaged data: nothing becomes the newest, and the error says what else happened.
    let plan = plan(Some(one.id.clone())).await.expect("planned");
    let data = lab.path("backups").join(one.data_key().path());
    let mut bytes = fs::read(&data).expect("readable");
    bytes[20] ^= 1;
    fs::write(&data, &bytes).expect("written");
    let error = adopt::apply(&lab.catalog(), &plan, &Clock::system()).await.expect_err("damaged");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("fenced off"), "{error}");
    assert_eq!(lab.catalog().newest().await.expect("read"), Some(second.clone()));
    // Data that is missing is seen before anybody is fenced off.
    fs::remove_file(&data).expect("removed");
    let before = lab.catalog().head().await.expect("read").map(|(head, _)| head);
    let error = adopt::apply(&lab.catalog(), &plan, &Clock::system()).await.expect_err("missing");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(lab.catalog().head().await.expect("read").map(|(head, _)| head), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_in_a_file_stays_one_and_in_the_live_database_of_the_newest_is_its_next_change() {
    let (lab, _app, [first, second]) = two_snapshots().await;
    let fork = Some(Fork { from: Some(first.id.clone()), newest: second.id.clone() });
    lab.restored_to(&first, &lab.path("old.db")).await.expect("restored");
    let edit = Connection::open(lab.path("old.db")).expect("opens");
    edit.execute_batch("INSERT INTO t VALUES ('elsewhere')").expect("writes");
    let branch = back_up_as(&lab, "old.db", &Standing { epoch: 8, fork }).await;
    let descent = Descent::of(&"app".parse().expect("a name"), &lab.path("app.db"), &lab.settings.scratch);
    descent.restored(&branch, Some(&second.id));
    assert_eq!(judge(&lab, "app.db").await.verdict, Verdict::Descends, "its content is still the newest's");
    let edit = Connection::open(lab.path("app.db")).expect("opens");
    edit.execute_batch("INSERT INTO t VALUES ('and on')").expect("writes");
    assert_eq!(judge(&lab, "app.db").await.verdict, older(Some(&branch), &second));
    descent.overwritten(&branch, Some(&second.id));
    assert_eq!(judge(&lab, "app.db").await.verdict, Verdict::Descends);
    descent.restored(&first, Some(&second.id));
    assert_eq!(judge(&lab, "app.db").await.verdict, Verdict::Descends, "back in time on purpose");
}
