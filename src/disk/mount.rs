//! Which file system a path lies on.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Where a file system is attached, and of which kind it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The folder it is attached to.
    pub point: PathBuf,
    /// Its kind as the kernel names it: `ext4`, `overlay`, `nfs4`, `fuse.sshfs`.
    pub kind: String,
}

/// The mount on which `path` lies, which is real (no symbolic links). `None` where the system has
/// no table of mounts to look in.
pub fn mount_of(path: &Path) -> io::Result<Option<Mount>> {
    match std::fs::read_to_string("/proc/self/mountinfo") {
        Ok(table) => Ok(find(&table, path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The last of the longest, for a later mount on the same folder hides the earlier one.
fn find(table: &str, path: &Path) -> Option<Mount> {
    let mounts = table.lines().filter_map(parse).filter(|mount| path.starts_with(&mount.point));
    mounts.max_by_key(|mount| mount.point.components().count())
}

/// One line: numbers, root and point of the mount, options, and behind a dash the kind.
fn parse(line: &str) -> Option<Mount> {
    let (mount, file_system) = line.split_once(" - ")?;
    let point = mount.split(' ').nth(4)?;
    let kind = file_system.split(' ').next()?;
    Some(Mount { point: unescape(point), kind: kind.to_owned() })
}

/// Blanks and the like stand as a backslash and three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:30 / /data rw - tmpfs tmpfs rw
31 30 254:1 / /data rw,noatime shared:7 master:2 - ext4 /dev/vdb rw
32 22 0:44 / /my\\040files rw - fuse.sshfs user@host:/srv rw
33 22 0:45 / /database rw - nfs4 host:/x rw";

    #[test]
    fn the_longest_and_last_mount_above_a_path_counts() {
        for (path, point, kind) in [
            ("/etc/passwd", "/", "ext4"),
            ("/data/app.db", "/data", "ext4"),
            ("/database/app.db", "/database", "nfs4"),
            ("/data2/app.db", "/", "ext4"),
            ("/my files/app.db", "/my files", "fuse.sshfs"),
        ] {
            let expected = Mount { point: point.into(), kind: kind.to_owned() };
            assert_eq!(find(TABLE, Path::new(path)), Some(expected), "{path}");
        }
        assert_eq!(find("nonsense\n\n1 2 3 - ", Path::new("/")), None);
    }
}
