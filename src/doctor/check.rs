//! One finding of a diagnosis, and all of them.

use std::fmt;

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::DatabaseName;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Not looked at; the finding says why.
    Skipped,
    /// As it should be.
    Ok,
    /// Nothing is wrong, and it is good to know.
    Note,
    /// Backups work, but something may cost dearly.
    Warning,
    /// Backups or restores do not work, or will not.
    Failure,
}

impl Status {
    const fn name(self) -> &'static str {
        match self {
            Status::Skipped => "skipped",
            Status::Ok => "ok",
            Status::Note => "note",
            Status::Warning => "warning",
            Status::Failure => "failure",
        }
    }
}

/// One check: what was found, what that means, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Stable: scripts may look for it.
    pub name: &'static str,
    /// Which database it is about, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<DatabaseName>,
    /// How bad it is.
    pub status: Status,
    /// What is the case; of a skipped check, why it was not looked at.
    pub found: String,
    /// What follows from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub means: Option<String>,
    /// What to do about it.
    #[serde(rename = "do", skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// What belongs elsewhere as it stands here: a policy, the claims of a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<serde_json::Value>,
}

impl Check {
    /// As it should be.
    pub fn ok(name: &'static str, found: impl Into<String>) -> Check {
        Check::new(name, Status::Ok, found, None, None)
    }

    /// Nothing is wrong.
    pub fn note(name: &'static str, found: impl Into<String>, means: impl Into<String>) -> Check {
        Check::new(name, Status::Note, found, Some(means.into()), None)
    }

    /// Something may cost dearly.
    pub fn warning(
        name: &'static str,
        found: impl Into<String>,
        means: impl Into<String>,
        action: impl Into<String>,
    ) -> Check {
        Check::new(name, Status::Warning, found, Some(means.into()), Some(action.into()))
    }

    /// Something does not work.
    pub fn failure(
        name: &'static str,
        found: impl Into<String>,
        means: impl Into<String>,
        action: impl Into<String>,
    ) -> Check {
        Check::new(name, Status::Failure, found, Some(means.into()), Some(action.into()))
    }

    /// Not looked at, and why.
    pub fn skipped(name: &'static str, why: impl Into<String>) -> Check {
        Check::new(name, Status::Skipped, why, None, None)
    }

    fn new(
        name: &'static str,
        status: Status,
        found: impl Into<String>,
        means: Option<String>,
        action: Option<String>,
    ) -> Check {
        Check { name, database: None, status, found: found.into(), means, action, document: None }
    }

    /// The same, about one database.
    pub fn about(self, database: &DatabaseName) -> Check {
        Check { database: Some(database.clone()), ..self }
    }

    /// The same with a document.
    pub fn with_document(self, document: serde_json::Value) -> Check {
        Check { document: Some(document), ..self }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:8} {}", self.status.name(), self.name)?;
        if let Some(database) = &self.database {
            write!(f, " ({database})")?;
        }
        writeln!(f, ": {}", self.found)?;
        for (label, text) in [("means", &self.means), ("do", &self.action)] {
            if let Some(text) = text {
                writeln!(f, "         {label:6} {text}")?;
            }
        }
        if let Some(document) = &self.document {
            for line in format!("{document:#}").lines() {
                writeln!(f, "         {line}")?;
            }
        }
        Ok(())
    }
}

/// Everything a diagnosis found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The worst of the checks.
    pub worst: Status,
    /// The checks, in an order that does not change.
    pub checks: Vec<Check>,
}

impl Report {
    /// The report of these checks.
    pub fn new(checks: Vec<Check>) -> Report {
        let worst = checks.iter().map(|check| check.status).max().unwrap_or(Status::Skipped);
        Report { worst, checks }
    }

    /// `Unhealthy` if a check failed, naming those that did.
    pub fn verdict(&self) -> Result<()> {
        if self.worst < Status::Failure {
            return Ok(());
        }
        let failed = self.checks.iter().filter(|check| check.status == Status::Failure);
        let names: Vec<String> = failed
            .map(|check| match &check.database {
                Some(database) => format!("{} ({database})", check.name),
                None => check.name.to_owned(),
            })
            .collect();
        Err(Error::new(ErrorKind::Unhealthy, format!("checks failed: {}", names.join(", "))))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            check.fmt(f)?;
        }
        let counts =
            [Status::Ok, Status::Note, Status::Warning, Status::Failure, Status::Skipped].map(|status| {
                let count = self.checks.iter().filter(|check| check.status == status).count();
                format!("{count} {}", status.name())
            });
        writeln!(f, "{}", counts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_check_decides_and_is_named() {
        let app: DatabaseName = "app".parse().expect("a name");
        let fine = [
            Check::skipped("fly.volume", "not on fly.io"),
            Check::ok("storage.put", "works"),
            Check::note("storage.delete", "not allowed", "append-only"),
            Check::warning("http.bind", "open", "everybody", "set a token"),
        ];
        let report = Report::new(fine.to_vec());
        assert_eq!(report.worst, Status::Warning);
        assert!(report.verdict().is_ok());

        let failure = Check::failure("database.space", "full", "no restore", "make room").about(&app);
        let report = Report::new([&fine[..], &[failure]].concat());
        let error = report.verdict().expect_err("a check failed");
        assert_eq!(error.kind(), ErrorKind::Unhealthy);
        assert_eq!(error.to_string(), "checks failed: database.space (app)");
    }

    #[test]
    fn people_read_what_it_means_and_what_to_do() {
        let policy = serde_json::json!({"Version": "2012-10-17"});
        let report = Report::new(vec![
            Check::ok("storage.put", "works"),
            Check::failure("storage.get", "denied", "no restore", "allow s3:GetObject").with_document(policy),
        ]);
        insta::assert_snapshot!(report, @r#"
        ok       storage.put: works
        failure  storage.get: denied
                 means  no restore
                 do     allow s3:GetObject
                 {
                   "Version": "2012-10-17"
                 }
        1 ok, 0 note, 0 warning, 1 failure, 0 skipped
        "#);
    }
}
