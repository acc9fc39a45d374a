//! One suite that every kind of storage passes, alone and behind its decorators.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use futures::stream;
use jiff::{SignedDuration, Timestamp};
use lifeboat::error::{Error, ErrorKind, Result};
use lifeboat::metrics::StorageMetrics;
use lifeboat::snapshot::{DatabaseName, Key, Kind};
use lifeboat::storage::{self, Directory, Faulty, Guarantees, Memory, Metered, Storage, Version};
use prometheus_client::registry::Registry;
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::support::s3_server::Server;

/// Runs the case once against each kind, each time an empty one.
async fn on_every_kind<F, Fut>(case: F)
where
    F: Fn(Arc<dyn Storage>) -> Fut,
    Fut: Future<Output = ()>,
{
    let folder = tempfile::tempdir().expect("a temporary directory");
    let server = Server::start().await;
    let kinds: [Arc<dyn Storage>; 5] = [
        Arc::new(Memory::default()),
        Arc::new(Directory::open(folder.path().join("backups")).expect("writable")),
        Arc::new(server.storage().await),
        Arc::new(Metered::new(Arc::new(Memory::default()), StorageMetrics::default())),
        Arc::new(Faulty::new(Arc::new(Memory::default()))),
    ];
    for storage in kinds {
        // Shown only when the case fails: which of them it was.
        println!("{}", storage.location());
        case(storage).await;
    }
}

pub fn key(name: &str) -> Key {
    Key::Probe(name.to_owned())
}

pub fn kind_of<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.expect_err("refused").kind()
}

/// A body that a mistake in order, length or place would change.
pub fn noise(bytes: usize, seed: u8) -> Bytes {
    let mut state = u64::from(seed) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

pub const MIB: usize = 1 << 20;

#[tokio::test]
async fn a_probe_finds_that_everything_is_honoured_and_leaves_nothing() {
    on_every_kind(|storage| async move {
        assert_eq!(storage::probe(&*storage).await.expect("probed"), Guarantees::FULL);
        assert_eq!(storage.list("").await.expect("listed"), []);
    })
    .await;
}

#[tokio::test]
async fn what_is_created_is_read_and_nobody_creates_it_again() {
    on_every_kind(|storage| async move {
        let key = key("once");
        storage.create(&key, storage::whole("first")).await.expect("created");
        assert_eq!(kind_of(storage.create(&key, storage::whole("second")).await), ErrorKind::Conflict);
        assert_eq!(storage.read(&key, 100).await.expect("there").bytes, "first");
    })
    .await;
}

#[tokio::test]
async fn objects_of_no_and_of_one_byte_are_objects() {
    on_every_kind(|storage| async move {
        storage.create(&key("no-parts"), stream::empty().boxed()).await.expect("created");
        storage.create(&key("empty-part"), storage::whole("")).await.expect("created");
        storage.create(&key("one"), storage::whole("x")).await.expect("created");
        for (name, content) in [("no-parts", ""), ("empty-part", ""), ("one", "x")] {
            assert_eq!(storage.read(&key(name), 1).await.expect("there").bytes, content, "{name}");
            let entry = storage.head(&key(name)).await.expect("asked").expect("there");
            assert_eq!(entry.bytes, content.len() as u64, "{name}");
        }
        assert_eq!(
            kind_of(storage.create(&key("no-parts"), stream::empty().boxed()).await),
            ErrorKind::Conflict
        );
    })
    .await;
}

#[tokio::test]
async fn an_object_of_several_parts_is_the_parts_in_order() {
    on_every_kind(|storage| async move {
        let parts = [noise(5 * MIB, 1), noise(5 * MIB, 2), noise(MIB + 1, 3)];
        let whole = Bytes::from(parts.concat());
        let made = stream::iter(parts.clone().map(Ok)).boxed();
        storage.create(&key("large"), made).await.expect("created");
        assert!(storage.read(&key("large"), 20 * MIB).await.expect("there").bytes == whole);
        let across = 5 * MIB as u64 - 3..5 * MIB as u64 + 3;
        let middle = storage.read_range(&key("large"), across.clone()).await.expect("there");
        assert_eq!(middle, whole.slice(across.start as usize..across.end as usize));

        let again = stream::iter(parts.map(Ok)).boxed();
        assert_eq!(kind_of(storage.create(&key("large"), again).await), ErrorKind::Conflict);
    })
    .await;
}

#[tokio::test]
async fn when_the_maker_fails_its_error_comes_back_and_nothing_stays() {
    on_every_kind(|storage| async move {
        let broken = |parts: usize| {
            let good = (0..parts).map(|part| Ok(noise(5 * MIB, part as u8)));
            let bad = Err(Error::new(ErrorKind::Busy, "the maker failed"));
            stream::iter(good.chain([bad])).boxed()
        };
        for parts in [0, 1, 2, 3] {
            let error = storage.create(&key("broken"), broken(parts)).await.expect_err("failed");
            assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Busy, "the maker failed"));
            assert_eq!(storage.head(&key("broken")).await.expect("asked"), None, "{parts}");
        }
        assert_eq!(storage.list("").await.expect("listed"), []);
        storage.create(&key("broken"), storage::whole("mended")).await.expect("the key is free");
    })
    .await;
}

