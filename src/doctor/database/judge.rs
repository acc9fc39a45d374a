//! What follows from what was found of a database. Pure.

use bytesize::ByteSize;

use super::{File, Found, Looked};
use crate::config::RestoreOnBoot;
use crate::disk::{Mount, Room};
use crate::doctor::check::Check;
use crate::error::{ErrorKind, Result};
use crate::source::Facts;

const FILE: &str = "database.file";
const RIGHTS: &str = "database.rights";
const CONTENT: &str = "database.content";
const JOURNAL: &str = "database.journal-mode";
const FILE_SYSTEM: &str = "database.file-system";
const SPACE: &str = "database.space";
const SCRATCH: &str = "database.scratch";
const SQLITE: &str = "database.sqlite-version";

/// The checks of one database, in an order that does not change.
pub(in crate::doctor) fn judge(looked: &Looked, on_boot: RestoreOnBoot) -> Vec<Check> {
    match looked {
        Looked::Absent { folder } => vec![absent(*folder, on_boot)],
        Looked::Unusable(error) if error.kind() == ErrorKind::Limit => {
            vec![Check::skipped(FILE, error.chain())]
        }
        Looked::Unusable(error) => vec![Check::failure(
            FILE,
            error.chain(),
            "there is nothing to back up",
            "give the path of the database file in BACKUP_DATABASE, and see that it can be reached",
        )],
        Looked::There(found) => there(found),
    }
}

fn absent(folder: bool, on_boot: RestoreOnBoot) -> Check {
    let found =
        if folder { "there is no such file" } else { "there is no such file, and its folder is not there" };
    match on_boot {
        RestoreOnBoot::Never => Check::failure(
            FILE,
            found,
            "there is nothing to back up, and a start restores nothing (restore.on_boot is `never`)",
            "start the application once so that it makes its database, correct BACKUP_DATABASE, or run `lifeboat restore`",
        ),
        RestoreOnBoot::IfMissing | RestoreOnBoot::Always => Check::note(
            FILE,
            found,
            "the next `lifeboat run` restores the newest snapshot before the application starts",
        ),
    }
}

fn there(found: &Found) -> Vec<Check> {
    let file = &found.file;
    let log = match file.log_bytes {
        0 => String::new(),
        bytes => format!(", its log {}", ByteSize(bytes)),
    };
    let mut checks = vec![
        Check::ok(FILE, format!("{}, {}{log}", file.path.display(), ByteSize(file.bytes))),
        rights(file),
        content(&found.facts),
    ];
    let journal_mode = found.facts.as_ref().ok().map(|facts| facts.sqlite.journal_mode.as_str());
    let is_wal = journal_mode == Some("wal");
    checks.push(match journal_mode {
        None => Check::skipped(JOURNAL, "the database cannot be read"),
        Some("wal") => Check::ok(JOURNAL, "wal"),
        Some(mode) => Check::note(
            JOURNAL,
            mode,
            "writers wait while a snapshot is taken; with a write-ahead log they would not (once, in the \
             application: PRAGMA journal_mode=WAL)",
        ),
    });
    checks.push(file_system(&found.mount, is_wal));
    checks.push(space(&found.room));
    checks.push(scratch(&found.scratch, is_wal));
    checks.push(match &found.facts {
        Ok(facts) => sqlite_version(facts.sqlite.written_by, is_wal),
        Err(_) => Check::skipped(SQLITE, "the database cannot be read"),
    });
    checks
}

fn rights(file: &File) -> Check {
    let (owner, group) = file.owner;
    let found = format!("mode {:04o}, owner {owner}:{group}; we are user {}", file.mode, file.user);
    if !file.file_is_ours {
        let action = format!("run Lifeboat as user {owner}, or make the file its own: chown {}", file.user);
        return Check::failure(
            RIGHTS,
            found,
            "we may not read and write the file, so SQLite cannot open it",
            action,
        );
    }
    if !file.folder_is_ours {
        let means =
            "we may not write in its folder: SQLite keeps the log's index there, and a restore its copy";
        let action =
            format!("make the folder user {}'s own, or run Lifeboat as the folder's owner", file.user);
        return Check::failure(RIGHTS, found, means, action);
    }
    if file.mode & 0o002 != 0 {
        let action = format!("chmod o-w {}", file.path.display());
        return Check::warning(RIGHTS, found, "every user of this machine may change the database", action);
    }
    Check::ok(RIGHTS, found)
}

fn content(facts: &Result<Facts>) -> Check {
    match facts {
        Ok(facts) if facts.schema_objects == 0 => Check::warning(
            CONTENT,
            "an SQLite database with no table",
            "it is stored, and flagged: as long as that is the newest snapshot nothing older is pruned",
            "see that this is the application's database; if tables are gone, restore a snapshot",
        ),
        Ok(facts) => {
            let (pages, size) = (facts.page_count, facts.page_size);
            let free = facts.sqlite.freelist_count;
            Check::ok(CONTENT, format!("{pages} pages of {size} bytes, {free} of them unused"))
        }
        Err(error) if error.kind() == ErrorKind::Busy => Check::warning(
            CONTENT,
            error.chain(),
            "a snapshot that meets such a lock waits, and is given up after backup.busy_timeout",
            "look for a long or exclusive transaction in the application",
        ),
        Err(error) => Check::failure(
            CONTENT,
            error.chain(),
            "there is nothing that could be backed up",
            "see that this is the application's database; if it is damaged, stop the application and restore a snapshot",
        ),
    }
}

