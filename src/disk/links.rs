//! Following symbolic links as root, where somebody else may have made them.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

/// As many links in a row as the kernel follows.
const LINKS_MAX: u32 = 40;

/// The real path behind `path`, which must exist.
///
/// `PermissionDenied`, as root, if a link on the way belongs to somebody to whom what it leads to
/// does not: an application that was stepped down could otherwise have root replace any file, by a
/// link in place of its database. Nobody else can follow a link further than its owner's rights.
pub fn real_path(path: &Path) -> io::Result<PathBuf> {
    refuse_foreign_links(path)?;
    fs::canonicalize(path)
}

/// The directory, made if it is not there, with no link on the way that [`real_path`] would refuse.
pub fn make_directory(directory: &Path) -> io::Result<()> {
    refuse_foreign_links(directory)?;
    fs::create_dir_all(directory)
}

/// The same for what nobody else is to look into or write to: whatever is made has mode 0700.
pub fn make_private_directory(directory: &Path) -> io::Result<()> {
    refuse_foreign_links(directory)?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// An error where [`real_path`] would have one because of a link; parts that are not there are well.
pub fn refuse_foreign_links(path: &Path) -> io::Result<()> {
    match geteuid().is_root() {
        true => check(path, LINKS_MAX),
        false => Ok(()),
    }
}

/// Looks at every part of `path` that is there, the first one first.
fn check(path: &Path, links_left: u32) -> io::Result<()> {
    // With a slash at its end, a link would be looked at through.
    let path = path.components().as_path();
    let parts: Vec<&Path> = path.ancestors().filter(|part| !part.as_os_str().is_empty()).collect();
    for part in parts.into_iter().rev() {
        let Ok(link) = fs::symlink_metadata(part) else { return Ok(()) };
        if !link.is_symlink() {
            continue;
        }
        let Some(left) = links_left.checked_sub(1) else {
            // The kernel has the right words for it.
            return fs::metadata(part).map(drop);
        };
        let target = part.parent().unwrap_or(Path::new("/")).join(fs::read_link(part)?);
        // Through a link to nothing something would be made; it would be the directory's owner's.
        let owner =
            fs::metadata(part).or_else(|_| fs::metadata(super::folder_of(&target))).map(|to| to.uid());
        if link.uid() != 0 && owner.as_ref().ok() != Some(&link.uid()) {
            let (link, part) = (link.uid(), part.display());
            let message = format!(
                "a symbolic link of another user leads to what is not that user's, so root does not follow it: \
                 link=`{part}` uid=`{link}`"
            );
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        check(&target, left)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{lchown, symlink};

    use super::*;

    const SOMEBODY: u32 = 65_534;

    /// A directory of somebody's with a file of his, and beside it a file of root's.
    fn places() -> tempfile::TempDir {
        assert!(geteuid().is_root(), "this test makes files of other users, so run it as root");
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(dir.path().join("his/deep")).expect("made");
        for name in ["his/own", "roots"] {
            fs::write(dir.path().join(name), name).expect("written");
        }
        for name in ["his", "his/deep", "his/own"] {
            lchown(dir.path().join(name), Some(SOMEBODY), None).expect("root may");
        }
        dir
    }

    fn link(dir: &tempfile::TempDir, at: &str, to: &str, uid: u32) {
        let at = dir.path().join(at);
        symlink(dir.path().join(to), &at).expect("made");
        lchown(at, Some(uid), None).expect("root may");
    }

    fn verdict(dir: &tempfile::TempDir, path: &str) -> io::ErrorKind {
        real_path(&dir.path().join(path)).expect_err(path).kind()
    }

    #[test]
    fn links_to_what_is_ones_own_are_followed() {
        let dir = places();
        link(&dir, "his/link", "his/own", SOMEBODY);
        link(&dir, "his/chain", "his/link", SOMEBODY);
        link(&dir, "roots-link", "roots", 0);
        link(&dir, "roots-link-to-his", "his/own", 0);
        for (path, real) in [
            ("his/chain", "his/own"),
            ("roots-link", "roots"),
            ("roots-link-to-his", "his/own"),
            ("roots", "roots"),
        ] {
            let real = fs::canonicalize(dir.path().join(real)).expect("there");
            assert_eq!(real_path(&dir.path().join(path)).expect(path), real, "{path}");
        }
    }

    #[test]
    fn links_to_what_is_somebody_elses_are_not() {
        let dir = places();
        link(&dir, "his/to-root", "roots", SOMEBODY);
        link(&dir, "his/over-a-chain", "his/to-root", SOMEBODY);
        // The directory is root's, so what would be made through it is, too.
        link(&dir, "his/to-nothing", "absent", SOMEBODY);
        link(&dir, "his/folder", "", SOMEBODY);
        for path in [
            "his/to-root",
            "his/over-a-chain",
            "his/to-nothing",
            "his/folder/roots",
            "his/folder/absent",
            "his/folder",
            "his/folder/",
            "his/folder/.",
        ] {
            assert_eq!(verdict(&dir, path), io::ErrorKind::PermissionDenied, "{path}");
        }
        let made = make_directory(&dir.path().join("his/folder/new")).expect_err("refused");
        assert_eq!(made.kind(), io::ErrorKind::PermissionDenied);
        assert!(!dir.path().join("new").exists());
    }

    #[test]
    fn a_link_of_roots_to_a_link_of_somebodys_is_looked_at_too() {
        let dir = places();
        link(&dir, "his/deep/to-root", "roots", SOMEBODY);
        link(&dir, "entry", "his/deep", 0);
        assert_eq!(verdict(&dir, "entry/to-root"), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_circle_ends() {
        let dir = places();
        link(&dir, "one", "other", 0);
        link(&dir, "other", "one", 0);
        assert_ne!(verdict(&dir, "one"), io::ErrorKind::NotFound);
    }
}
