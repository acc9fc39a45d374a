//! Opening a file of ours where somebody else may have put something else under its name.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

/// Opens one of our own files to read it.
///
/// `InvalidData` if no regular file is there: a link is not followed, and a pipe keeps nobody waiting.
pub fn open_own_file(path: &Path) -> io::Result<File> {
    open(File::options().read(true), path)
}

/// Opens one of our own lock files, which is made (mode 0600) if it is not there; else as [`open_own_file`].
pub fn open_lock_file(path: &Path) -> io::Result<File> {
    open(File::options().create(true).truncate(false).write(true).mode(0o600), path)
}

/// The content of one of our own files; `None` if it is not there.
///
/// `InvalidData` if no regular file is there, or one of more than `bytes_max` bytes.
pub fn read_own_file(path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match open_own_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(not_ours(path, &format!("the file has more than {bytes_max} bytes")));
    }
    Ok(Some(bytes))
}

fn open(options: &mut std::fs::OpenOptions, path: &Path) -> io::Result<File> {
    // Without waiting for whoever holds the other end of a pipe.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = options.custom_flags(flags).open(path).map_err(|error| {
        let errno = error.raw_os_error().map(Errno::from_raw_os_error);
        match errno {
            Some(Errno::LOOP) => not_ours(path, "a symbolic link stands in the place of a file"),
            // What a socket says, and a pipe that nobody reads.
            Some(Errno::NXIO) => not_ours(path, "this is no regular file"),
            _ => error,
        }
    })?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(not_ours(path, "this is no regular file")),
    }
}

fn not_ours(path: &Path, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what}: path=`{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn only_a_regular_file_of_bounded_size_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        assert_eq!(read_own_file(&path("absent"), 4).expect("none"), None);
        fs::write(path("file"), "four").expect("written");
        assert_eq!(read_own_file(&path("file"), 4).expect("small").as_deref(), Some(&b"four"[..]));

        symlink(path("file"), path("link")).expect("made");
        mknodat(CWD, path("pipe"), FileType::Fifo, Mode::RWXU, 0).expect("made");
        fs::create_dir(path("folder")).expect("made");
        let _socket = UnixListener::bind(path("socket")).expect("made");
        for name in ["link", "pipe", "folder", "socket"] {
            let error = read_own_file(&path(name), 4).expect_err(name);
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{name}: {error}");
            assert!(error.to_string().contains(&format!("/{name}`")), "{error}");
        }
        let error = read_own_file(&path("file"), 3).expect_err("too large");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_lock_file_is_made_for_us_alone_and_never_through_a_link() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        for _ in 0..2 {
            open_lock_file(&path("lock")).expect("made, and opened again");
        }
        let mode = fs::metadata(path("lock")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        symlink(path("elsewhere"), path("link")).expect("made");
        mknodat(CWD, path("pipe"), FileType::Fifo, Mode::RWXU, 0).expect("made");
        for name in ["link", "pipe"] {
            let error = open_lock_file(&path(name)).expect_err(name);
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{name}: {error}");
        }
        assert!(!path("elsewhere").exists());
    }
}