/// Whose other end is on another machine: no memory is shared with who else has the file open.
const NETWORK: [&str; 22] = [
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "ncpfs",
    "afs",
    "coda",
    "ceph",
    "lustre",
    "gfs2",
    "ocfs2",
    "gpfs",
    "fuse.sshfs",
    "fuse.s3fs",
    "fuse.rclone",
    "fuse.goofys",
    "fuse.gcsfuse",
    "fuse.glusterfs",
    "fuse.ceph",
    "fuse.blobfuse2",
    "fuse.mount-s3",
];

/// Shared with the machine below or made by a program: whether locks and shared memory hold there
/// cannot be seen from here.
const SHARED: [&str; 5] = ["9p", "virtiofs", "vboxsf", "vmhgfs", "prl_fs"];

fn file_system(mount: &Result<Option<Mount>>, is_wal: bool) -> Check {
    let mount = match mount {
        Ok(Some(mount)) => mount,
        Ok(None) => {
            return Check::skipped(FILE_SYSTEM, "this system has no table of mounts (/proc/self/mountinfo)");
        }
        Err(error) => return Check::skipped(FILE_SYSTEM, error.chain()),
    };
    let kind = mount.kind.as_str();
    let found = format!("{kind}, mounted at {}", mount.point.display());
    let move_it = "keep the database on a disk of this machine";
    if NETWORK.contains(&kind) {
        return match is_wal {
            true => Check::failure(
                FILE_SYSTEM,
                found,
                "a write-ahead log does not work over a network: who has the database open shares no memory, and \
                 writes can be lost or the database damaged",
                move_it,
            ),
            false => Check::warning(
                FILE_SYSTEM,
                found,
                "SQLite relies on locks that many network file systems do not keep",
                move_it,
            ),
        };
    }
    if SHARED.contains(&kind) || kind == "fuse" || kind == "fuseblk" || kind.starts_with("fuse.") {
        return Check::warning(
            FILE_SYSTEM,
            found,
            "whether SQLite's locks, and a log's shared memory, hold on this file system cannot be seen from here",
            format!("make sure that nothing outside this machine opens the database; else {move_it}"),
        );
    }
    match kind {
        "tmpfs" | "ramfs" => Check::warning(
            FILE_SYSTEM,
            found,
            "the database is in memory: what was committed since the last snapshot is lost with this machine's memory",
            move_it,
        ),
        "overlay" | "aufs" => Check::warning(
            FILE_SYSTEM,
            found,
            "the database is in the container's own layer and goes with the container",
            "mount a volume and keep the database on it",
        ),
        _ => Check::ok(FILE_SYSTEM, found),
    }
}

fn space(room: &Result<Room>) -> Check {
    match room {
        Ok(Room { free, needed }) => {
            let found =
                format!("{} free beside it, {} needed for one more copy", ByteSize(*free), ByteSize(*needed));
            match free < needed {
                false => Check::ok(SPACE, found),
                true => Check::warning(
                    SPACE,
                    found,
                    "a restore makes its copy beside the database before it replaces it: it would be refused",
                    "make room, or a larger volume: twice the size of the database in all",
                ),
            }
        }
        Err(error) => Check::skipped(SPACE, error.chain()),
    }
}

fn scratch(room: &Result<Room>, is_wal: bool) -> Check {
    match room {
        Ok(Room { free, needed }) => {
            let found = format!("{} free for scratch copies, {} needed", ByteSize(*free), ByteSize(*needed));
            match (free < needed, is_wal) {
                (false, _) => Check::ok(SCRATCH, found),
                (true, true) => Check::warning(
                    SCRATCH,
                    found,
                    "a drill restores to scratch: no snapshot can be proven, nor be restored into the open database",
                    "make room, or point BACKUP_DIR to a disk that has it",
                ),
                (true, false) => Check::failure(
                    SCRATCH,
                    found,
                    "without a write-ahead log a snapshot begins as a scratch copy: none can be taken",
                    "make room, point BACKUP_DIR to a disk that has it, or switch the database to WAL",
                ),
            }
        }
        Err(error) => Check::skipped(SCRATCH, error.chain()),
    }
}

/// Whether this SQLite can damage a database in WAL mode when a checkpoint meets a reset of the
/// log: since 3.7.0, until 3.51.3 and the corrections of two older lines.
fn has_wal_reset_bug(version: u32) -> bool {
    let corrected = version >= 3_051_003
        || (3_050_007..3_051_000).contains(&version)
        || (3_044_006..3_045_000).contains(&version);
    version >= 3_007_000 && !corrected
}

fn sqlite_version(written_by: u32, is_wal: bool) -> Check {
    if written_by == 0 {
        return Check::note(SQLITE, "not in the header", "no SQLite since 3.7.0 has written to it");
    }
    let (major, minor, patch) = (written_by / 1_000_000, written_by / 1_000 % 1_000, written_by % 1_000);
    let found = format!("last written by SQLite {major}.{minor}.{patch}");
    match is_wal && has_wal_reset_bug(written_by) {
        false => Check::ok(SQLITE, found),
        true => Check::warning(
            SQLITE,
            found,
            "that version can, rarely, damage a database in WAL mode when one connection checkpoints while another \
             resets the log (the WAL-reset bug). Lifeboat never checkpoints and has a corrected SQLite of its own",
            "update the application's SQLite to 3.51.3 or later (in the older lines: 3.50.7, 3.44.6)",
        ),
    }
}

#[cfg(test)]
mod tests;
