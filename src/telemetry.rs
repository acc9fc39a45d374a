//! Log lines on standard error: for people, or one JSON object each.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

use crate::config::{Log, LogFormat};
use crate::error::{Context, Error, ErrorKind, Result};

/// Sends log lines to standard error from now on, as `log` says. Once per process.
pub fn start(log: &Log) -> Result<()> {
    // The scheduler tells of its own start at info, twice; whoever names it in the filter gets that.
    let quiet = "tokio_cron_scheduler=warn";
    let filter = EnvFilter::try_new(format!("{quiet},{}", log.level)).context(ErrorKind::Config, || {
        format!(
            "read the log filter (e.g. `info` or `info,lifeboat=debug`): key=`log.level` value=`{}`",
            log.level
        )
    })?;
    let lines =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_timer(SystemTime);
    let started = match log.format {
        LogFormat::Text => lines.with_target(false).with_ansi(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).try_init(),
    };
    started.map_err(|error| Error::new(ErrorKind::Internal, "start logging").because(error))
}
