//! The merged text becomes a [`Config`]; values that cannot be together are refused here.

use std::net::SocketAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;

use super::databases::DatabasePattern;
use super::identity;
use super::layers::{DATABASES, Values, read_file};
use super::provider::{Provider, provider};
use super::value::{Parsed, duration, number, schedule, size, switch};
use super::{
    Backup, Budget, Capture, Config, Credentials, DatabasePatterns, Http, Identity, Log, LogFormat,
    ProcessFacts, Requests, Restore, RestoreOnBoot, Retention, S3, Sources, Spool, StorageChoice, Verify,
    aws,
};
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::LEVELS;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// An age beyond this is a slip of the pen, and arithmetic on it could overflow.
const AGE_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);

const KEEP_REPLACED_MAX: usize = 100;

/// It stands in every proof, which has an end.
const ASSERTION_BYTES_MAX: usize = 8 << 10;

const THREADS_MAX: usize = 256;
const PART_CONCURRENCY_MAX: usize = 64;

/// A log that may not even grow by this would end every snapshot beside a writer.
const WAL_GROWTH_BYTES_MIN: u64 = 1 << 20;

/// Why an endpoint for backups is refused.
const HTTP_UNASKED: &str = "it would send backups in clear; use https, or set storage.allow_http \
                            (BACKUP_S3_ALLOW_HTTP) to true";

/// Why an endpoint for the identity token is refused.
const TOKEN_IN_CLEAR: &str =
    "it would send the identity token in clear; use https (storage.allow_http is for backups only)";

/// The shortest token, in characters: shorter ones can be guessed.
const TOKEN_CHARS_MIN: usize = 16;

/// The one in use, and the one that follows it or went before it.
const TOKENS_MAX: usize = 2;

/// Each connection costs a descriptor and up to 32 KiB of buffers.
const CONNECTIONS_MAX: usize = 1_024;

/// The records of a few snapshots alone take some of it.
const SPOOL_BYTES_MIN: u64 = 1 << 20;

/// A day that allows less would not even pay for the records.
const UPLOAD_BYTES_MIN: u64 = 1 << 20;

/// When a snapshot is due if nobody says when.
const SCHEDULE: &str = "*/5 * * * *";

/// The same for a database that is captured: deltas carry the time between, and it is not read every five minutes.
const SCHEDULE_WITH_CAPTURE: &str = "29 2 * * *";

/// Checks every value and every combination.
pub(super) fn config(values: &Values, sources: &Sources) -> Result<Config> {
    let base = sources.current_directory.as_path();
    let process = ProcessFacts::of(&sources.environment);
    let fallback_directory = values.required("storage.directory", |text| path(text, base))?;
    let capture = capture(values)?;
    Ok(Config {
        databases: databases(values, base)?,
        storage: storage(values, &fallback_directory, sources, &process)?,
        fallback_directory,
        budget: Budget {
            requests: values.optional("storage.requests_per_day", requests)?.unwrap_or(Requests::Enough),
            uploaded_bytes: values.required("storage.upload_per_day", upload)?,
        },
        backup: backup(values, capture)?,
        spool: Spool {
            bytes_max: values.required("spool.bytes_max", spool_bytes)?,
            age_max: values.required("spool.age_max", within(HOUR..=AGE_MAX))?,
        },
        capture,
        restore: Restore {
            on_boot: values.required("restore.on_boot", restore_on_boot)?,
            allow_empty: values.required("restore.allow_empty", switch)?,
            keep_replaced: values.required("restore.keep_replaced", |text| {
                number(text, 1..=KEEP_REPLACED_MAX).map(|n| NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN))
            })?,
            handover_wait: values.required("restore.handover_wait", within(Duration::ZERO..=HOUR))?,
        },
        command_user: values.optional("command.user", command_user)?,
        http: http(values, base)?,
        retention: Retention {
            keep: values.required("retention.keep", plain)?,
            safety_age: values.required("retention.safety_age", within(Duration::ZERO..=AGE_MAX))?,
            prune_schedule: values.required("retention.prune_schedule", schedule)?,
        },
        verify: Verify {
            schedule: values.required("verify.schedule", schedule)?,
            within: values.required("verify.within", within(HOUR..=AGE_MAX))?,
            sql: values.optional("verify.sql", assertion)?,
            check_deadline: values.required("verify.check_deadline", within(SECOND..=DAY))?,
            max_age: values.optional("verify.max_age", within(SECOND..=AGE_MAX))?,
        },
        log: Log {
            format: values.required("log.format", log_format)?,
            level: values.required("log.level", plain)?,
        },
        process,
    })
}

