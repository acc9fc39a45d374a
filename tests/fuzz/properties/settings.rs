//! Whatever the environment says of the settings: it is refused, naming the variable, or it is a
//! configuration that reads the same once more. No secret is shown either way.
//!
//! The input is lines of `NAME=value`.
use std::path::PathBuf;

use lifeboat::config::{Config, Effective, Environment, Kind, Origin, SETTINGS, Setting, Sources};
use lifeboat::error::{ErrorKind, Result};

const SECRET: &str = "0123456789-very-secret-0123456789";

pub fn holds(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let named = text.lines().filter_map(|line| line.split_once('=')).filter(|(name, _)| is_tried(name));
    let basis = [("BACKUP_DATABASE", "app.db"), ("BACKUP_DIR", "/backups"), ("BACKUP_HTTP_TOKEN", SECRET)];
    let environment: Environment = basis.into_iter().chain(named).collect();
    let (config, effective) = match load(environment) {
        Ok(loaded) => loaded,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Config, "{error}");
            return assert!(!error.chain().contains(SECRET));
        }
    };
    assert!(!format!("{config:?}{}", effective.render_text()).contains(SECRET));
    // What is shown has its control characters escaped, and what may be a password in an address left out.
    let is_escaped = |character: char| character != '\n' && character.escape_debug().len() > 1;
    if text.contains(is_escaped) || effective.render_text().contains("://…@") {
        return;
    }
    // Under the same name: the application's variables are read otherwise than ours, and a default that
    // is said may mean more than a default.
    let said = effective.0.iter().filter_map(|row| match &row.origin {
        Origin::Environment(name) if row.env != "BACKUP_HTTP_TOKEN" => {
            Some((name.clone(), row.value.clone()?))
        }
        _ => None,
    });
    let again: Environment = said.chain([("BACKUP_HTTP_TOKEN".to_owned(), SECRET.to_owned())]).collect();
    let (same, _) = load(again).expect("what is in force can be said again");
    assert_eq!(format!("{same:?}"), format!("{config:?}"));
}

/// Not what names other files, which are not the input's business, and no secret but ours.
fn is_tried(name: &str) -> bool {
    let of_name = |setting: &&Setting| setting.env == name || setting.fallbacks.contains(&name);
    let setting = SETTINGS.iter().find(of_name);
    setting.is_some_and(|setting| setting.kind != Kind::Secret && !setting.key.ends_with("_file"))
}

fn load(environment: Environment) -> Result<(Config, Effective)> {
    Config::load(&Sources { environment, current_directory: PathBuf::from("/srv"), ..Sources::default() })
}
