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
            assert!(!has_password(&text) || !error.chain().contains(PASSWORD), "{}", error.chain());
        }
    }
}

/// Whether it is the URL of another kind of database, and only that. Its scheme is shown, and so is what is a path.
fn has_password(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let kind = scheme.split(':').next().unwrap_or_default().to_lowercase();
    let is_path = scheme.contains('/') || ["sqlite", "sqlite3", "file"].contains(&kind.as_str());
    let is_one = !text.contains(',') && !scheme.contains(PASSWORD);
    is_one && !is_path && rest.contains(&format!(":{PASSWORD}@"))
}
