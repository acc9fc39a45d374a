//! Every fault of a store, or of the way to it, at every request of a daemon's life in turn.
//!
//! Whatever happens, the life ends within its bound, well or with an error of the right kind that
//! shows no secret; afterwards nothing that was acknowledged is missing, and the next process goes on.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use futures::{StreamExt, stream};
use lifeboat::error::{Error, ErrorKind, Result};
use lifeboat::storage::Patience;

use crate::scripted_store_scene::Snapshots;
use crate::support::s3_server::{Fault, SECRET, Server, impatience};

use ErrorKind::{Conflict, Corrupt, Denied, NotFound, Unavailable};

/// No life takes longer, on a machine however busy.
const LIFE_MAX: Duration = Duration::from_secs(120);

/// Lives under way at once: while one waits for a silent store, others go on.
pub const LIVES_AT_ONCE: usize = 6;

pub const OVERLOADED: Fault = Fault::Status(503, "SlowDown");
pub const DENIED: Fault = Fault::Status(403, "AccessDenied");
const EXPIRED: Fault = Fault::Status(400, "ExpiredToken");
pub const FOR_GOOD: usize = usize::MAX;

/// What a daemon asks of a store in a life, and what must hold afterwards.
pub trait Life {
    /// A database on a machine, and a server.
    async fn start(patience: Patience) -> Self;

    /// Where it strikes.
    fn server(&self) -> &Server;

    /// From the start to the stop, up to the first error.
    async fn live(&mut self) -> Result<()>;

    /// The store is well again: what it has restores, and what was acknowledged is there.
    async fn check(&self);

    /// What storage holds, but for names and times: the same residue has the same future.
    async fn residue(&self) -> String;

    /// The next process goes on.
    async fn go_on(&mut self);
}

/// Ends soon where nobody answers.
fn hasty() -> Patience {
    Patience { attempt: Duration::from_secs(1), retries: 1, ..impatience() }
}

/// Every request of a life without any fault.
async fn requests<L: Life>() -> Vec<String> {
    let mut scene = L::start(impatience()).await;
    scene.live().await.expect("a calm life");
    let log = scene.server().log();
    scene.check().await;
    scene.go_on().await;
    log
}

fn shows_no_secret(error: &Error) {
    let chain = error.chain();
    for secret in [SECRET, "session-token-quoted", "Signature="] {
        assert!(!chain.contains(secret), "{chain}");
    }
}

/// Lives once for every request that `concerns` and strikes there, and checks what is left.
///
/// `kinds` are those an error may have, if the life does not end well; without any it must.
pub async fn sweep<L: Life>(
    fault: impl Fn(usize) -> (Patience, usize, Fault),
    concerns: impl Fn(&str) -> bool,
    kinds: &[ErrorKind],
) {
    let log = requests::<L>().await;
    let seen: Mutex<HashSet<String>> = Mutex::default();
    let indices = (0..log.len()).filter(|index| concerns(&log[*index]));
    let lives = indices.map(|index| {
        let (seen, (patience, times, fault), request) = (&seen, fault(index), &log[index]);
        async move {
            println!("{fault:?} at {index}: {request}");
            let mut scene = L::start(patience).await;
            scene.server().fault_at(index, times, fault);
            let ended = tokio::time::timeout(LIFE_MAX, scene.live()).await.expect("it ends");
            let about = format!("{fault:?} at {index}: {request}");
            if let Err(error) = &ended {
                assert!(kinds.contains(&error.kind()), "{about}: {:?}: {}", error.kind(), error.chain());
                shows_no_secret(error);
            }
            scene.check().await;
            let residue = scene.residue().await;
            if seen.lock().expect("not poisoned").insert(residue) {
                scene.go_on().await;
            }
            ended.is_ok()
        }
    });
    let ended: Vec<bool> = stream::iter(lives).buffer_unordered(LIVES_AT_ONCE).collect().await;
    let well = ended.iter().filter(|well| **well).count();
    println!("{} lives, {well} ended well", ended.len());
    assert!(!ended.is_empty());
}

pub fn any(_: &str) -> bool {
    true
}

pub fn reads(request: &str) -> bool {
    request.starts_with("GET ") && request.contains("x-id=GetObject")
}

pub fn stores(request: &str) -> bool {
    request.starts_with("PUT ") || request.starts_with("POST ")
}

/// Writes that have a condition.
pub fn writes(request: &str) -> bool {
    request.starts_with("PUT ") && !request.contains("partNumber=") || request.contains("?uploadId=")
}

/// Writes and removals, which count also when nobody hears of it.
pub fn changes(request: &str) -> bool {
    !request.starts_with("GET ") && !request.starts_with("HEAD ")
}

pub fn is_no_read(request: &str) -> bool {
    !reads(request)
}

