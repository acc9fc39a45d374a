//! Damaged storage: whatever is flipped, cut, swapped or forged, a restore is refused or gives the
//! right bytes, and what stands at its target stays as it was.

use std::fs;
use std::sync::Arc;

use bytes::Bytes;
use lifeboat::error::{Error, ErrorKind};
use lifeboat::snapshot::{Compressor, Content, Digest, Manifest, Record, SeekTable};
use lifeboat::storage::Memory;
use lifeboat::verify;

use crate::support::lab::Lab;

/// A stored snapshot in memory, the bytes it must restore to, and an old database at the target.
struct Stored {
    lab: Lab,
    memory: Memory,
    manifest: Manifest,
    plain: Vec<u8>,
    /// What stood in the target's folder.
    before: Vec<(String, Vec<u8>)>,
}

impl Stored {
    async fn new() -> Stored {
        let memory = Memory::default();
        let lab = Lab::over(tempfile::tempdir().expect("a directory"), Arc::new(memory.clone()));
        let sql = "PRAGMA page_size=512; CREATE TABLE t(x); INSERT INTO t VALUES ('the right database')";
        drop(lab.database("app.db", sql));
        let manifest = lab.stored(&lab.path("app.db")).await;
        let plain = fs::read(lab.path("app.db")).expect("readable");
        fs::create_dir(lab.path("target")).expect("a folder");
        fs::write(lab.path("target/app.db"), "what stands there").expect("written");
        let mut stored = Stored { lab, memory, manifest, plain, before: Vec::new() };
        stored.before = stored.target();
        stored
    }

    fn object(&self, path: &str) -> Bytes {
        let found = self.memory.objects().into_iter().find(|(name, _)| name == path);
        found.expect("the object is there").1
    }

    fn target(&self) -> Vec<(String, Vec<u8>)> {
        let entries = fs::read_dir(self.lab.path("target")).expect("the folder").map(|entry| {
            let path = entry.expect("an entry").path();
            (path.display().to_string(), fs::read(&path).expect("readable"))
        });
        let mut entries: Vec<_> = entries.collect();
        entries.sort();
        entries
    }

    /// Restores the snapshot from storage as it is now. `Ok` is the right database, and only that;
    /// in any case the target's folder is as it was.
    async fn restore(&self, what: &str) -> Result<(), Error> {
        let output = self.lab.path("target/new.db");
        let restored = match self.lab.catalog().manifest(&self.manifest.id).await {
            Ok(manifest) => self.lab.restored_to(&manifest, &output).await.map(drop),
            Err(error) => Err(error),
        };
        if restored.is_ok() {
            assert!(fs::read(&output).expect("restored") == self.plain, "{what}: a wrong database");
            fs::remove_file(&output).expect("removed");
        }
        assert_eq!(self.target(), self.before, "{what}: the target's folder changed");
        restored
    }

    /// Restores, and the answer must be that something is damaged.
    async fn refused(&self, what: &str) -> Error {
        let error = self.restore(what).await.expect_err(what);
        assert!(matches!(error.kind(), ErrorKind::Corrupt), "{what}: {error:?}");
        error
    }

    fn data_path(&self) -> String {
        self.manifest.data_key().path()
    }

    fn manifest_path(&self) -> String {
        self.manifest.key().path()
    }
}

