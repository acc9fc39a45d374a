//! `lifeboat run`: restore if need be, start the application, keep its backups, and leave in order.

mod boot;
mod capturing;
mod duties;
mod opening;

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::account::Account;
use crate::clock::Clock;
use crate::config::{Config, DatabaseFile, RestoreOnBoot};
use crate::credentials::Session;
use crate::descriptors;
use crate::disk::folder_of;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::http;
use crate::metrics::Metrics;
use crate::setup::{self, Schedules};
use crate::source;
use crate::spool;
use crate::supervise::{self, Application};
use crate::worker::{Fleet, Job, Member, Reason, Report};
pub(crate) use duties::backup_age_max;
use opening::Opener;

/// How long the HTTP interface and the workers may take to end once they are told to.
const LEAVE_TIME: Duration = Duration::from_secs(5);

/// Runs the daemon until a signal or the application's end; returns the exit code.
///
/// With a command, that is the application's. Without one it is 0, or the error of a daemon that
/// was fenced off or could not take its last backup.
pub async fn run(config: Config, command: Vec<OsString>, clock: Clock) -> Result<u8> {
    let databases = config.databases.expand()?;
    let account = config.command_user.as_deref().map(Account::find).transpose()?;
    let account = account.as_ref();
    if !command.is_empty()
        && let Some(why) = only_execute(&config, &databases)
    {
        tracing::warn!("only executing the command: {why}");
        return Err(supervise::become_command(&command, account));
    }
    source::assert_library()?;
    descriptors::allow_for(databases.len());
    let schedules = Schedules::of(&config)?;
    let mut signals = supervise::signals()?;
    let listener = bind(&config).await?;

    let metrics = Metrics::new();
    let session = setup::session(&config, &clock, metrics.identity())?;
    let fleet = Fleet::new(databases, duties::freshness(&config, &schedules, clock.now()));
    let stop = CancellationToken::new();
    let phase = watch::Sender::new("starting");
    let serving = match listener {
        Some((listener, access)) => {
            let (fleet, metrics, clock) = (fleet.clone(), metrics.clone(), clock.clone());
            let identity = session.as_ref().map(Session::watch);
            let app = http::App { fleet, metrics, clock, access, phase: phase.subscribe(), identity };
            Some(tokio::spawn(serve(listener, app, config.http.connections_max, stop.clone())))
        }
        None => None,
    };
    for database in fleet.members().iter().map(|member| &member.database).filter(|_| !command.is_empty()) {
        account.map_or(Ok(()), |account| account.adopt_volume(folder_of(&database.path)))?;
    }
    let opener =
        Arc::new(Opener::new(config, fleet.members().len(), session, metrics, clock.clone(), stop.clone())?);

    for member in fleet.members() {
        opener.give_spool(member).await;
    }
    tokio::select! {
        restored = boot::restore_all(&opener, &fleet) => restored?,
        Some(_) = signals.recv() => return Err(Error::cancelled()),
    }
    let mut application = match command.is_empty() {
        true => None,
        false => Some(Application::start(&command, account)?),
    };
    let tasks = TaskTracker::new();
    opener.open_all(&fleet, &tasks);
    capturing::start(&fleet, &opener.config.capture, &tasks, &stop)?;
    let trigger = duties::start(&fleet, &schedules, &opener, &tasks, &stop).await?;
    phase.send_replace("running");
    let _ = sd_notify::notify(&[NotifyState::Ready]);

    let mut ended = wait_for_end(&fleet, &mut application, &mut signals).await;
    phase.send_replace("stopping");
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    trigger.stop().await;
    if opener.config.backup.on_shutdown {
        let last = last_backups(&fleet, &opener, &mut signals).await;
        if application.is_none() {
            ended = ended.and_then(|code| last.map(|()| code));
        }
    }
    stop.cancel();
    tasks.close();
    if tokio::time::timeout(LEAVE_TIME, tasks.wait()).await.is_err() {
        tracing::warn!("some work did not end in time and is abandoned; nothing unfinished is listed");
    }
    if let Some(serving) = serving {
        let _ = tokio::time::timeout(LEAVE_TIME, serving).await;
    }
    ended
}