#[tokio::test]
async fn a_replacement_needs_the_state_it_expects() {
    on_every_kind(|storage| async move {
        let key = key("head");
        let nonsense = Version("\"00000000000000000000000000000000\"".to_owned());
        assert_eq!(kind_of(storage.replace(&key, Some(&nonsense), "x".into()).await), ErrorKind::Conflict);
        assert_eq!(storage.head(&key).await.expect("asked"), None);

        let one = storage.replace(&key, None, "one".into()).await.expect("there was none");
        assert_eq!(storage.read(&key, 10).await.expect("there").version, one);
        assert_eq!(kind_of(storage.replace(&key, None, "x".into()).await), ErrorKind::Conflict);
        assert_eq!(kind_of(storage.replace(&key, Some(&nonsense), "x".into()).await), ErrorKind::Conflict);

        let two = storage.replace(&key, Some(&one), "two".into()).await.expect("it was so");
        assert_ne!(one, two);
        assert_eq!(kind_of(storage.replace(&key, Some(&one), "x".into()).await), ErrorKind::Conflict);
        let read = storage.read(&key, 10).await.expect("there");
        assert_eq!((read.bytes, read.version), ("two".into(), two));
    })
    .await;
}

#[tokio::test]
async fn of_many_that_create_at_once_one_wins_and_of_many_that_replace_too() {
    on_every_kind(|storage| async move {
        let create = |number: usize| {
            let storage = storage.clone();
            async move { storage.create(&key("race"), storage::whole(number.to_string())).await }
        };
        let outcomes = join_all((0..8).map(create)).await;
        let winners: Vec<usize> = (0..8).filter(|number| outcomes[*number].is_ok()).collect();
        assert_eq!(winners.len(), 1, "{outcomes:?}");
        assert!(
            outcomes.into_iter().filter_map(Result::err).all(|error| error.kind() == ErrorKind::Conflict)
        );
        let object = storage.read(&key("race"), 10).await.expect("there");
        assert_eq!(object.bytes, winners[0].to_string());

        let replace = |number: usize| {
            let (storage, expected) = (storage.clone(), object.version.clone());
            async move { storage.replace(&key("race"), Some(&expected), format!("r{number}").into()).await }
        };
        let outcomes = join_all((0..8).map(replace)).await;
        let winners: Vec<usize> = (0..8).filter(|number| outcomes[*number].is_ok()).collect();
        assert_eq!(winners.len(), 1, "{outcomes:?}");
        assert_eq!(storage.read(&key("race"), 10).await.expect("there").bytes, format!("r{}", winners[0]));
    })
    .await;
}

#[tokio::test]
async fn reading_has_a_limit() {
    on_every_kind(|storage| async move {
        storage.create(&key("ten"), storage::whole("0123456789")).await.expect("created");
        assert_eq!(kind_of(storage.read(&key("ten"), 9).await), ErrorKind::Limit);
        assert_eq!(storage.read(&key("ten"), 10).await.expect("fits").bytes, "0123456789");
    })
    .await;
}

