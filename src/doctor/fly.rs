//! What holds on fly.io only. Pure.

use std::path::Path;
use std::time::Duration;

use super::check::Check;
use crate::config::{Config, RestoreOnBoot};
use crate::disk::Mount;
use crate::snapshot::{DatabaseName, Manifest};

const VOLUME: &str = "fly.volume";
const KILL_TIMEOUT: &str = "fly.kill-timeout";
const AUTOSTOP: &str = "fly.autostop";

/// What fly.io waits between its signal and its kill, unless told otherwise, and at most.
const KILL_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
const KILL_TIMEOUT_MAX: Duration = Duration::from_secs(300);

/// What was found of one database elsewhere.
pub(super) struct Fact<'a> {
    pub(super) name: &'a DatabaseName,
    /// Where its file lies, if the file and the mount are known.
    pub(super) mount: Option<&'a Mount>,
    pub(super) newest: Option<&'a Manifest>,
}

/// The checks of a machine on fly.io.
pub(super) fn judge(config: &Config, facts: &[Fact<'_>]) -> Vec<Check> {
    let Some(app) = &config.process.fly_app_name else {
        return [VOLUME, KILL_TIMEOUT, AUTOSTOP]
            .map(|name| Check::skipped(name, "not on fly.io (FLY_APP_NAME is not set)"))
            .to_vec();
    };
    let mut checks: Vec<Check> =
        facts.iter().map(|fact| volume(fact.mount, config.restore.on_boot).about(fact.name)).collect();
    checks.push(kill_timeout(config, facts));
    checks.push(autostop(config, app));
    checks
}

fn volume(mount: Option<&Mount>, on_boot: RestoreOnBoot) -> Check {
    let found = "the database is on the machine's root file system";
    let action = "make a volume (`fly volumes create data`), mount it ([mounts] in fly.toml) and keep the database on it";
    match (mount, on_boot) {
        (None, _) => Check::skipped(VOLUME, "the database is not there, or its file system is not known"),
        (Some(Mount { point, .. }), _) if point != Path::new("/") => {
            Check::ok(VOLUME, format!("mounted at {}", point.display()))
        }
        (Some(_), RestoreOnBoot::Never) => Check::failure(
            VOLUME,
            found,
            "every deploy, and every machine that is replaced, begins with an empty one, and nothing is restored \
             there (restore.on_boot is `never`)",
            action,
        ),
        (Some(_), RestoreOnBoot::IfMissing | RestoreOnBoot::Always) => Check::warning(
            VOLUME,
            found,
            "every deploy, and every machine that is replaced, begins with the newest snapshot: what was committed \
             since then is lost",
            action,
        ),
    }
}

/// fly.io tells a machine nothing of its `kill_timeout`: what can be known is what it must be.
fn kill_timeout(config: &Config, facts: &[Fact<'_>]) -> Check {
    let backup = &config.backup;
    if !backup.on_shutdown {
        return Check::note(
            KILL_TIMEOUT,
            "no last snapshot is taken on the way out (backup.on_shutdown)",
            "what was committed since the last scheduled one is only on the volume",
        );
    }
    let took = facts.iter().filter_map(|fact| Some(Duration::from_millis(fact.newest?.took_ms))).max();
    let deadline = backup.shutdown_deadline;
    let measured = match took {
        Some(took) => format!("the newest snapshot took {took:?}"),
        None => "no snapshot to measure by yet".to_owned(),
    };
    let found = format!(
        "{measured}; a last one may take {deadline:?} (backup.shutdown_deadline); fly.io does not tell a machine its kill_timeout"
    );
    let seconds = deadline.as_secs();
    if took.is_some_and(|took| took >= deadline) {
        return Check::warning(
            KILL_TIMEOUT,
            found,
            "the last snapshot of a stop does not end in time and is lost; the volume and the snapshot before it stay",
            "raise BACKUP_SHUTDOWN_DEADLINE, and kill_timeout in fly.toml above it (300 s at most)",
        );
    }
    if deadline > KILL_TIMEOUT_MAX {
        return Check::warning(
            KILL_TIMEOUT,
            found,
            "fly.io kills after 300 s at most, whatever kill_timeout says",
            "set BACKUP_SHUTDOWN_DEADLINE to 270s or less, and kill_timeout = \"300s\" in fly.toml",
        );
    }
    let default = KILL_TIMEOUT_DEFAULT.as_secs();
    let means = format!(
        "kill_timeout in fly.toml has to be above {seconds} s, by what the application needs to stop; it is {default} s \
         where nothing is set"
    );
    Check::note(KILL_TIMEOUT, found, means)
}

fn autostop(config: &Config, app: &str) -> Check {
    let found = format!("application {app}; fly.io does not tell a machine its auto_stop_machines");
    match config.backup.on_shutdown {
        true => Check::note(
            AUTOSTOP,
            found,
            "fly.io's proxy sees requests only: with \"stop\" a machine is stopped between two scheduled backups, and the \
             last snapshot on the way out stands in for them; \"suspend\" gives no signal, so what was written since the \
             last one waits on the volume until the machine wakes",
        ),
        false => Check::warning(
            AUTOSTOP,
            found,
            "with auto_stop_machines a machine is stopped between two scheduled backups, and no last one is taken",
            "set BACKUP_ON_SHUTDOWN=true, or auto_stop_machines = \"off\" in fly.toml",
        ),
    }
}

#[cfg(test)]
mod tests;
