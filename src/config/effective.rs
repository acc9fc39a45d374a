//! The configuration in force, value by value with its origin, for people and for machines.

use serde::Serialize;

use super::layers::{Origin, Values, shown};
use super::setting::SETTINGS;
use super::{Config, StorageChoice};

/// One setting as it is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EffectiveValue {
    /// Its key in a file.
    pub key: &'static str,
    /// Its environment variable.
    pub env: &'static str,
    /// Its value as it may be printed; `None` if it is not set.
    pub value: Option<String>,
    /// Who said it.
    pub origin: Origin,
}

/// Every setting as it is in force, in the order of the table. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Effective(pub Vec<EffectiveValue>);

impl Effective {
    pub(super) fn of(values: &Values, config: &Config) -> Self {
        let rows = SETTINGS.iter().map(|setting| {
            let value = values.get(setting.key);
            let items: Vec<String> = value.items.iter().map(|item| shown(setting, item)).collect();
            let text = (!items.is_empty()).then(|| items.join(", "));
            let derived = if text.is_none() { derived(setting.key, config) } else { None };
            let origin = if derived.is_some() { Origin::Derived } else { value.origin.clone() };
            EffectiveValue { key: setting.key, env: setting.env, value: text.or(derived), origin }
        });
        Effective(rows.collect())
    }

    /// Three columns: key, value, origin.
    pub fn render_text(&self) -> String {
        let value = |row: &EffectiveValue| row.value.clone().unwrap_or_else(|| "(not set)".to_owned());
        let key_width = self.0.iter().map(|row| row.key.len()).max().unwrap_or(0);
        let value_width = self.0.iter().map(|row| value(row).chars().count()).max().unwrap_or(0);
        let line = |row: &EffectiveValue| {
            format!("{:key_width$}  {:value_width$}  {}\n", row.key, value(row), row.origin)
        };
        self.0.iter().map(line).collect()
    }
}

/// The value that follows from others where a setting has none of its own.
fn derived(key: &str, config: &Config) -> Option<String> {
    let s3 = match &config.storage {
        StorageChoice::S3(s3) => Some(s3),
        StorageChoice::Directory(_) => None,
    };
    let role = s3.and_then(|s3| s3.credentials.role());
    match key {
        "storage.provider" => s3.map(|s3| s3.provider.name().to_owned()),
        "storage.use_aws" => Some(matches!(config.storage, StorageChoice::S3(_)).to_string()),
        "backup.schedule" => config.backup.schedule.clone(),
        "aws.role_session_name" => role.map(|role| role.session_name.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    fn load(pairs: &[(&str, &str)]) -> (Config, Effective) {
        let sources = Sources { environment: pairs.iter().copied().collect(), ..Sources::default() };
        Config::load(&sources).expect("valid")
    }

    #[test]
    fn what_is_captured_has_a_snapshot_a_day_unless_somebody_says_when() {
        let off = ("BACKUP_CAPTURE", "off");
        let said = ("BACKUP_SCHEDULE", "7 * * * *");
        for (pairs, schedule, uncaptured, origin) in [
            (&[off][..], "*/5 * * * *", "*/5 * * * *", "derived"),
            (&[], "29 2 * * *", "*/5 * * * *", "derived"),
            (&[said], "7 * * * *", "7 * * * *", "environment BACKUP_SCHEDULE"),
        ] {
            let (config, effective) = load(pairs);
            assert_eq!(config.backup.schedule.as_deref(), Some(schedule), "{pairs:?}");
            assert_eq!(config.backup.uncaptured_schedule.as_deref(), Some(uncaptured), "{pairs:?}");
            let row = effective.0.iter().find(|row| row.key == "backup.schedule").expect("a row");
            assert_eq!((row.value.as_deref(), row.origin.to_string().as_str()), (Some(schedule), origin));
        }
        let (config, _) = load(&[("BACKUP_SCHEDULE", "off")]);
        assert_eq!((config.backup.schedule, config.backup.uncaptured_schedule), (None, None));
    }
}