#[tokio::test]
async fn a_range_is_read_exactly_or_not_at_all() {
    on_every_kind(|storage| async move {
        storage.create(&key("ten"), storage::whole("0123456789")).await.expect("created");
        storage.create(&key("none"), storage::whole("")).await.expect("created");
        let read = |name: &str, range| {
            let (storage, key) = (storage.clone(), key(name));
            async move { storage.read_range(&key, range).await }
        };
        for (range, content) in [(0..10, "0123456789"), (3..5, "34"), (9..10, "9"), (4..4, ""), (10..10, "")]
        {
            assert_eq!(read("ten", range.clone()).await.expect("there"), content, "{range:?}");
        }
        // An end from a damaged manifest may be any number.
        for range in [0..11, 9..12, 10..11, 40..50, 11..11, 5..u64::MAX] {
            assert_eq!(kind_of(read("ten", range.clone()).await), ErrorKind::Corrupt, "{range:?}");
        }
        assert_eq!(read("none", 0..0).await.expect("there"), "");
        assert_eq!(kind_of(read("none", 0..1).await), ErrorKind::Corrupt);
        assert_eq!(kind_of(read("absent", 0..1).await), ErrorKind::NotFound);
        assert_eq!(kind_of(read("absent", 0..0).await), ErrorKind::NotFound);
    })
    .await;
}

#[tokio::test]
async fn what_is_absent_is_said_to_be_absent() {
    on_every_kind(|storage| async move {
        assert_eq!(storage.head(&key("absent")).await.expect("asked"), None);
        assert_eq!(kind_of(storage.read(&key("absent"), 10).await), ErrorKind::NotFound);
        assert_eq!(storage.list("nobody/").await.expect("listed"), []);
    })
    .await;
}

#[tokio::test]
async fn head_and_list_tell_path_size_and_time() {
    on_every_kind(|storage| async move {
        // Storage clocks count in seconds.
        let earliest = Timestamp::now() - SignedDuration::from_secs(2);
        storage.create(&key("b"), storage::whole("four")).await.expect("created");
        let entry = storage.head(&key("b")).await.expect("asked").expect("there");
        assert_eq!((entry.path.as_str(), entry.bytes), (".probe/b", 4));
        assert!(entry.modified_at >= earliest && entry.modified_at <= Timestamp::now(), "{entry:?}");
        let listed = storage.list(".probe/").await.expect("listed");
        assert_eq!((listed[0].path.as_str(), listed[0].bytes), (".probe/b", 4));
        assert!(listed[0].modified_at >= earliest, "{listed:?}");
    })
    .await;
}

#[tokio::test]
async fn a_listing_is_complete_ordered_and_keeps_to_its_prefix() {
    on_every_kind(|storage| async move {
        let name = |text: &str| text.parse::<DatabaseName>().expect("valid");
        let (app, other) = (name("app"), name("app2"));
        let numbers = 0..1_051;
        // Written out of order.
        let writes = stream::iter(numbers.clone().map(|number| (number * 577) % 1_051)).map(|number| {
            let key = Key::Epoch(app.clone(), number);
            let storage = storage.clone();
            async move { storage.create(&key, storage::whole("x")).await.expect("created") }
        });
        writes.buffer_unordered(8).collect::<Vec<()>>().await;
        storage.create(&Key::Epoch(other, 1), storage::whole("x")).await.expect("created");
        storage.create(&Key::Head(app.clone()), storage::whole("x")).await.expect("created");

        let listed = storage.list(&Kind::Epochs.prefix(&app)).await.expect("listed");
        let paths: Vec<String> = listed.into_iter().map(|entry| entry.path).collect();
        let expected: Vec<String> = numbers.map(|number| Key::Epoch(app.clone(), number).path()).collect();
        assert_eq!(paths, expected);

        // A prefix need not end where a name does.
        assert_eq!(storage.list("app").await.expect("listed").len(), 1_053);
        assert_eq!(storage.list("app/epochs/00000010").await.expect("listed").len(), 51);
        let all = storage.list("").await.expect("listed");
        assert_eq!(all.iter().map(|entry| &entry.path).collect::<HashSet<_>>().len(), 1_053);
        assert!(all.is_sorted_by(|one, other| one.path < other.path));
    })
    .await;
}

