//! Who has the files of a database open, whatever is in them.
//!
//! Two looks, neither of which sees all:
//!
//! - `/proc` shows every descriptor, also one without a lock and one on a file whose name is gone. But
//!   only of processes that this one may trace: those of the same user, or all with CAP_SYS_PTRACE,
//!   which root has on a machine and mostly has not in a container. None of another container (a PID
//!   namespace that is not within ours), and none at all on systems without `/proc`.
//! - Locks show whoever on this machine holds them. But a connection without WAL holds one only in a
//!   transaction, and one in WAL mode not before it has read.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Flock, FlockOffsetType, FlockType, fcntl_getlk};

use super::{beside, companions};

/// A process that has a database open.
#[derive(Debug)]
pub struct Holder {
    /// None for a process in another container, which has no number here.
    pid: Option<u32>,
    /// What the system calls its program.
    command: Option<String>,
}

impl Holder {
    fn of(pid: Option<u32>) -> Holder {
        let name = pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).ok());
        // A process names itself, with any bytes.
        let command = name.map(|name| name.trim_end().escape_debug().to_string());
        Holder { pid, command }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "pid=`{pid}`")?,
            None => write!(f, "pid=`unknown here, it is in another container`")?,
        }
        match &self.command {
            Some(command) => write!(f, " command=`{command}`"),
            None => Ok(()),
        }
    }
}

/// Device and inode: what a file is, whatever its name. Once the last name is gone, and nobody has it
/// open, another file may get the same.
type Id = (u64, u64);

/// The files of a database, where they exist.
pub(super) struct Files {
    database: Option<Id>,
    companions: Vec<Id>,
}

impl Files {
    /// The database at `path` and its companions.
    pub fn of(path: &Path) -> io::Result<Files> {
        let id = |path: &Path| match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            metadata => metadata.map(|metadata| Some((metadata.dev(), metadata.ino()))),
        };
        let mut beside = Vec::new();
        for companion in companions(path) {
            beside.extend(id(&companion)?);
        }
        Ok(Files { database: id(path)?, companions: beside })
    }

    pub fn has_database(&self) -> bool {
        self.database.is_some()
    }

    /// A process other than this one with a descriptor on any of the files, which were just found.
    pub fn holder(&self) -> Option<Holder> {
        holder(|id| self.database == Some(id) || self.companions.contains(&id))
    }

    /// A process other than this one with a descriptor on the database.
    pub fn holder_of_database(&self) -> Option<Holder> {
        let database = self.database?;
        holder(|id| id == database)
    }
}

fn holder(is_held: impl Fn(Id) -> bool) -> Option<Holder> {
    // By the number that `/proc` knows this process under, which may be of an outer namespace.
    let own = fs::read_link("/proc/self").ok()?;
    let processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.file_name());
    processes
        .filter(|name| *name != own)
        .filter_map(|name| name.to_str()?.parse::<u32>().ok())
        .find(|pid| descriptors(*pid).any(&is_held))
        .map(|pid| Holder::of(Some(pid)))
}

/// What a process has open; nothing if it has ended, or is not ours to look into.
fn descriptors(pid: u32) -> impl Iterator<Item = Id> {
    let found = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    // One may have been closed since.
    let open = found.filter_map(|entry| fs::metadata(entry.path()).ok());
    open.map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Where SQLite locks: in the database PENDING, RESERVED and the 510 bytes of SHARED; in the index of
/// the log eight locks, and the one that every connection shares as long as it is open.
const LOCKS: [(&str, u64, u64); 2] = [("", 0x4000_0000, 512), ("-shm", 120, 9)];

/// A process other than this one with any of SQLite's locks on the database at `path`.
///
/// Closing the descriptors used here drops the locks of this process on the two files.
pub(super) fn lock_holder(path: &Path) -> io::Result<Option<Holder>> {
    for (suffix, start, length) in LOCKS {
        // Not blocking, should it be a pipe.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::open(beside(path, suffix), flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => continue,
            file => file?,
        };
        let wanted = Flock {
            start,
            length,
            pid: None,
            // In the way of which is every lock of others, shared or not.
            typ: FlockType::WriteLock,
            offset_type: FlockOffsetType::Set,
        };
        if let Some(found) = fcntl_getlk(&file, &wanted)? {
            let pid = found.pid.and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok());
            return Ok(Some(Holder::of(pid)));
        }
    }
    Ok(None)
}
