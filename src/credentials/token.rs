//! Where identity tokens come from: the machine's own socket first, then a file.
//!
//! A token lives for minutes, so it is fetched anew for every exchange and kept nowhere.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, Serializer};
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use super::Role;
use super::claims::{AUDIENCE, Claims, Unusable};
use super::fault::{Class, Fault};
use super::machine_socket;
use crate::clock::Clock;

/// A token is a kilobyte or two; more of an answer or of a file is not read, in bytes.
pub(super) const TOKEN_BYTES_MAX: u64 = 64 << 10;

/// How long one source may take to give a token.
const SOURCE_TIME_MAX: Duration = Duration::from_secs(5);

/// The pause between two looks at sources that are not there yet.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// A place where tokens come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenSource {
    /// The socket through which a machine of fly.io speaks to its host.
    MachineSocket,
    /// A file that somebody keeps fresh: fly.io's init, or the kubelet.
    File,
}

impl TokenSource {
    /// The stable name used in JSON, metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            TokenSource::MachineSocket => "machine-socket",
            TokenSource::File => "token-file",
        }
    }
}

impl Serialize for TokenSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A token that AWS would take by its claims, and where it came from.
#[derive(Debug)]
pub struct Token {
    pub(super) secret: SecretString,
    /// What it says.
    pub claims: Claims,
    /// Where it came from.
    pub source: TokenSource,
    /// Sources that were asked before and had none.
    pub passed_over: Vec<(TokenSource, Fault)>,
}

/// A token from the first source that has one; nothing is exchanged.
///
/// Sources that may be on their way up are looked at again for `role.token_wait`. `Err` has what
/// each source said last.
pub async fn fetch_token(role: &Role, clock: &Clock) -> Result<Token, Fault> {
    fetch(role, clock, &AtomicBool::new(false)).await
}

