//! Disks that are full: of bytes, and of files. Whatever is begun ends well or with an error that says
//! so; the database and what is listed stay whole, nothing is left lying about, and once there is room
//! the same command succeeds.

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lifeboat::error::ErrorKind;
use rustix::process::Signal;

use crate::disk_scene::{Scene, code};
use crate::support::files::{copy_tree, names};
use crate::support::mount::SmallDisk;
use crate::support::program::{ask, free_address};

const PAGE: u64 = 4096;

fn free(folder: &Path) -> (u64, u64) {
    let stat = rustix::fs::statvfs(folder).expect("a file system");
    (stat.f_bavail * stat.f_frsize, stat.f_favail)
}

/// Fills a disk with one file until only so many bytes are free.
fn leave_bytes(folder: &Path, bytes: u64) -> PathBuf {
    let ballast = folder.join("ballast");
    let mut file = File::create(&ballast).expect("room for a file");
    let taken = free(folder).0.checked_sub(bytes).expect("so much is free");
    file.write_all(&vec![0; taken as usize]).expect("so much is free");
    assert_eq!(free(folder).0, bytes);
    ballast
}

/// Fills a disk with files until only so many more can be made.
fn leave_files(folder: &Path, files: u64) -> PathBuf {
    let ballast = folder.join("ballast");
    fs::create_dir(&ballast).expect("room for a folder");
    let mut made = 0;
    while free(folder).1 > files {
        File::create(ballast.join(made.to_string())).expect("so many are free");
        made += 1;
    }
    assert_eq!(free(folder).1, files);
    ballast
}

fn remove(ballast: &Path) {
    if ballast.is_dir() { fs::remove_dir_all(ballast) } else { fs::remove_file(ballast) }.expect("removed");
}

fn disk_at(scene: &Scene, name: &str, size: &str) -> SmallDisk {
    let at = scene.program.path(name);
    fs::create_dir_all(&at).expect("a folder");
    SmallDisk::mount(at, size)
}

/// A backup into a directory with every amount of room, from none to enough.
fn backups_with_room_for(journal_mode: &str, is_first: bool, step: u64, leave: fn(&Path, u64) -> PathBuf) {
    let scene = Scene::new(journal_mode);
    let _disk = disk_at(&scene, "backups", "2m,nr_inodes=100");
    let backups = scene.program.path("backups");
    let mut refused = 0;
    for room in 0.. {
        scene.forget_backups();
        if !is_first {
            scene.back_up();
            scene.change();
        }
        let ballast = leave(&backups, room * step);
        let source = scene.source();
        let ended = scene.program.run(&["backup"]);
        remove(&ballast);
        assert_eq!(scene.source(), source, "the source with room for {room}");
        scene.assert_storage_is_whole();
        assert_eq!(scene.left_over("backups"), Vec::<PathBuf>::new(), "with room for {room}: {ended:?}");
        if ended.code != Some(0) {
            assert!(
                [code(ErrorKind::Limit), code(ErrorKind::Target)].contains(&ended.code),
                "with room for {room}: {ended:?}"
            );
            assert!(ended.stderr.contains("space"), "it says why: {ended:?}");
            refused += 1;
            scene.back_up();
        } else {
            scene.assert_newest_is_now();
            break;
        }
    }
    println!("{journal_mode}: {refused} refusals");
    assert!(refused >= 4, "each of the records needs room: {refused}");
}

#[test]
fn a_first_backup_onto_a_disk_with_room_for_any_number_of_pages() {
    backups_with_room_for("wal", true, PAGE, leave_bytes);
}

#[test]
fn another_backup_onto_a_disk_with_room_for_any_number_of_pages() {
    backups_with_room_for("wal", false, PAGE, leave_bytes);
}

#[test]
fn a_first_backup_onto_a_disk_with_room_for_any_number_of_files() {
    backups_with_room_for("wal", true, 1, leave_files);
}

/// Restores with room for so many more files, and so does the undo.
fn replaced_with_files(arguments: &[&str], prepare: fn(&Scene)) {
    let mut refused = 0;
    for room in 0.. {
        let scene = Scene::new("wal");
        let _disk = disk_at(&scene, "small", "64m,nr_inodes=60");
        scene.move_data_to("small");
        scene.back_up();
        scene.change();
        prepare(&scene);
        let before = scene.says();
        let ballast = leave_files(&scene.program.path("small"), room);
        let ended = scene.program.run(arguments);
        remove(&ballast);
        assert_eq!(scene.left_over("small"), Vec::<PathBuf>::new(), "with room for {room}: {ended:?}");
        if ended.code != Some(0) {
            // SQLite wants files of its own beside the database, and does not say what was in its way.
            let kinds = [code(ErrorKind::Target), code(ErrorKind::Source)];
            assert!(kinds.contains(&ended.code), "with room for {room}: {ended:?}");
            assert_eq!(scene.says(), before, "with room for {room} files");
            refused += 1;
            scene.program.succeed(arguments);
        }
        assert_ne!(scene.says(), before);
        if ended.code == Some(0) {
            break;
        }
    }
    println!("{arguments:?}: {refused} refusals");
    assert!(refused >= 2, "{refused}");
}

