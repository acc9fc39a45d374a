//! The spool's folder: files that are none, folders of another user, and a storage that takes it over.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;
use std::time::Duration;

use lifeboat::error::{Error, ErrorKind};
use lifeboat::lineage::Standing;
use lifeboat::spool::{Published, Settings, Spool, is_outage};
use rustix::fs::{CWD, FileType, FlockOperation, Mode, flock, mknodat};
use serde_json::json;

use crate::support::harbour::{Harbour, LIMITS, STORAGE, ids};
use crate::support::program::Program;
use crate::support::s3_server::{BUCKET, Fault, KEY_ID, SECRET, Server};

/// Debian's user for nobody in particular.
const NOBODY: u32 = 65_534;

const OTHER: &str = "s3://other/";

/// The same folder for another storage.
fn of_other(harbour: &Harbour) -> Spool {
    let settings = Settings { folder: harbour.folder(), storage: OTHER.to_owned(), limits: LIMITS };
    let name = "app".parse().expect("a valid name");
    let metrics = lifeboat::metrics::Metrics::new().database(&name);
    Spool::new(settings, name, harbour.clock.clone(), metrics)
}

fn storage_of(harbour: &Harbour) -> String {
    let record = fs::read_to_string(harbour.folder().join("spool.json")).expect("there");
    let record: serde_json::Value = serde_json::from_str(&record).expect("JSON");
    record["storage"].as_str().expect("text").to_owned()
}

