//! A small file system of its own, which only root can have.

use std::path::PathBuf;
use std::process::Command;

/// In memory, and gone when dropped.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one of this size, such as `8m`, over the directory `at`.
    pub fn mount(at: PathBuf, size: &str) -> SmallDisk {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size},mode=755"), "tmpfs"]).arg(&at);
        let mounted = mount.output().expect("`mount` is there");
        assert!(mounted.status.success(), "this test wants to mount a tmpfs, so run it as root: {mounted:?}");
        SmallDisk(at)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{} stays mounted", self.0.display());
    }
}