/// Why the command is to be run with neither restore nor backups, if it is.
fn only_execute(config: &Config, databases: &[DatabaseFile]) -> Option<String> {
    if config.process.is_release_command {
        return Some("this is a release command (RELEASE_COMMAND=1), which has no volume".to_owned());
    }
    if config.restore.on_boot != RestoreOnBoot::Never {
        // Here storage is where the data lives: the restore makes the directory.
        return None;
    }
    let missing = databases.iter().find(|database| !folder_of(&database.path).is_dir())?;
    let folder: &Path = folder_of(&missing.path);
    Some(format!("the volume is not there: database=`{}` directory=`{}`", missing.name, folder.display()))
}

async fn bind(config: &Config) -> Result<Option<(TcpListener, http::Access)>> {
    let Some(addr) = config.http.addr else { return Ok(None) };
    let listener = TcpListener::bind(addr).await.context(ErrorKind::Config, || {
        format!("listen for HTTP; another process may have the port: key=`http.addr` value=`{addr}`")
    })?;
    let access = http::Access::new(addr, &config.http)?;
    Ok(Some((listener, access)))
}

async fn serve(listener: TcpListener, app: http::App, connections_max: usize, stop: CancellationToken) {
    if let Err(error) = http::serve(listener, app, connections_max, stop).await {
        tracing::error!("failed to serve HTTP: {}", error.chain());
    }
}

/// Waits for a signal, the application's end, or being fenced off with no application to keep up.
async fn wait_for_end(
    fleet: &Fleet,
    application: &mut Option<Application>,
    signals: &mut mpsc::Receiver<Signal>,
) -> Result<u8> {
    let Some(application) = application else {
        return tokio::select! {
            Some(signal) = signals.recv() => {
                tracing::info!(?signal, "told to stop");
                Ok(0)
            }
            error = duties::fenced(fleet) => Err(error),
        };
    };
    loop {
        tokio::select! {
            code = application.wait() => {
                tracing::info!(code = ?code.as_ref().ok(), "the application has ended");
                return code;
            }
            Some(signal) = signals.recv() => {
                tracing::info!(?signal, "passing the signal on to the application");
                application.signal(signal);
            }
        }
    }
}

/// The last snapshot of every database, all at once, until the deadline or another signal. Every
/// failure is in the log; the first one is returned.
async fn last_backups(fleet: &Fleet, opener: &Opener, signals: &mut mpsc::Receiver<Signal>) -> Result<()> {
    let deadline = opener.config.backup.shutdown_deadline;
    let all = futures::future::join_all(fleet.members().iter().map(|member| last_backup(member, opener)));
    tokio::select! {
        ended = all => ended.into_iter().collect(),
        () = tokio::time::sleep(deadline) => {
            let message = format!("the last backup did not end within {deadline:?} (backup.shutdown_deadline)");
            tracing::error!("{message}");
            Err(Error::new(ErrorKind::Limit, message))
        }
        Some(_) = signals.recv() => {
            tracing::warn!("told to stop again: the last backup is given up");
            Err(Error::cancelled())
        }
    }
}

/// An error if storage does not have the last snapshot: also if it waits in the spool, for this machine may
/// not come back.
async fn last_backup(member: &Member, opener: &Opener) -> Result<()> {
    let name = &member.database.name;
    let opened = member.handle_or_reason();
    let spool = member.spool().filter(|spool| spool.is_on());
    let handle = match spool {
        Some(_) => {
            let half = opener.config.backup.shutdown_deadline / 2;
            tokio::time::timeout(half, opened).await.unwrap_or_else(|_| {
                Err(Error::new(
                    ErrorKind::Unavailable,
                    "storage did not answer in time (backup.shutdown_deadline)",
                ))
            })
        }
        None => opened.await,
    };
    let unreached = match handle {
        Ok(handle) => {
            let asked = handle.run(Job::Backup { accept_shrunken: false }, Reason::Shutdown).await;
            let last = asked.inspect_err(|error| {
                tracing::error!(database = %name, "no last backup of {name}: {}", error.chain());
            })?;
            // Of a failure the worker tells.
            return match last.report()? {
                Report::Spooled(spooled) => Err(spooled.outage.into()),
                _ => Ok(()),
            };
        }
        Err(error) => member.outage().unwrap_or(error),
    };
    match spool.filter(|_| spool::is_outage(&unreached)) {
        Some(spool) => opener.spool_one(member, spool, &unreached).await.inspect_err(|error| {
            tracing::error!(database = %name, "no last backup of {name}: {}", error.chain());
        })?,
        None => tracing::error!(database = %name, "no last backup of {name}: {unreached}"),
    }
    Err(unreached)
}