/// The same; that it waits is said if it was not `told` before.
pub(super) async fn fetch(role: &Role, clock: &Clock, told: &AtomicBool) -> Result<Token, Fault> {
    let began = Instant::now();
    loop {
        let mut faults = Vec::new();
        for (source, path) in sources(role) {
            match fetch_from(source, path, clock).await {
                Ok((secret, claims)) => return Ok(Token { secret, claims, source, passed_over: faults }),
                Err(fault) => faults.push((source, fault)),
            }
        }
        let may_come = faults.iter().any(|(_, fault)| fault.class.may_pass_soon());
        if !may_come || began.elapsed() + LOOK_AGAIN > role.token_wait {
            return Err(none_of(&faults));
        }
        if !told.swap(true, Ordering::Relaxed) {
            tracing::info!(
                wait_ms = role.token_wait.as_millis() as u64,
                "waiting for an identity token: {}",
                words(&faults)
            );
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The sources that the role has, in the order in which they are asked.
fn sources(role: &Role) -> impl Iterator<Item = (TokenSource, &Path)> {
    let socket = role.machine_socket.as_deref().map(|path| (TokenSource::MachineSocket, path));
    socket.into_iter().chain(role.web_identity_token_file.as_deref().map(|path| (TokenSource::File, path)))
}

async fn fetch_from(
    source: TokenSource,
    path: &Path,
    clock: &Clock,
) -> Result<(SecretString, Claims), Fault> {
    let asked = async {
        match source {
            TokenSource::MachineSocket => machine_socket::ask(path).await,
            TokenSource::File => read(path).await,
        }
    };
    let text =
        tokio::time::timeout(SOURCE_TIME_MAX, asked).await.unwrap_or_else(|_| Err(too_slow(source, path)))?;
    let token = SecretString::from(unwrapped(text.expose_secret()));
    match Claims::usable(token.expose_secret(), clock.now()) {
        Ok(claims) => Ok((token, claims)),
        Err(unusable) => Err(explained(unusable, source, text.expose_secret(), clock)),
    }
}

async fn read(file: &Path) -> Result<SecretString, Fault> {
    let shown = file.display();
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Fault::new(Class::FileAbsent, format!("there is no token file: path=`{shown}`"))
        }
        _ => Fault::new(Class::FileUnreadable, format!("read the token file: {error}: path=`{shown}`")),
    };
    let opened = tokio::fs::File::open(file).await.map_err(failed)?;
    let mut text = String::new();
    opened.take(TOKEN_BYTES_MAX).read_to_string(&mut text).await.map_err(failed)?;
    Ok(text.into())
}

/// The token out of what some wrap around it: white space, a JSON text, an object with it.
fn unwrapped(text: &str) -> String {
    let text = text.trim();
    let inner = match serde_json::from_str(text) {
        Ok(serde_json::Value::String(token)) => Some(token),
        Ok(serde_json::Value::Object(object)) => ["token", "value", "id_token"]
            .iter()
            .find_map(|name| object.get(*name)?.as_str())
            .map(str::to_owned),
        _ => None,
    };
    inner.map_or_else(|| text.to_owned(), |token| token.trim().to_owned())
}

fn too_slow(source: TokenSource, path: &Path) -> Fault {
    let (seconds, shown) = (SOURCE_TIME_MAX.as_secs(), path.display());
    match source {
        TokenSource::MachineSocket => Fault::new(
            Class::SocketSilent,
            format!("the machine socket gave no answer within {seconds} s: path=`{shown}`"),
        ),
        TokenSource::File => Fault::new(
            Class::FileUnreadable,
            format!("reading the token file took more than {seconds} s: path=`{shown}`"),
        ),
    }
}

/// Says what was found, and not a character of it.
fn explained(unusable: Unusable, source: TokenSource, text: &str, clock: &Clock) -> Fault {
    let place = match source {
        TokenSource::MachineSocket => "the machine socket",
        TokenSource::File => "the token file",
    };
    match unusable {
        Unusable::Malformed(_) if text.trim().is_empty() => {
            Fault::new(Class::TokenMalformed, format!("{place} is empty"))
        }
        Unusable::Malformed(_) if text.trim_start().starts_with('<') => {
            let class = match source {
                TokenSource::MachineSocket => Class::SocketAnswer,
                TokenSource::File => Class::TokenMalformed,
            };
            Fault::new(class, format!("{place} has a page of HTML or XML where a token should be"))
        }
        Unusable::Malformed(why) => Fault::new(
            Class::TokenMalformed,
            format!("{place} has no whole token: {why}: size_bytes=`{}`", text.len()),
        ),
        Unusable::Expired(at) => Fault::new(
            Class::TokenExpired,
            format!("the token from {place} has expired: expired_at=`{at}` clock=`{:.0}`", clock.now()),
        ),
        Unusable::Audience(audience) => Fault::new(
            Class::TokenAudience,
            format!(
                "the token from {place} is not for AWS: aud=`{}` wanted=`{AUDIENCE}`",
                audience.join(" ").escape_debug()
            ),
        ),
    }
}

/// The fault of the whole: of the source that is most likely to be put right, with the words of all.
fn none_of(faults: &[(TokenSource, Fault)]) -> Fault {
    let transient = faults.iter().find(|(_, fault)| fault.class.kind().is_transient());
    let present =
        faults.iter().find(|(_, fault)| !matches!(fault.class, Class::SocketAbsent | Class::FileAbsent));
    match transient.or(present).or(faults.last()) {
        None => Fault::new(
            Class::NoToken,
            "a role is set but no source of identity tokens: set AWS_WEB_IDENTITY_TOKEN_FILE or BACKUP_MACHINE_SOCKET",
        ),
        Some((_, fault)) => Fault::new(fault.class, format!("get an identity token: {}", words(faults))),
    }
}

fn words(faults: &[(TokenSource, Fault)]) -> String {
    faults.iter().map(|(_, fault)| fault.text.as_str()).collect::<Vec<_>>().join("; ")
}
