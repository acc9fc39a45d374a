//! `BACKUP_COMMAND_USER`: Lifeboat stays root, for the identity's sake; the application does not.
//! These tests want to be root.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, lchown, symlink};
use std::path::Path;

use lifeboat::error::ErrorKind;
use rusqlite::Connection;

use crate::support::files::names;
use crate::support::mount::SmallDisk;
use crate::support::program::Program;

const CONFIG: i32 = ErrorKind::Config.exit_code() as i32;
const SOURCE: i32 = ErrorKind::Source.exit_code() as i32;
const TARGET: i32 = ErrorKind::Target.exit_code() as i32;

/// Debian's user for nobody in particular.
const NOBODY: u32 = 65_534;

const WHO: &str = "echo $(id -u) $(id -g) $(id -G) $USER $HOME";

fn owner(path: &Path) -> (u32, u32) {
    let metadata = fs::metadata(path).expect("it is there");
    (metadata.uid(), metadata.gid())
}

#[test]
fn the_command_has_the_user_and_no_group_of_ours() {
    let program = Program::new();
    drop(program.app("CREATE TABLE t(x)"));
    let who = |user: &[&str]| {
        let arguments = [&["run"], user, &["--", "sh", "-c", WHO]].concat();
        program.succeed(&arguments)
    };
    assert_eq!(who(&["--command-user", "nobody"]), "65534 65534 65534 nobody /nonexistent\n");
    assert_eq!(who(&["--command-user", "nobody:daemon"]), "65534 1 1 nobody /nonexistent\n");
    assert!(who(&["--command-user", "4711:4712"]).starts_with("4711 4712 4712"), "numbers need no entry");
    assert!(who(&[]).starts_with("0 0 "), "without it, as ourselves");
    assert_eq!(program.snapshots().len(), 1, "backups are taken all the same");
}

#[test]
fn a_release_command_has_the_same_user() {
    let program = Program::new().with("RELEASE_COMMAND", "1").with("BACKUP_COMMAND_USER", "nobody");
    let printed = program.succeed(&["run", "--", "sh", "-c", WHO]);
    assert_eq!(printed, "65534 65534 65534 nobody /nonexistent\n");
}

#[test]
fn an_unknown_user_is_refused_before_anything_starts() {
    let program = Program::new().with("BACKUP_COMMAND_USER", "nobody-of-that-name");
    drop(program.app("CREATE TABLE t(x)"));
    let ended = program.run(&["run", "--", "touch", "started"]);
    ended.refused(CONFIG, &["no such user", "command.user", "nobody-of-that-name"]);
    assert!(!program.path("started").exists());
}

#[test]
fn a_fresh_volume_is_given_to_the_user_and_a_database_restored_onto_it_too() {
    let program = Program::new();
    drop(program.app("PRAGMA journal_mode=wal; CREATE TABLE t(x); INSERT INTO t VALUES ('kept')"));
    program.succeed(&["backup"]);
    fs::remove_dir_all(program.path("data")).expect("lost");
    fs::create_dir(program.path("data")).expect("a folder");
    // As a process of another user sees it: it may pass through, and read nothing beside.
    open_for_all(program.dir.path());
    let _volume = SmallDisk::mount(program.path("data"), "64m");
    assert_eq!(owner(&program.path("data")), (0, 0));

    let write = format!(
        "python3 -c \"import sqlite3; c = sqlite3.connect('{}'); c.execute('INSERT INTO t VALUES (1)'); c.commit()\"",
        program.database().display()
    );
    let program = program.with("BACKUP_COMMAND_USER", "nobody").with("BACKUP_RESTORE_ON_BOOT", "if-missing");
    program.succeed(&["run", "--", "sh", "-c", &write]);
    assert_eq!(owner(&program.path("data")), (NOBODY, NOBODY));
    assert_eq!(owner(&program.database()), (NOBODY, NOBODY));
    assert_eq!(program.snapshots().len(), 2, "what the application added is in the last backup");
}