fn databases(values: &Values, base: &Path) -> Result<DatabasePatterns> {
    let is_of_application = values.is_of_application(DATABASES);
    let patterns = values.list(DATABASES, |text| match is_of_application {
        true => DatabasePattern::of_application(text, base),
        false => DatabasePattern::parse(text, base),
    })?;
    let is_asked_for = !is_of_application && !patterns.is_empty();
    let skipped = if is_asked_for { Vec::new() } else { values.skipped.clone() };
    let databases = DatabasePatterns { patterns, skipped };
    databases.literals()?;
    Ok(databases)
}

fn storage(
    values: &Values,
    directory: &Path,
    sources: &Sources,
    process: &ProcessFacts,
) -> Result<StorageChoice> {
    let base = sources.current_directory.as_path();
    let bucket = values.optional("storage.bucket", aws::bucket)?;
    let use_aws = values.optional("storage.use_aws", switch)?.unwrap_or(bucket.is_some());
    let prefix = values.optional("storage.prefix", aws::prefix)?.unwrap_or_default();
    let path_style = values.optional("storage.path_style", switch)?;
    let allow_http = values.required("storage.allow_http", switch)?;
    let part_concurrency = values.required("storage.part_concurrency", |text| {
        number(text, NonZeroUsize::MIN..=NonZeroUsize::new(PART_CONCURRENCY_MAX).unwrap_or(NonZeroUsize::MIN))
    })?;
    if !use_aws {
        // What else the environment says about AWS may be meant for the application.
        return Ok(StorageChoice::Directory(directory.to_owned()));
    }
    let Some(bucket) = bucket else {
        return Err(
            values.refuse("storage.use_aws", "S3 needs a bucket: set storage.bucket (BACKUP_S3_BUCKET)")
        );
    };
    let endpoint_url = endpoint(values, "storage.endpoint_url", allow_http, HTTP_UNASKED)?;
    // Backups in clear show data; a token in clear is anybody's key to all of it.
    let sts_endpoint_url = endpoint(values, "aws.sts_endpoint_url", false, TOKEN_IN_CLEAR)?;
    let provider = store_provider(values)?;
    let region = values.optional("aws.region", aws::region)?;
    let identity = identity::identity(values, &sources.environment, process, base)?;
    if matches!(identity, Identity::Role(_)) {
        identity::check_region(values, region.as_deref(), sts_endpoint_url.is_some())?;
        if !provider.takes_roles() {
            let reason = "this store does not know the credentials of a role of AWS: remove the endpoint (as \
                          `fly storage create` sets it) to use S3, or set aws.auth (BACKUP_AWS_AUTH) to static \
                          to use its own key";
            return Err(values.refuse("storage.endpoint_url", reason));
        }
    }
    let credentials = Credentials { identity, sts_endpoint_url };
    Ok(StorageChoice::S3(Box::new(S3 {
        bucket,
        prefix,
        region,
        endpoint_url,
        provider,
        path_style,
        part_concurrency,
        credentials,
    })))
}

fn endpoint(values: &Values, key: &str, allow_http: bool, reason: &str) -> Result<Option<String>> {
    let uri = values.optional(key, aws::endpoint)?;
    if !allow_http && uri.as_ref().is_some_and(aws::is_in_clear) {
        return Err(values.refuse(key, reason));
    }
    Ok(values.text(key).map(str::to_owned))
}

