//! Log lines on standard error: for people, or one JSON object each.

use tracing::{Level, Metadata};
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

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
    let filter = filter.and(filter_fn(shows_no_secret));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_timer(SystemTime);
    let lines = match log.format {
        LogFormat::Text => lines.with_target(false).with_ansi(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
    };
    let started = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
    started.map_err(|error| Error::new(ErrorKind::Internal, "start logging").because(error))
}

/// The SDK's finer lines quote answers whole, and a service may quote the token or key it was sent; no
/// filter of a user's brings those lines out.
fn shows_no_secret(metadata: &Metadata<'_>) -> bool {
    !metadata.target().starts_with("aws_") || *metadata.level() <= Level::INFO
}