#[test]
fn a_directory_of_the_image_stays_as_it_is() {
    let program = Program::new().with("BACKUP_COMMAND_USER", "nobody");
    drop(program.app("CREATE TABLE t(x)"));
    program.succeed(&["run", "--", "true"]);
    assert_eq!(owner(&program.path("data")), (0, 0));
    assert_eq!(owner(&program.database()), (0, 0));
}

/// A link of the application's in place of its database, to a file of root's.
fn with_planted_link(at: &str) -> Program {
    let program = Program::new();
    drop(program.app("CREATE TABLE t(x); INSERT INTO t VALUES ('of the application')"));
    program.succeed(&["backup"]);
    fs::write(program.path("roots"), "of root").expect("written");
    chown(program.path("data"), Some(NOBODY), Some(NOBODY)).expect("given");
    fs::remove_file(program.database()).expect("removed");
    symlink(program.path("roots"), program.path(at)).expect("planted");
    lchown(program.path(at), Some(NOBODY), Some(NOBODY)).expect("given");
    program.with("BACKUP_COMMAND_USER", "nobody")
}

#[test]
fn the_application_cannot_have_root_replace_a_file_by_a_link() {
    for policy in ["if-missing", "always"] {
        let program = with_planted_link("data/app.db").with("BACKUP_RESTORE_ON_BOOT", policy);
        let before = names(program.dir.path());
        let ended = program.run(&["run", "--", "touch", "started"]);
        ended.refused(TARGET, &["symbolic link of another user", "data/app.db", "uid=`65534`"]);
        assert_eq!(fs::read_to_string(program.path("roots")).expect("there"), "of root");
        assert_eq!(names(program.dir.path()), before, "nothing beside it, and nothing was started");
        program.run(&["restore"]).refused(TARGET, &["symbolic link of another user"]);
    }
}

#[test]
fn what_a_link_of_the_application_leads_to_is_not_backed_up_either() {
    let program = with_planted_link("data/app.db");
    let other = Connection::open(program.path("other.db")).expect("opens");
    other.execute_batch("CREATE TABLE secret(x)").expect("made");
    fs::rename(program.path("other.db"), program.path("roots")).expect("replaced");
    program.run(&["backup"]).refused(SOURCE, &["symbolic link of another user"]);
    assert_eq!(program.snapshots().len(), 1);
}

#[test]
fn a_link_to_another_volume_does_not_have_it_given_away() {
    let program = Program::new();
    fs::create_dir(program.path("elsewhere")).expect("a folder");
    let _volume = SmallDisk::mount(program.path("elsewhere"), "8m");
    symlink(program.path("elsewhere"), program.path("data/sub")).expect("planted");
    lchown(program.path("data/sub"), Some(NOBODY), Some(NOBODY)).expect("given");
    let database = program.path("data/sub/app.db").display().to_string();
    let program = program.with("BACKUP_DATABASE", database).with("BACKUP_COMMAND_USER", "nobody");
    program.run(&["run", "--", "true"]).refused(TARGET, &["symbolic link of another user"]);
    assert_eq!(owner(&program.path("elsewhere")), (0, 0));
}

#[test]
fn scratch_copies_and_backups_do_not_follow_such_a_link_either() {
    let program = Program::new().with("BACKUP_DIR", "data/lifeboat/backups");
    drop(program.app("CREATE TABLE t(x)"));
    symlink("/etc", program.path("data/lifeboat")).expect("planted");
    lchown(program.path("data/lifeboat"), Some(NOBODY), Some(NOBODY)).expect("given");
    let ended = program.run(&["backup"]);
    assert!(ended.stderr.contains("symbolic link of another user"), "{ended:?}");
    assert!(!Path::new("/etc/backups").exists());
}

#[test]
fn the_command_does_not_learn_the_token() {
    let program = Program::new().with("BACKUP_HTTP_TOKEN", "0123456789abcdef").with("RELEASE_COMMAND", "1");
    let show = ["run", "--", "sh", "-c", "echo ${BACKUP_HTTP_TOKEN:-none}"];
    assert_eq!(program.succeed(&show), "0123456789abcdef\n", "as the same user it could look anyway");
    assert_eq!(program.with("BACKUP_COMMAND_USER", "nobody").succeed(&show), "none\n");
}

fn open_for_all(folder: &Path) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder, mode).expect("ours");
}