#[tokio::test]
async fn deleting_twice_is_as_good_as_once() {
    on_every_kind(|storage| async move {
        storage.delete(&key("gone")).await.expect("nothing to do");
        storage.create(&key("gone"), storage::whole("x")).await.expect("created");
        storage.delete(&key("gone")).await.expect("deleted");
        storage.delete(&key("gone")).await.expect("nothing to do");
        assert_eq!(storage.head(&key("gone")).await.expect("asked"), None);
        storage.create(&key("gone"), storage::whole("again")).await.expect("the key is free");
        assert_eq!(storage.read(&key("gone"), 10).await.expect("there").bytes, "again");
    })
    .await;
}

#[tokio::test]
async fn sweeping_removes_nothing_that_is_finished() {
    on_every_kind(|storage| async move {
        storage.create(&key("kept"), storage::whole("x")).await.expect("created");
        assert_eq!(storage.sweep_unfinished(Timestamp::now()).await.expect("swept"), 0);
        assert_eq!(storage.list("").await.expect("listed").len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_meter_counts_what_was_asked_and_what_was_moved() {
    let mut registry = Registry::default();
    let metrics = StorageMetrics::register(&mut registry);
    let storage = Metered::new(Arc::new(Memory::default()), metrics);
    storage.create(&key("x"), storage::whole("12345")).await.expect("created");
    assert_eq!(kind_of(storage.create(&key("x"), storage::whole("12345")).await), ErrorKind::Conflict);
    storage.read(&key("x"), 10).await.expect("read");
    storage.read_range(&key("x"), 1..3).await.expect("read");
    assert_eq!(storage.clone().requests(), 4);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("a string takes everything");
    for line in [
        r#"storage_requests_total{operation="create",outcome="ok"} 1"#,
        r#"storage_requests_total{operation="create",outcome="conflict"} 1"#,
        r#"storage_transferred_bytes_total{direction="written"} 10"#,
        r#"storage_transferred_bytes_total{direction="read"} 7"#,
        r#"storage_request_seconds_count{operation="create"} 2"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
}

#[tokio::test]
async fn what_a_killed_process_left_in_a_directory_is_no_object_and_is_swept() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let storage = Directory::open(folder.path()).expect("writable");
    let begun = stream::iter([Ok(noise(9, 1))]).chain(stream::pending()).boxed();
    let writing = key("x");
    let mut writing = std::pin::pin!(storage.create(&writing, begun));
    let waited = tokio::time::timeout(Duration::from_millis(200), &mut writing).await;
    waited.expect_err("it never ends");
    // While it is being written, it is there for nobody.
    assert_eq!(storage.list("").await.expect("listed"), []);
    assert_eq!(storage.head(&key("x")).await.expect("asked"), None);
    let hour = SignedDuration::from_hours(1);
    assert_eq!(storage.sweep_unfinished(Timestamp::now() - hour).await.expect("swept"), 0);
    assert_eq!(storage.sweep_unfinished(Timestamp::now() + hour).await.expect("swept"), 1);
}

#[tokio::test]
async fn what_is_no_file_under_a_name_in_a_directory_is_refused_and_keeps_nobody_waiting() {
    let key = |name: &str| Key::parse(name).expect("a key");
    for (name, kind) in [("app/head.json", "pipe"), ("app/head.json", "link"), (".lifeboat-lock", "pipe")] {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let directory = Directory::open(folder.path()).expect("writable");
        let (head, identity) = (key("app/head.json"), key("app/identity.json"));
        directory.create(&identity, storage::whole("first")).await.expect("created");
        let path = folder.path().join(name);
        match kind {
            "pipe" => mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).expect("made"),
            _ => std::os::unix::fs::symlink(folder.path().join("app/identity.json"), &path).expect("made"),
        }
        let tried = async {
            let read = directory.read(&head, 64).await.map(drop);
            let part = directory.read_range(&head, 0..1).await.map(drop);
            let replaced = directory.replace(&head, None, Bytes::from_static(b"new")).await.map(drop);
            [read, part, replaced]
        };
        let tried = tokio::time::timeout(Duration::from_secs(60), tried).await.expect("it ends");
        let kinds = tried.map(|ended| ended.expect_err("refused").kind());
        let read = if name == ".lifeboat-lock" { ErrorKind::NotFound } else { ErrorKind::Corrupt };
        assert_eq!(kinds, [read, read, ErrorKind::Corrupt], "{kind} {name}");
        assert_eq!(directory.head(&head).await.expect("asked"), None);
        assert_eq!(directory.read(&identity, 64).await.expect("there").bytes, "first");
    }
}
