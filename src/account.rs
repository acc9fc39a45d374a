//! The user as whom the application runs, where that is not ourselves.
//!
//! On fly.io the machine's identity socket is root's, and so is a fresh volume. Lifeboat therefore
//! stays root and steps the application down; nothing but Lifeboat can then ask for the identity.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use rustix::process::{getegid, geteuid};

use crate::disk::real_path;
use crate::error::{Context, Error, ErrorKind, Result};

/// A user of this system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its number.
    pub uid: u32,
    /// The number of its group; it gets no other.
    pub gid: u32,
    /// Its name and home, where the system knows them.
    pub entry: Option<Entry>,
}

/// What `/etc/passwd` says beyond numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The login name.
    pub name: String,
    /// The home directory.
    pub home: PathBuf,
}

impl Account {
    /// Finds `USER` or `USER:GROUP`, names or numbers; `Config` if the system does not know it, or if
    /// we may not become it.
    pub fn find(text: &str) -> Result<Account> {
        let read = |path: &str| {
            fs::read_to_string(path).context(ErrorKind::Config, || format!("read a file: path=`{path}`"))
        };
        let account = Account::of(text, &read("/etc/passwd")?, &read("/etc/group")?).ok_or_else(|| {
            Error::new(
                ErrorKind::Config,
                format!("this system has no such user: key=`command.user` value=`{text}`"),
            )
        })?;
        if !geteuid().is_root() && !account.is_own() {
            let message = "only root can start the application as another user: start Lifeboat as root, or leave this out";
            return Err(Error::new(
                ErrorKind::Config,
                format!("{message}: key=`command.user` value=`{text}`"),
            ));
        }
        Ok(account)
    }

    fn of(text: &str, users: &str, groups: &str) -> Option<Account> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let entry = users.lines().map(|line| line.split(':').collect::<Vec<_>>()).find_map(|columns| {
            let [name, _, uid, gid, _, home, ..] = columns[..] else { return None };
            let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
            let is_meant = name == user || user.parse() == Ok(uid);
            is_meant.then(|| (uid, gid, Entry { name: name.to_owned(), home: home.into() }))
        });
        let gid = match group {
            Some(group) => Some(group_of(group, groups)?),
            None => None,
        };
        match entry {
            Some((uid, own, entry)) => Some(Account { uid, gid: gid.unwrap_or(own), entry: Some(entry) }),
            // A number needs no entry, but then its group has to be said.
            None => Some(Account { uid: user.parse().ok()?, gid: gid?, entry: None }),
        }
    }

    /// Whether we are this user already.
    pub fn is_own(&self) -> bool {
        (geteuid().as_raw(), getegid().as_raw()) == (self.uid, self.gid)
    }

    /// Makes the volume that holds `folder`'s files this user's, if it is fresh: it still belongs to root.
    ///
    /// Only the top of a volume and nothing below; a directory of the image is as its author made it.
    pub fn adopt_volume(&self, folder: &Path) -> Result<()> {
        let Ok(metadata) = fs::metadata(folder) else { return Ok(()) };
        let above = fs::metadata(folder.join(".."));
        let is_volume = above.is_ok_and(|above| above.dev() != metadata.dev());
        if !is_volume || metadata.uid() != 0 || self.uid == 0 || !geteuid().is_root() {
            return Ok(());
        }
        // A link that the application made must not have another file system given to it.
        let given = real_path(folder).and_then(|real| chown(real, Some(self.uid), Some(self.gid)));
        given.context(ErrorKind::Target, || {
            let (path, uid) = (folder.display(), self.uid);
            format!("give the volume to the application's user: path=`{path}` uid=`{uid}`")
        })?;
        tracing::info!(path = %folder.display(), uid = self.uid, gid = self.gid, "the volume belonged to root and now belongs to the application's user");
        Ok(())
    }
}

fn group_of(text: &str, groups: &str) -> Option<u32> {
    let named = groups.lines().find_map(|line| {
        let mut columns = line.split(':');
        (columns.next() == Some(text)).then(|| columns.nth(1)?.parse().ok()).flatten()
    });
    named.or_else(|| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str =
        "root:x:0:0:root:/root:/bin/bash\n# a remark\napp:x:1000:1001:App:/home/app:/bin/sh\n";
    const GROUPS: &str = "root:x:0:\nweb:x:33:app\napp:x:1001:\n";

    fn numbers(text: &str) -> Option<(u32, u32)> {
        Account::of(text, USERS, GROUPS).map(|account| (account.uid, account.gid))
    }

    #[test]
    fn users_and_groups_are_found_by_name_and_number() {
        assert_eq!(numbers("app"), Some((1000, 1001)));
        assert_eq!(numbers("1000"), Some((1000, 1001)));
        assert_eq!(numbers("app:web"), Some((1000, 33)));
        assert_eq!(numbers("app:44"), Some((1000, 44)));
        assert_eq!(numbers("5000:5001"), Some((5000, 5001)));
        let entry = Account::of("app", USERS, GROUPS).expect("known").entry.expect("has one");
        assert_eq!((entry.name.as_str(), entry.home.as_path()), ("app", Path::new("/home/app")));
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        for text in ["", "nobody-here", "5000", "app:nogroup", "app:", ":web", "-1:0", "app web"] {
            assert_eq!(numbers(text), None, "{text}");
        }
    }
}