/// The provider that is named, or that the endpoint tells.
fn store_provider(values: &Values) -> Result<Provider> {
    let endpoint = values.optional("storage.endpoint_url", aws::endpoint)?;
    let named = values.optional("storage.provider", provider)?;
    match named {
        Some(named) if named != Provider::Aws && endpoint.is_none() => {
            let reason =
                "a store that is not AWS needs an endpoint: set storage.endpoint_url (AWS_ENDPOINT_URL_S3)";
            Err(values.refuse("storage.provider", reason))
        }
        named => Ok(named.unwrap_or_else(|| Provider::of(endpoint.as_ref()))),
    }
}

fn capture(values: &Values) -> Result<Capture> {
    Ok(Capture {
        on: values.required("capture.on", switch)?,
        interval: values.required("capture.interval", within(Duration::from_millis(100)..=HOUR))?,
        point_in_time: values.required("capture.point_in_time", within(HOUR..=AGE_MAX))?,
    })
}

fn backup(values: &Values, capture: Capture) -> Result<Backup> {
    let (schedule, uncaptured_schedule) = match values.optional("backup.schedule", schedule)? {
        Some(schedule) => (schedule.clone(), schedule),
        None if capture.on => (Some(SCHEDULE_WITH_CAPTURE.to_owned()), Some(SCHEDULE.to_owned())),
        None => (Some(SCHEDULE.to_owned()), Some(SCHEDULE.to_owned())),
    };
    let threads = values.required("backup.threads", |text| number(text, 0..=THREADS_MAX))?;
    Ok(Backup {
        schedule,
        uncaptured_schedule,
        on_shutdown: values.required("backup.on_shutdown", switch)?,
        shutdown_deadline: values.required("backup.shutdown_deadline", within(SECOND..=HOUR))?,
        deadline: values.required("backup.deadline", within(SECOND..=2 * DAY))?,
        busy_timeout: values.required("backup.busy_timeout", within(Duration::ZERO..=600 * SECOND))?,
        wal_growth_bytes_max: values
            .required("backup.wal_growth_max", |text| size(text, WAL_GROWTH_BYTES_MIN))?,
        writer_blocked_max: values
            .required("backup.writer_blocked_max", within(Duration::from_millis(100)..=600 * SECOND))?,
        zstd_level: values.required("backup.zstd_level", |text| number(text, LEVELS))?,
        threads: NonZeroUsize::new(threads),
    })
}

fn http(values: &Values, base: &Path) -> Result<Http> {
    let token_file = values.optional("http.token_file", |text| path(text, base))?;
    let tokens = match (values.optional("http.token", tokens)?, &token_file) {
        (Some(_), Some(_)) => {
            return Err(values.refuse("http.token_file", "http.token is set too: keep one of the two"));
        }
        (Some(tokens), None) => tokens,
        (None, Some(file)) => {
            let text = read_file(file)?;
            tokens(&text).map_err(|reason| values.refuse("http.token_file", &reason))?
        }
        (None, None) => Vec::new(),
    };
    Ok(Http {
        addr: values.required("http.addr", addr)?,
        tokens,
        token_file,
        connections_max: values.required("http.connections_max", |text| number(text, 1..=CONNECTIONS_MAX))?,
        allowed_hosts: values.list("http.allowed_hosts", host)?,
    })
}

pub(super) fn path(text: &str, base: &Path) -> Parsed<PathBuf> {
    if text.contains('\0') {
        return Err("a path has no NUL character".into());
    }
    Ok(base.join(text).components().collect())
}

fn plain(text: &str) -> Parsed<String> {
    Ok(text.to_owned())
}

pub(super) fn within(range: RangeInclusive<Duration>) -> impl FnOnce(&str) -> Parsed<Duration> {
    move |text| duration(text, range)
}

