//! The command line: argv becomes one call, and its result an exit code.

mod doctor;
mod lineage;
mod output;
mod probe;
mod settings;
mod snapshots;
mod verbs;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::clock::Clock;
use crate::config::Config;
use crate::daemon;
use crate::demo;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::memory;
use crate::snapshot::SnapshotId;
use crate::telemetry;
use output::Output;

/// Backs SQLite databases up to S3 or a directory, proves that the backups restore, and brings
/// them back.
///
/// Every setting can be given in a file, in the environment or as a flag; `lifeboat config` shows
/// what is in force and where it comes from.
#[derive(Debug, Parser)]
#[command(name = "lifeboat", version, max_term_width = 100)]
struct Cli {
    /// A configuration file (also LIFEBOAT_CONFIG)
    #[arg(long, global = true, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Report in JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Keep backups until told to stop; with a command, beside that command
    Run {
        /// The application to restore for, start, and stop with
        #[arg(last = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Take a snapshot now
    Backup {
        /// The database's name in storage; without it, all configured databases
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// The database is meant to be as small as it is: store it without the flag `shrunken`, and
        /// compare later snapshots with this one
        #[arg(long)]
        accept_shrunken: bool,
    },
    /// List the snapshots, newest first
    Snapshots {
        #[command(flatten)]
        which: Which,
    },
    /// Bring a database back, onto its own path when nobody has it open, or to another file
    Restore(Restore),
    /// Read a snapshot back from storage, restore it to scratch, check it and record the proof
    Verify {
        #[command(flatten)]
        which: Which,
        /// This snapshot instead of the newest
        #[arg(long, value_name = "ID")]
        snapshot: Option<SnapshotId>,
    },
    /// Show what retention would remove; remove it with --apply
    Prune {
        #[command(flatten)]
        which: Which,
        /// Remove what the plan names
        #[arg(long)]
        apply: bool,
    },
    /// Show what making a branch's snapshot the newest means; do it with --apply
    Adopt {
        #[command(flatten)]
        which: Which,
        /// This snapshot; without it, the newest of the only branch
        #[arg(long, value_name = "ID")]
        snapshot: Option<SnapshotId>,
        /// Make it the newest, and fence the other side off
        #[arg(long)]
        apply: bool,
    },
    /// Show the newest snapshot, its age and its proof
    Status {
        #[command(flatten)]
        which: Which,
    },
    /// Look at everything a backup or a restore needs, and say what is wrong and what to do
    Doctor {
        /// The database's name in storage; without it, all configured databases
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// Show the configuration in force, with the origin of each value and no secret
    Config,
    /// Ask the running daemon whether it works; for container health checks
    Health {
        /// Ask whether backups are fresh and proven, instead of whether the process works
        #[arg(long)]
        ready: bool,
    },
    /// See it work: a live database, backups, proof, a loss and its restore, all on this machine
    Demo {
        /// End by itself instead of leaving the daemon running
        #[arg(long)]
        once: bool,
        /// Play the application that writes to this database
        #[arg(long, hide = true, value_name = "PATH")]
        writer: Option<PathBuf>,
    },
}

/// Which of several configured databases.
#[derive(Debug, clap::Args)]
struct Which {
    /// The database's name in storage; needed where several are configured
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

/// What to restore, and where to.
#[derive(Debug, clap::Args)]
struct Restore {
    #[command(flatten)]
    which: Which,
    /// The newest state there is, as if nothing was said
    #[arg(long, conflicts_with_all = ["snapshot", "at"])]
    latest: bool,
    /// This snapshot instead of the newest state
    #[arg(long, value_name = "ID", conflicts_with = "at")]
    snapshot: Option<SnapshotId>,
    /// What was committed by this time, e.g. 2026-11-21T15:05:00+01:00, or "10m ago"
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// Write a new file instead of replacing the configured database
    #[arg(long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Restore a snapshot whose database was damaged when it was taken, as it is
    #[arg(long)]
    accept_damage: bool,
    /// Put back what the last restore replaced; what stands there now is kept in its turn
    #[arg(long, conflicts_with_all = ["latest", "snapshot", "at", "output", "accept_damage"])]
    undo: bool,
    /// Show what would be done and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Parses argv, does what it says, and reports errors. The only place that decides the exit code.
pub fn main() -> ExitCode {
    memory::give_back_large_buffers();
    let command = settings::add_to(Cli::command());
    let matches = command.get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let output = Output::new(cli.json);
    let loaded = settings::load(cli.config.clone(), &matches);
    let result = match loaded {
        Ok((config, effective)) if matches!(cli.verb, Verb::Config) => {
            drop(config);
            output.effective(&effective)
        }
        Ok((config, _)) => start(cli.verb, config, &output),
        Err(error) => Err(error),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output.error(&error);
            ExitCode::from(error.kind().exit_code())
        }
    }
}

fn start(verb: Verb, config: Config, output: &Output) -> Result<u8> {
    telemetry::start(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context(ErrorKind::Internal, || "start the async runtime".to_owned())?;
    let result = runtime.block_on(perform(verb, config, output));
    // A blocking call that hangs on a dead disk must not keep a process that was told to stop.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

async fn perform(verb: Verb, config: Config, output: &Output) -> Result<u8> {
    let clock = Clock::system();
    let verbs = |config| verbs::Verbs::new(config, clock.clone(), output);
    match verb {
        Verb::Run { command } => return daemon::run(config, command, clock).await,
        Verb::Demo { writer: Some(path), .. } => demo::write_orders(&path)?,
        Verb::Demo { once, writer: None } => return demo::run(once).await,
        Verb::Health { ready } => return probe::health(&config, ready, output).await,
        Verb::Config => {
            return Err(Error::new(ErrorKind::Internal, "config is shown before anything starts"));
        }
        Verb::Backup { name, accept_shrunken } => verbs(config).backup(name, accept_shrunken).await?,
        Verb::Snapshots { which } => verbs(config).snapshots(which.name).await?,
        Verb::Restore(restore) => verbs(config).restore(restore).await?,
        Verb::Verify { which, snapshot } => verbs(config).verify(which.name, snapshot).await?,
        Verb::Prune { which, apply } => verbs(config).prune(which.name, apply).await?,
        Verb::Adopt { which, snapshot, apply } => verbs(config).adopt(which.name, snapshot, apply).await?,
        Verb::Doctor { name } => doctor::run(config, name, &clock, output).await?,
        Verb::Status { which } => verbs(config).status(which.name).await?,
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        settings::add_to(Cli::command()).debug_assert();
    }
}
