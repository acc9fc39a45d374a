//! Whatever a framework writes where its database is: it is refused without showing a password, or it
//! names a file by an absolute path.
use std::path::PathBuf;

use lifeboat::config::{Config, Environment, Sources};
use lifeboat::error::ErrorKind;

const PASSWORD: &str = "correct-horse";

pub fn holds(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    // What is expanded is looked for on the disk.
    if text.contains(['*', '?', '[', '{', '\\']) {
        return;
    }
    let text = text.replace("PW", PASSWORD);
    let environment: Environment =
        [("DATABASE_URL", text.as_str()), ("BACKUP_DIR", "/backups")].into_iter().collect();
    let sources = Sources { environment, current_directory: PathBuf::from("/srv"), ..Sources::default() };
    let loaded = Config::load(&sources).and_then(|(config, _)| config.databases.expand());
    match loaded {
        Ok(databases) => {
            for database in databases {
                assert!(database.path.is_absolute() && database.path.file_name().is_some(), "{database:?}");
                assert_ne!(database.path, PathBuf::from("/srv"));
            }
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Config, "{}", error.chain());
            // What stands before the first colon is the scheme, and is shown.
            let rest = text
                .split_once(':')
                .map_or("", |(scheme, rest)| if scheme.contains(PASSWORD) { "" } else { rest });
            let has_password = rest.contains(&format!(":{PASSWORD}@")) && rest.contains("//");
            assert!(!has_password || !error.chain().contains(PASSWORD), "{}", error.chain());
        }
    }
}