#[test]
fn a_restore_onto_a_disk_with_room_for_any_number_of_files() {
    replaced_with_files(&["restore"], |_| {});
}

#[test]
fn an_undo_on_a_disk_with_room_for_any_number_of_files() {
    replaced_with_files(&["restore", "--undo"], |scene| drop(scene.program.succeed(&["restore"])));
}

#[test]
fn a_restore_is_refused_up_to_the_page_that_makes_enough_room() {
    /// What a restore leaves to the application.
    const RESERVE: u64 = 32 << 20;
    let scene = Scene::new("wal");
    let _disk = disk_at(&scene, "small", "64m");
    scene.move_data_to("small");
    scene.back_up();
    scene.change();
    let small = scene.program.path("small");
    let plain = scene.plain_bytes();
    let before = scene.says();
    for room in [0, PAGE, plain - PAGE, plain, RESERVE, RESERVE + plain - PAGE] {
        let ballast = leave_bytes(&small, room);
        let found = names(&small);
        scene.program.run(&["restore"]).refused(
            i32::from(ErrorKind::Target.exit_code()),
            &["not enough space", "nothing was changed", &format!("free=`{room}`")],
        );
        assert_eq!(names(&small), found);
        assert_eq!(scene.says(), before);
        remove(&ballast);
    }
    let ballast = leave_bytes(&small, RESERVE + plain);
    scene.program.succeed(&["restore"]);
    remove(&ballast);
    assert_ne!(scene.says(), before);
}

/// A proof, and a backup without a log, go over a copy: it never takes what the application needs.
#[test]
fn copies_are_not_made_where_the_application_would_lack_the_room() {
    let scene = Scene::new("delete");
    scene.back_up();
    fs::rename(scene.program.path("backups"), scene.program.path("kept")).expect("renamed");
    let _disk = disk_at(&scene, "backups", "30m");
    for name in names(&scene.program.path("kept")) {
        copy_tree(&scene.program.path("kept").join(name), &scene.program.path("backups"));
    }
    scene.change();
    for arguments in [&["verify"][..], &["backup"]] {
        let ended = scene.program.run(arguments);
        ended.refused(i32::from(ErrorKind::Target.exit_code()), &["not enough space", "backups"]);
        scene.assert_storage_is_whole();
        assert_eq!(scene.left_over("backups"), Vec::<PathBuf>::new());
    }
    assert_eq!(scene.program.snapshots().len(), 1);
}

/// Into the open database: refused as long as its log could fill the disk, and then it goes.
#[test]
fn a_restore_into_the_open_database_needs_room_for_its_log() {
    let address = free_address();
    let mut scene = Scene::new("wal");
    scene.program =
        scene.program.with("BACKUP_HTTP_ADDR", address.to_string()).with("BACKUP_VERIFY_SCHEDULE", "off");
    let _disk = disk_at(&scene, "small", "64m");
    scene.move_data_to("small");
    scene.back_up();
    scene.change();
    let before = scene.says();
    let first = &scene.program.snapshots()[0];
    let mut daemon = scene.program.start(&["run"]);
    daemon.wait_for_log("backing up app to");
    while TcpStream::connect(address).is_err() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let body = format!(r#"{{"database":"app","confirm":"app","snapshot":"{first}"}}"#);
    let small = scene.program.path("small");
    for room in [0, PAGE, 32 << 20] {
        let ballast = leave_bytes(&small, room);
        let answer = ask(address, "POST /restore", &body);
        assert!(answer.contains(r#""kind":"target""#) && answer.contains("not enough space"), "{answer}");
        remove(&ballast);
        assert_eq!(scene.says(), before, "with room for {room}");
        assert_eq!(scene.left_over("."), Vec::<PathBuf>::new());
    }
    let answer = ask(address, "POST /restore", &body);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_ne!(scene.says(), before);
    assert_eq!(daemon.end(Signal::TERM).code, Some(0));
}