fn flipped(bytes: &[u8], at: usize, bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1 << bit;
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_any_byte_of_the_data_is_noticed() {
    let stored = Stored::new().await;
    let good = stored.object(&stored.data_path());
    assert!((100..2000).contains(&good.len()), "small enough to flip every byte: {}", good.len());
    stored.restore("as stored").await.expect("nothing is damaged yet");
    for at in 0..good.len() {
        stored.memory.overwrite(&stored.data_path(), flipped(&good, at, at % 8));
        stored.refused(&format!("byte {at} of {}", good.len())).await;
    }
    stored.memory.overwrite(&stored.data_path(), good);
    stored.restore("as stored").await.expect("the damage was the reason");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_any_byte_of_the_manifest_never_gives_a_wrong_database() {
    let stored = Stored::new().await;
    let good = stored.object(&stored.manifest_path());
    let mut refused = 0;
    for at in 0..good.len() {
        stored.memory.overwrite(&stored.manifest_path(), flipped(&good, at, at * 5 % 8));
        match stored.restore(&format!("byte {at}")).await {
            // Durations and the like say nothing about the bytes.
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {at}: {error:?}");
                refused += 1;
            }
        }
    }
    assert!(refused > good.len() / 2, "most bytes matter: {refused} of {}", good.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_the_head_never_names_another_snapshot() {
    let stored = Stored::new().await;
    let first = &stored.manifest;
    stored.lab.database("app.db", "INSERT INTO t VALUES ('a second snapshot')");
    let second = stored.lab.stored(&stored.lab.path("app.db")).await;
    assert_eq!(second.parent.as_ref(), Some(&first.id));
    let good = stored.object("app/head.json");
    for bit in 0..good.len() * 8 {
        stored.memory.overwrite("app/head.json", flipped(&good, bit / 8, bit % 8));
        match stored.lab.catalog().newest().await {
            Ok(newest) => assert_eq!(newest.map(|newest| newest.id), Some(second.id.clone()), "bit {bit}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "bit {bit}: {error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_cut_off_is_missed() {
    let stored = Stored::new().await;
    let data = stored.object(&stored.data_path());
    for length in 0..data.len() {
        stored.memory.overwrite(&stored.data_path(), data.slice(..length));
        stored.refused(&format!("data of {length} bytes")).await;
    }
    stored.memory.overwrite(&stored.data_path(), data);
    let manifest = stored.object(&stored.manifest_path());
    // The last byte is a line feed.
    for length in 0..manifest.len() - 1 {
        stored.memory.overwrite(&stored.manifest_path(), manifest.slice(..length));
        stored.refused(&format!("a manifest of {length} bytes")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trailing_bytes_never_get_into_the_database() {
    let stored = Stored::new().await;
    let data = stored.object(&stored.data_path());
    for trailing in [&b"\0"[..], b"more", &data] {
        stored.memory.overwrite(&stored.data_path(), [&data, trailing].concat());
        // Only the bytes the manifest counts are read.
        stored.restore("trailing data").await.expect("the right database");
    }
    let manifest = stored.object(&stored.manifest_path());
    stored.memory.overwrite(&stored.manifest_path(), [&manifest[..], b"{}"].concat());
    stored.refused("a second object behind the manifest").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn swapped_data_and_swapped_manifests_are_refused() {
    let stored = Stored::new().await;
    stored.lab.database("app.db", "UPDATE t SET x = 'the other database'");
    let other = stored.lab.stored(&stored.lab.path("app.db")).await;
    let (one, two) = (stored.object(&stored.data_path()), stored.object(&other.data_key().path()));
    stored.memory.overwrite(&stored.data_path(), two);
    stored.memory.overwrite(&other.data_key().path(), one.clone());
    stored.refused("another snapshot's data").await;
    let error = verify::run(&stored.lab.catalog(), &other, &stored.lab.resources()).await;
    assert_eq!(error.expect_err("the first one's data").error.kind(), ErrorKind::Corrupt);

    stored.memory.overwrite(&stored.data_path(), one);
    stored.restore("as stored").await.expect("in its place again");
    stored.memory.overwrite(&stored.manifest_path(), other.encode());
    let error = stored.refused("another snapshot's manifest").await;
    assert!(error.to_string().contains("another database's or snapshot's key"), "{error}");
    let mut foreign = stored.manifest.clone();
    foreign.database = "other".parse().expect("a name");
    stored.memory.overwrite(&stored.manifest_path(), foreign.encode());
    stored.refused("another database's manifest").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_format_is_told_apart_from_damage_by_name() {
    let stored = Stored::new().await;
    let mut newer: serde_json::Value =
        serde_json::from_slice(&stored.object(&stored.manifest_path())).expect("JSON");
    newer["format"] = 2.into();
    newer["a_field_of_the_future"] = true.into();
    stored.memory.overwrite(&stored.manifest_path(), serde_json::to_vec(&newer).expect("JSON"));
    let error = stored.refused("format 2").await;
    assert!(error.to_string().contains("unknown format version 2"), "{error}");
    assert!(error.to_string().contains("a newer lifeboat wrote it"), "{error}");
    newer["format"] = 1.into();
    stored.memory.overwrite(&stored.manifest_path(), serde_json::to_vec(&newer).expect("JSON"));
    let error = stored.refused("an unknown field").await;
    assert!(!error.to_string().contains("unknown format version"), "{error}");
}

/// Puts an object of these frames in place of the data, with a manifest that says `plain`.
fn forge(stored: &Stored, frames: &[(Vec<u8>, u32)], plain: u64, frame_bytes: u32) {
    let mut table = SeekTable::default();
    frames.iter().for_each(|(frame, plain)| table.push(frame.len() as u32, *plain));
    let frames: Vec<u8> = frames.iter().flat_map(|(frame, _)| frame).copied().collect();
    let object = [frames, table.encode()].concat();
    let manifest = Manifest {
        page_size: 512,
        page_count: u32::try_from(plain / 512).expect("fits"),
        frame_bytes,
        plain: Content { bytes: plain, sha256: stored.manifest.plain.sha256 },
        stored: Content { bytes: object.len() as u64, sha256: Digest::of(&object) },
        ..stored.manifest.clone()
    };
    stored.memory.overwrite(&stored.data_path(), object);
    stored.memory.overwrite(&stored.manifest_path(), manifest.encode());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_inflates_beyond_its_place_is_refused_in_little_memory() {
    let stored = Stored::new().await;
    let mut compressor = Compressor::new(3).expect("a level");
    let bomb = compressor.frame(&vec![0; 256 << 20]).expect("compresses");
    assert!(bomb.len() < 64 << 10);
    let before = peak_memory();
    for frame_bytes in [1 << 10, 1 << 20, 16 << 20] {
        forge(&stored, &[(bomb.clone(), 1024)], 1024, frame_bytes);
        stored.refused("256 MiB where 1 KiB belongs").await;
        let whole = u64::from(frame_bytes);
        forge(&stored, &[(bomb.clone(), frame_bytes)], whole, frame_bytes);
        stored.refused("256 MiB where one frame belongs").await;
    }
    // Many frames that are what the table says, and still not the database of the manifest.
    let frame = compressor.frame(&vec![0; 16 << 20]).expect("compresses");
    forge(&stored, &vec![(frame, 16 << 20); 4], 64 << 20, 16 << 20);
    stored.refused("zeros").await;
    // Frames in work per lane and thread, not the whole of it.
    let grown = peak_memory().saturating_sub(before);
    assert!(grown < 192 << 20, "{} MiB were taken", grown >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_nobody_has_are_refused_before_anything_is_allocated() {
    type Forge = fn(&mut Manifest);
    let stored = Stored::new().await;
    let good = stored.manifest.clone();
    let forged: [(&str, Forge); 7] = [
        ("a frame of 4 GiB", |m| m.frame_bytes = u32::MAX),
        ("a frame of nothing", |m| m.frame_bytes = 0),
        ("frames of a byte, of a file of 16 EiB", |m| (m.frame_bytes, m.plain.bytes) = (1, u64::MAX)),
        ("an object of 16 EiB", |m| m.stored.bytes = u64::MAX),
        ("an object of nothing", |m| m.stored.bytes = 0),
        ("a page of 3 bytes", |m| m.page_size = 3),
        ("a file of 16 EiB", |m| m.plain.bytes = u64::MAX),
    ];
    for (what, forge) in forged {
        let mut manifest = good.clone();
        forge(&mut manifest);
        stored.memory.overwrite(&stored.manifest_path(), manifest.encode());
        stored.refused(what).await;
    }
    // Consistent in itself, and larger than any disk here.
    let manifest = Manifest {
        page_size: 65536,
        page_count: u32::MAX,
        frame_bytes: 16 << 20,
        plain: Content { bytes: 65536 * u64::from(u32::MAX), ..good.plain },
        stored: Content { bytes: 1 << 40, ..good.stored },
        ..good
    };
    stored.memory.overwrite(&stored.manifest_path(), manifest.encode());
    let error = stored.restore("a database of 256 TiB").await.expect_err("there is no room");
    assert_eq!(error.kind(), ErrorKind::Target);
    assert!(peak_memory() < 512 << 20);
}

/// The most memory this process ever had, in bytes; 0 where the system does not say.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_newest_manifest_does_not_end_backups() {
    let stored = Stored::new().await;
    stored.memory.overwrite(&stored.manifest_path(), "{");
    let next = stored.lab.stored(&stored.lab.path("app.db")).await;
    assert!(next.id > stored.manifest.id);
    assert_eq!(next.parent.as_ref(), Some(&stored.manifest.id));
    let newest = stored.lab.catalog().newest().await.expect("readable again").expect("there is one");
    assert_eq!(newest.id, next.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn unchanged_is_said_only_of_what_is_still_there() {
    let stored = Stored::new().await;
    stored.lab.storage.delete(&stored.manifest.data_key()).await.expect("deleted");
    let next = stored.lab.stored(&stored.lab.path("app.db")).await;
    assert_eq!(next.plain, stored.manifest.plain);
    stored.lab.restored_to(&next, &stored.lab.path("target/new.db")).await.expect("restores");
}

/// What is read ahead is more than fits between the reader and a decoder that stopped.
#[tokio::test(flavor = "multi_thread")]
async fn damage_at_the_beginning_of_a_large_snapshot_is_what_is_told() {
    let memory = Memory::default();
    let lab = Lab::over(tempfile::tempdir().expect("a directory"), Arc::new(memory.clone()));
    drop(lab.database("app.db", "CREATE TABLE t(x); INSERT INTO t VALUES (randomblob(40000000))"));
    let manifest = lab.stored(&lab.path("app.db")).await;
    let path = manifest.data_key().path();
    let (_, object) =
        memory.objects().into_iter().find(|(name, _)| *name == path).expect("the object is there");
    memory.overwrite(&path, flipped(&object, 5, 3));
    let error = lab.restored_to(&manifest, &lab.path("new.db")).await.expect_err("it is damaged");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.chain());
}