pub fn is_list(request: &str) -> bool {
    request.contains("list-type=2")
}

fn is_of_upload(request: &str) -> bool {
    request.contains("uploadId=")
}

pub fn once(fault: Fault) -> impl Fn(usize) -> (Patience, usize, Fault) {
    move |_| (impatience(), 1, fault)
}

#[tokio::test]
async fn a_request_that_fails_once_fails_nothing() {
    let faults = [
        OVERLOADED,
        Fault::Status(500, "InternalError"),
        Fault::Status(429, "TooManyRequests"),
        Fault::Status(400, "RequestTimeout"),
        EXPIRED,
        Fault::Reset,
        Fault::Unanswered,
        Fault::Cut,
        Fault::Trickle(20, Duration::from_millis(2)),
    ];
    let lives = faults.map(|fault| fails_once::<Snapshots>(impatience(), 0, 1, fault));
    stream::iter(lives).buffer_unordered(LIVES_AT_ONCE).collect::<()>().await;
}

/// A busy machine may be silent, too: so the bound is not short, and lives share the waiting.
#[tokio::test]
async fn a_request_that_nobody_answers_once_fails_nothing() {
    const SHARES: usize = 12;
    let patience = || Patience { attempt: Duration::from_secs(2), retries: 6, ..impatience() };
    let lives = (0..SHARES).map(|share| fails_once::<Snapshots>(patience(), share, SHARES, Fault::Silence));
    futures::future::join_all(lives).await;
}

pub async fn fails_once<L: Life>(patience: Patience, share: usize, shares: usize, fault: Fault) {
    let mut scene = L::start(patience).await;
    scene.server().fault_once_each(share, shares, fault);
    let lived = tokio::time::timeout(LIFE_MAX, scene.live()).await.expect("it ends");
    lived.unwrap_or_else(|error| panic!("{fault:?}: {}", error.chain()));
    scene.check().await;
    scene.go_on().await;
}

#[tokio::test]
async fn an_answer_that_is_lost_loses_nothing() {
    sweep::<Snapshots>(once(Fault::Unanswered), changes, &[]).await;
}

#[tokio::test]
async fn a_store_that_is_overloaded_from_some_request_on() {
    sweep::<Snapshots>(|_| (impatience(), FOR_GOOD, OVERLOADED), any, &[Unavailable]).await;
}

#[tokio::test]
async fn a_store_that_allows_nothing_from_some_request_on() {
    sweep::<Snapshots>(|_| (impatience(), FOR_GOOD, DENIED), any, &[Denied]).await;
}

/// To everything above storage these are one of the two before: each takes every fourth request.
#[tokio::test]
async fn a_store_that_cannot_be_used_from_some_request_on() {
    let fault = |index| match index % 4 {
        0 => (hasty(), FOR_GOOD, Fault::Silence),
        1 => (impatience(), FOR_GOOD, EXPIRED),
        2 => (impatience(), FOR_GOOD, Fault::Status(301, "PermanentRedirect")),
        _ => (impatience(), FOR_GOOD, Fault::Reset),
    };
    sweep::<Snapshots>(fault, any, &[Unavailable, Denied]).await;
}

#[tokio::test]
async fn one_refusal() {
    sweep::<Snapshots>(once(DENIED), any, &[Denied]).await;
}

#[tokio::test]
async fn one_error_that_says_200() {
    sweep::<Snapshots>(once(Fault::ErrorInside200), is_no_read, &[Unavailable, Corrupt]).await;
    sweep::<Snapshots>(once(Fault::ForeignPage), stores, &[Unavailable, Corrupt, Denied]).await;
}

#[tokio::test]
async fn one_object_that_is_not_found_or_half() {
    let kinds = [NotFound, Corrupt, Conflict, Unavailable];
    sweep::<Snapshots>(once(Fault::Status(404, "NoSuchKey")), reads, &kinds).await;
    sweep::<Snapshots>(once(Fault::Halved), reads, &kinds).await;
}

#[tokio::test]
async fn one_write_that_is_refused_for_its_condition() {
    sweep::<Snapshots>(once(Fault::Status(412, "PreconditionFailed")), writes, &[Conflict, Corrupt]).await;
    sweep::<Snapshots>(once(Fault::Status(409, "ConditionalRequestConflict")), writes, &[Unavailable]).await;
    sweep::<Snapshots>(once(Fault::Status(501, "NotImplemented")), writes, &[Denied]).await;
}

#[tokio::test]
async fn one_upload_that_is_gone() {
    sweep::<Snapshots>(once(Fault::Status(404, "NoSuchUpload")), is_of_upload, &[Unavailable]).await;
}

#[tokio::test]
async fn one_listing_that_is_out_of_date() {
    sweep::<Snapshots>(once(Fault::Stale), is_list, &[Conflict, Unavailable]).await;
}