/// Why nothing can be taken; it keeps no backup from storage, and nobody waiting.
async fn refusal(harbour: &Harbour, spool: &Spool) -> Error {
    harbour.write(1_000);
    let taken = harbour.try_take(spool, Published::default(), 1);
    let refused = tokio::time::timeout(Duration::from_secs(60), taken).await.expect("it ends");
    let refused = refused.expect_err("refused");
    assert!(!is_outage(&refused), "{}", refused.chain());
    if let Err(shipped) = harbour.ship(spool, &Standing::head(1)).await {
        assert!(!is_outage(&shipped), "{}", shipped.chain());
    }
    refused
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_file_under_a_name_of_the_spool_is_named_and_keeps_nobody_waiting() {
    for name in ["app/dropped.json", "spool.json", "app/spool.lock"] {
        for kind in ["link", "pipe", "huge"] {
            let harbour = Harbour::new().await;
            let spool = harbour.spool(LIMITS);
            harbour.take(&spool).await;
            let (path, elsewhere) = (harbour.folder().join(name), harbour.lab.path("elsewhere"));
            match path.exists() {
                true => fs::rename(&path, &elsewhere).expect("moved"),
                false => fs::write(&elsewhere, r#"{"format": 1, "dropped": []}"#).expect("written"),
            }
            let before = fs::read(&elsewhere).expect("there");
            match kind {
                "pipe" => mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).expect("made"),
                "link" => symlink(&elsewhere, &path).expect("made"),
                _ => fs::write(&path, "x".repeat(100_000)).expect("written"),
            }
            spool.look().await;
            let told = match name {
                "app/dropped.json" => spool.state().reasons().join(" "),
                // Nobody reads what is in a lock.
                "app/spool.lock" if kind == "huge" => continue,
                _ => refusal(&harbour, &spool).await.chain(),
            };
            let path = path.display().to_string();
            assert!(told.contains("damaged or not ours") && told.contains(&path), "{kind}: {told}");
            assert_eq!(fs::read(&elsewhere).expect("there"), before, "{kind} {name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_uses_no_folder_of_another_user_and_follows_no_link_of_one() {
    for name in ["", "app", "app/snapshots", "app/manifests", "app/proofs"] {
        for is_link in [true, false] {
            let harbour = Harbour::new().await;
            let spool = harbour.spool(LIMITS);
            harbour.take(&spool).await;
            let (path, elsewhere) = (harbour.folder().join(name), harbour.lab.path("elsewhere"));
            let path = path.components().as_path();
            if is_link {
                fs::create_dir_all(path).expect("made");
                fs::rename(path, &elsewhere).expect("moved");
                symlink(&elsewhere, path).expect("planted");
            } else {
                fs::create_dir_all(path).expect("made");
            }
            lchown(path, Some(NOBODY), Some(NOBODY)).expect("given");
            let before = harbour.files();
            let refused = refusal(&harbour, &spool).await;
            assert_eq!(refused.kind(), ErrorKind::Target, "{name}: {}", refused.chain());
            spool.look().await;
            let health = spool.state().reasons().join(" ");
            for told in [refused.chain(), health] {
                let who = if is_link { "symbolic link of another user" } else { "is another user's" };
                let parts = [who, &format!("`{}`", path.display()), "65534"];
                assert!(parts.iter().all(|part| told.contains(part)), "{parts:?}: {told}");
            }
            assert_eq!(harbour.files(), before);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_listed_is_no_outage() {
    let harbour = Harbour::new().await;
    let spool = harbour.spool(LIMITS);
    harbour.take(&spool).await;
    let folder = harbour.folder().join("app/proofs");
    fs::write(&folder, "no folder").expect("written");
    let refused = refusal(&harbour, &spool).await;
    assert_eq!(refused.kind(), ErrorKind::Target, "{}", refused.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_spool_is_for_its_owner_only() {
    let harbour = Harbour::new().await;
    harbour.take(&harbour.spool(LIMITS)).await;
    let mut paths = vec![harbour.folder()];
    let mut seen = 0;
    while let Some(path) = paths.pop() {
        seen += 1;
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}", path.display());
        if path.is_dir() {
            paths.extend(fs::read_dir(&path).expect("a folder").map(|entry| entry.expect("one").path()));
        }
    }
    assert!(seen >= 8, "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_in_which_nothing_waits_goes_to_the_present_storage() {
    let harbour = Harbour::new().await;
    let (ours, others) = (harbour.spool(LIMITS), of_other(&harbour));
    let first = harbour.take(&ours).await;
    // While something waits, nothing is touched.
    let refused = refusal(&harbour, &others).await;
    assert!(refused.chain().contains("kept for another storage"), "{}", refused.chain());
    assert_eq!(storage_of(&harbour), STORAGE);
    assert_eq!(ids(&harbour.ship_all(&ours).await), [&first.id]);

    // Looking changes nothing, and finds nothing wrong.
    fs::create_dir_all(harbour.folder().join("app/manifests")).expect("made");
    fs::write(harbour.folder().join("app/manifests/.lifeboat-tmp-left"), "half").expect("written");
    let others = of_other(&harbour);
    others.look().await;
    assert_eq!((others.state().reasons(), storage_of(&harbour)), (vec![], STORAGE.to_owned()));
    let second = harbour.take(&others).await;
    assert_eq!(ids(&others.contents().await.expect("readable").waiting), [&second.id]);
    assert_eq!(storage_of(&harbour), OTHER);
    let refused = refusal(&harbour, &ours).await;
    assert!(refused.chain().contains(OTHER), "{}", refused.chain());
    assert_eq!(ids(&others.contents().await.expect("readable").waiting), [&second.id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_of_another_database_keeps_the_spool_with_its_storage() {
    let harbour = Harbour::new().await;
    harbour.take(&harbour.spool(LIMITS)).await;
    fs::rename(harbour.folder().join("app"), harbour.folder().join("second")).expect("moved");
    let refused = refusal(&harbour, &of_other(&harbour)).await;
    assert!(refused.chain().contains("kept for another storage"), "{}", refused.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_takes_over_what_another_process_works_on() {
    let harbour = Harbour::new().await;
    let first = harbour.take(&harbour.spool(LIMITS)).await;
    let manifest = harbour.folder().join(first.key().path());
    let aside = harbour.lab.path("aside");
    fs::rename(&manifest, &aside).expect("as if it were not written yet");
    let record = fs::File::open(harbour.folder().join("spool.json")).expect("there");
    flock(&record, FlockOperation::LockShared).expect("locked");
    let others = of_other(&harbour);
    let works = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        fs::rename(&aside, &manifest).expect("written");
        drop(record);
    };
    let (refused, ()) = tokio::join!(refusal(&harbour, &others), works);
    assert!(refused.chain().contains("kept for another storage"), "{}", refused.chain());
    assert_eq!(storage_of(&harbour), STORAGE);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_the_spool_looks_again_whose_it_is() {
    let harbour = Harbour::new().await;
    let spool = harbour.spool(LIMITS);
    harbour.take(&spool).await;
    harbour.ship_all(&spool).await;
    let lock = fs::File::open(harbour.folder().join("app/spool.lock")).expect("there");
    flock(&lock, FlockOperation::LockExclusive).expect("locked");
    let takes_over = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let record = harbour.folder().join("spool.json");
        let new = harbour.folder().join(".lifeboat-tmp-new");
        fs::write(&new, json!({"format": 1, "storage": OTHER}).to_string()).expect("written");
        fs::rename(new, record).expect("replaced");
        drop(lock);
    };
    let (refused, ()) = tokio::join!(refusal(&harbour, &spool), takes_over);
    assert_eq!(refused.kind(), ErrorKind::Busy, "{}", refused.chain());
    assert_eq!(of_other(&harbour).contents().await.expect("readable").waiting, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_is_refused_keeps_no_backup_from_storage() {
    let server = Server::start().await;
    let program = Program::new()
        .with("BACKUP_S3_BUCKET", BUCKET)
        .with("AWS_REGION", "eu-north-1")
        .with("AWS_ENDPOINT_URL_S3", &server.url)
        .with("AWS_ACCESS_KEY_ID", KEY_ID)
        .with("AWS_SECRET_ACCESS_KEY", SECRET);
    drop(program.app("CREATE TABLE t(x)"));
    let spool = program.path("backups/.lifeboat-spool");
    fs::create_dir_all(&spool).expect("made");
    lchown(&spool, Some(NOBODY), Some(NOBODY)).expect("given");
    let named = "is another user's, so root does not use it";

    let ended = program.run(&["run", "--", "true"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains(named), "{ended:?}");
    assert_eq!(program.snapshots().len(), 1);

    server.fault_at(0, usize::MAX, Fault::Status(403, "AccessDenied"));
    program.app("INSERT INTO t VALUES (1)");
    let ended = program.run(&["run", "--", "true"]);
    assert!(
        ended.stderr.contains(&format!("no last backup of app: a folder of the spool {named}")),
        "{ended:?}"
    );
    assert!(is_empty(&spool) && fs::metadata(&spool).expect("there").uid() == NOBODY);
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).expect("a folder").next().is_none()
}