fn restore_on_boot(text: &str) -> Parsed<RestoreOnBoot> {
    match text.to_lowercase().as_str() {
        "if-missing" => Ok(RestoreOnBoot::IfMissing),
        "always" => Ok(RestoreOnBoot::Always),
        "never" => Ok(RestoreOnBoot::Never),
        text => match switch(text) {
            Ok(true) => Ok(RestoreOnBoot::IfMissing),
            Ok(false) => Ok(RestoreOnBoot::Never),
            Err(_) => Err("it is one of never, if-missing, always".into()),
        },
    }
}

fn command_user(text: &str) -> Parsed<String> {
    let is_name = |name: &str| !name.is_empty() && !name.contains(|c: char| c == ':' || c.is_whitespace());
    let well_formed = match text.split_once(':') {
        Some((user, group)) => is_name(user) && is_name(group),
        None => is_name(text),
    };
    match well_formed {
        true => Ok(text.to_owned()),
        false => Err("it is USER or USER:GROUP, each a name or a number".into()),
    }
}

/// Whether it can be asked, and what it says, only the restored database tells.
fn assertion(text: &str) -> Parsed<String> {
    let word = text.trim_start().split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
    if !["select", "with"].contains(&word.to_lowercase().as_str()) {
        return Err("it is one SELECT (or WITH … SELECT) that returns 1 where all is well".into());
    }
    if text.len() > ASSERTION_BYTES_MAX {
        return Err(format!("it has at most {ASSERTION_BYTES_MAX} bytes"));
    }
    Ok(text.to_owned())
}

fn log_format(text: &str) -> Parsed<LogFormat> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("it is text or json".into()),
    }
}

fn addr(text: &str) -> Parsed<Option<SocketAddr>> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    let reason = "it is an IP address and a port (`[::]:9091` for IPv6), or off";
    text.parse().map(Some).map_err(|_| reason.to_owned())
}

/// The tokens that stand in `file` now: one, or two while callers change from one to the other.
///
/// `Config` if it cannot be read or holds anything else; the error tells the file, never its content.
pub fn read_tokens(file: &Path) -> Result<Vec<SecretString>> {
    tokens(&read_file(file)?)
        .map_err(|reason| Error::new(ErrorKind::Config, format!("{reason}: path=`{}`", file.display())))
}

fn tokens(text: &str) -> Parsed<Vec<SecretString>> {
    let tokens: Vec<&str> = text.split_whitespace().collect();
    if tokens.is_empty() || tokens.len() > TOKENS_MAX {
        return Err(format!("there are one or {TOKENS_MAX} tokens, separated by white space"));
    }
    tokens.into_iter().map(token).collect()
}

fn token(text: &str) -> Parsed<SecretString> {
    let is_header_text = text.bytes().all(|b| b.is_ascii_graphic());
    if text.len() < TOKEN_CHARS_MIN || !is_header_text {
        return Err(format!("a token has at least {TOKEN_CHARS_MIN} visible ASCII characters"));
    }
    Ok(SecretString::from(text))
}

/// Requests of a day; 0 is no limit.
fn requests(text: &str) -> Parsed<Requests> {
    Ok(NonZeroU64::new(number(text, 0..=u64::MAX)?).map_or(Requests::Unlimited, Requests::AtMost))
}

/// Bytes of a day, or `None` for `off`.
fn upload(text: &str) -> Parsed<Option<NonZeroU64>> {
    match text.eq_ignore_ascii_case("off") {
        true => Ok(None),
        false => size(text, UPLOAD_BYTES_MIN).map(NonZeroU64::new),
    }
}

/// Bytes of a spool, or 0 for none.
fn spool_bytes(text: &str) -> Parsed<u64> {
    match text.eq_ignore_ascii_case("off") || text == "0" {
        true => Ok(0),
        false => size(text, SPOOL_BYTES_MIN),
    }
}

fn host(text: &str) -> Parsed<String> {
    let host = text.to_lowercase();
    let is_name = host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    let is_v6 = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
    if !is_name && !is_v6 {
        return Err("a host is a name or an address, without scheme, port and path".into());
    }
    Ok(host)
}
