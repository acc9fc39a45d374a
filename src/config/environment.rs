//! The environment, and what it says about where this process runs.

use std::collections::BTreeMap;
use std::fmt;

use super::setting::SETTINGS;
#[cfg(debug_assertions)]
use crate::crash;
use crate::error::{Error, ErrorKind, Result};

/// Names the configuration file when no flag does.
pub(super) const CONFIG_VARIABLE: &str = "LIFEBOAT_CONFIG";

/// Every variable that begins so is ours, so that a misspelt one can be refused.
pub(super) const OWN_PREFIX: &str = "BACKUP_";

/// Variables that are read and are no settings.
const FACTS: [&str; 8] = [
    CONFIG_VARIABLE,
    "RELEASE_COMMAND",
    "FLY_APP_NAME",
    "FLY_MACHINE_ID",
    "HOSTNAME",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
];

/// Environment variables by name; an empty value counts as absent.
///
/// Values may be secrets: `Debug` prints the names only.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The variables of this process that Lifeboat reads; nothing else in the crate reads any.
    ///
    /// `Config` if one of them is not UTF-8.
    #[expect(clippy::disallowed_methods, reason = "this is where the environment comes in")]
    pub fn of_process() -> Result<Self> {
        let mut pairs = Vec::new();
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.to_str().filter(|name| is_read(name)) else { continue };
            let value = value.into_string().map_err(|_| {
                Error::new(
                    ErrorKind::Config,
                    format!("read the environment: the value is not UTF-8: variable=`{name}`"),
                )
            })?;
            pairs.push((name.to_owned(), value));
        }
        Ok(pairs.into_iter().collect())
    }

    /// The value, if there is one and it is not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// The names of all variables that have a value.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str).filter(|name| self.get(name).is_some())
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        Environment(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

fn is_read(name: &str) -> bool {
    let is_setting = || SETTINGS.iter().any(|s| s.env == name || s.fallbacks.contains(&name));
    name.starts_with(OWN_PREFIX) || FACTS.contains(&name) || is_setting() || is_of_crash_points(name)
}

#[cfg(debug_assertions)]
fn is_of_crash_points(name: &str) -> bool {
    [crash::AT_VARIABLE, crash::LOG_VARIABLE].contains(&name)
}

#[cfg(not(debug_assertions))]
fn is_of_crash_points(_: &str) -> bool {
    false
}

/// What the platform says about this process. Not configuration: nobody sets these for Lifeboat.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProcessFacts {
    /// This is fly.io's release command: a passing machine without the volume.
    pub is_release_command: bool,
    /// The fly.io application; only there is this set.
    pub fly_app_name: Option<String>,
    /// The fly.io machine.
    pub fly_machine_id: Option<String>,
    /// The host's name, where the shell or the container runtime exports it.
    pub hostname: Option<String>,
    /// A static AWS key is in the environment; it does not take the place of a configured role.
    pub has_static_aws_key: bool,
}

impl ProcessFacts {
    /// Reads the facts.
    pub fn of(environment: &Environment) -> Self {
        let text = |name| environment.get(name).map(str::to_owned);
        ProcessFacts {
            is_release_command: environment.get("RELEASE_COMMAND").is_some_and(|value| value != "0"),
            fly_app_name: text("FLY_APP_NAME"),
            fly_machine_id: text("FLY_MACHINE_ID"),
            hostname: text("HOSTNAME"),
            has_static_aws_key: environment.get("AWS_ACCESS_KEY_ID").is_some(),
        }
    }

    /// What to call this machine in names and records.
    pub fn machine(&self) -> &str {
        self.fly_machine_id.as_deref().or(self.hostname.as_deref()).unwrap_or("unnamed-machine")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_values_are_absent_and_values_are_never_printed() {
        let environment: Environment =
            [("BACKUP_DIR", " "), ("BACKUP_HTTP_TOKEN", "hunter2"), ("BACKUP_LOG", "")].into_iter().collect();
        assert_eq!(environment.get("BACKUP_DIR"), None);
        assert_eq!(environment.names().collect::<Vec<_>>(), ["BACKUP_HTTP_TOKEN"]);
        assert!(!format!("{environment:?}").contains("hunter2"));
    }

    #[test]
    fn facts_of_a_machine_on_fly() {
        let environment = [("FLY_MACHINE_ID", "148e"), ("HOSTNAME", "host"), ("RELEASE_COMMAND", "1")];
        let facts = ProcessFacts::of(&environment.into_iter().collect());
        assert!(facts.is_release_command);
        assert!(!facts.has_static_aws_key);
        assert_eq!(facts.machine(), "148e");
        assert_eq!(ProcessFacts::default().machine(), "unnamed-machine");
    }

    #[test]
    fn only_what_is_read_is_taken_from_the_process() {
        assert!(is_read("BACKUP_ANYTHING") && is_read("DATABASE_URL") && is_read("HOSTNAME"));
        assert!(!is_read("PATH") && !is_read("AWS_PROFILE"));
    }
}
