//! What follows from what a storage answered. Pure.

use jiff::SignedDuration;

use super::{Greeted, Looked, Tried};
use crate::config::StorageChoice;
use crate::doctor::check::Check;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::Guarantees;

const REACHABLE: &str = "storage.reachable";
const REGION: &str = "storage.region";
const CLOCK: &str = "storage.clock";
const PUT: &str = "storage.put";
const GET: &str = "storage.get";
const LIST: &str = "storage.list";
const CREATE_ONLY: &str = "storage.create-only";
const COMPARE_AND_SWAP: &str = "storage.compare-and-swap";
const ABORT: &str = "storage.abort-multipart";
const DELETE: &str = "storage.delete";

const ALL: [&str; 10] =
    [REACHABLE, REGION, CLOCK, PUT, GET, LIST, CREATE_ONLY, COMPARE_AND_SWAP, ABORT, DELETE];

/// The checks of the storage, in an order that does not change.
pub(in crate::doctor) fn judge(looked: &Result<Looked>, choice: &StorageChoice, prunes: bool) -> Vec<Check> {
    let looked = match looked {
        Ok(looked) => looked,
        Err(error) => return without_storage(error, choice),
    };
    let greeted = &looked.greeted;
    let mut checks =
        vec![Check::ok(REACHABLE, looked.location.clone()), region(greeted, choice), clock(greeted, choice)];
    match &looked.tried {
        Some(tried) => checks.extend(Rights { tried, choice }.judge(prunes)),
        None => {
            checks.extend(ALL[3..].iter().map(|name| Check::skipped(name, "the bucket is in another region")))
        }
    }
    checks
}

/// The checks of a storage that cannot be opened, or does not answer.
fn without_storage(error: &Error, choice: &StorageChoice) -> Vec<Check> {
    let (means, action) = match (choice, error.kind()) {
        (_, ErrorKind::Config) => ("the configuration of storage is wrong", "correct what the message names"),
        (StorageChoice::S3(_), ErrorKind::Denied) => (
            "no request was allowed: the bucket's name, the credentials or the role are wrong",
            "correct BACKUP_S3_BUCKET or AWS_REGION, or see the checks of the identity below",
        ),
        (StorageChoice::S3(_), _) => (
            "no backup can be stored and none restored while this lasts",
            "see that this machine reaches the store (AWS_ENDPOINT_URL_S3, AWS_REGION, the network), and try again",
        ),
        (StorageChoice::Directory(_), _) => (
            "no backup can be stored in this directory",
            "make the directory one that this user may write to (BACKUP_DIR), on a disk that answers",
        ),
    };
    let unreachable = Check::failure(REACHABLE, error.chain(), means, action);
    let rest = ALL[1..].iter().map(|name| Check::skipped(name, "storage cannot be used"));
    std::iter::once(unreachable).chain(rest).collect()
}

fn region(greeted: &Greeted, choice: &StorageChoice) -> Check {
    let StorageChoice::S3(s3) = choice else { return Check::skipped(REGION, "a directory has none") };
    let configured = s3.region.as_deref().unwrap_or("not set");
    let found = greeted.greeting.region.as_deref();
    match (greeted.greeting.is_elsewhere, found) {
        (true, Some(region)) => Check::failure(
            REGION,
            format!("the bucket is in `{region}`, AWS_REGION is `{configured}`"),
            "the store sends every request away",
            format!("set AWS_REGION={region}"),
        ),
        (true, None) => Check::failure(
            REGION,
            format!(
                "the bucket is in another region than `{configured}`, and the store does not say in which"
            ),
            "the store sends every request away",
            "look up the bucket's region and set AWS_REGION to it",
        ),
        (false, Some(region)) => Check::ok(REGION, format!("the bucket is in `{region}`")),
        (false, None) => Check::ok(REGION, format!("the store takes `{configured}`")),
    }
}

/// A clock that is this far off is not kept by anything.
const DRIFT_NOTABLE: SignedDuration = SignedDuration::from_secs(5);

/// S3 refuses requests signed more than 15 minutes off.
const DRIFT_MAX: SignedDuration = SignedDuration::from_mins(14);

fn clock(greeted: &Greeted, choice: &StorageChoice) -> Check {
    let Some(drift) = drift(greeted) else { return Check::skipped(CLOCK, "the store names no time") };
    let is_s3 = matches!(choice, StorageChoice::S3(_));
    let found = match drift.is_zero() {
        true => return Check::ok(CLOCK, "this machine and the store show the same time"),
        false => {
            let side = if drift.is_positive() { "ahead of" } else { "behind" };
            format!("the store is {:#} {side} this machine", drift.abs())
        }
    };
    let action = "have this machine's clock set by NTP (after a suspend it may take a moment)";
    match drift.abs() {
        drift if drift <= DRIFT_NOTABLE => Check::ok(CLOCK, found),
        drift if drift >= DRIFT_MAX && is_s3 => Check::failure(
            CLOCK,
            found,
            "S3 refuses what is signed with a clock more than 15 minutes off",
            action,
        ),
        _ => {
            let refusal = if is_s3 { ", and S3 refuses what is signed more than 15 minutes off" } else { "" };
            let means = format!("snapshots carry times that are off by that much{refusal}");
            Check::warning(CLOCK, found, means, action)
        }
    }
}

/// By how much the store's clock is ahead, as far as the time between question and answer and
/// whole seconds leave a doubt: then zero.
fn drift(greeted: &Greeted) -> Option<SignedDuration> {
    let shown = greeted.greeting.time?;
    let ahead = shown.duration_since(greeted.answered_at);
    let behind = shown.duration_since(greeted.asked_at) + SignedDuration::from_secs(1);
    Some(match (ahead.is_positive(), behind.is_negative()) {
        (true, _) => ahead,
        (_, true) => behind,
        _ => SignedDuration::ZERO,
    })
}

/// What was tried, and where.
struct Rights<'a> {
    tried: &'a Tried,
    choice: &'a StorageChoice,
}

impl Rights<'_> {
    fn judge(&self, prunes: bool) -> [Check; 7] {
        [
            self.put(),
            self.get(),
            self.list(),
            self.create_only(),
            self.compare_and_swap(),
            self.abort(),
            self.delete(prunes),
        ]
    }

    fn put(&self) -> Check {
        match &self.tried.put {
            Ok(()) => Check::ok(PUT, "works"),
            Err(error) => Check::failure(
                PUT,
                error.chain(),
                "no backup can be stored",
                self.allow(error, "s3:PutObject"),
            ),
        }
    }

    fn get(&self) -> Check {
        match (&self.tried.get, &self.tried.put) {
            (Ok(()), _) => Check::ok(GET, "works"),
            // S3 says that an object is absent only to who may list.
            (Err(error), Err(_)) if error.kind() == ErrorKind::NotFound => {
                Check::ok(GET, "works (asked for what is not there)")
            }
            (Err(error), Err(_)) if error.kind() == ErrorKind::Denied => {
                Check::skipped(GET, "nothing could be written that could be read")
            }
            (Err(error), _) => Check::failure(
                GET,
                error.chain(),
                "no backup can be restored or proven, and none taken: a backup begins by reading what is newest",
                self.allow(error, "s3:GetObject"),
            ),
        }
    }

    fn list(&self) -> Check {
        match (&self.tried.list, &self.tried.put) {
            (Ok(true), _) => Check::ok(LIST, "works"),
            (Ok(false), Err(_)) => Check::ok(LIST, "works (nothing was there to be listed)"),
            (Ok(false), Ok(())) => Check::warning(
                LIST,
                "an object that was just written is not in the list",
                "the store lists late: pruning and finding a snapshot by time may miss the newest",
                "use a store that lists what it has, as S3 does",
            ),
            (Err(error), _) => Check::warning(
                LIST,
                error.chain(),
                "backups, and restoring the newest or one by its id, work; listing, drills of older snapshots, pruning and \
             restoring by time do not",
                self.allow(error, "s3:ListBucket (on the bucket itself)"),
            ),
        }
    }

    fn create_only(&self) -> Check {
        self.condition(
            CREATE_ONLY,
            |found| found.create_only,
            "the store overwrites objects although told not to",
        )
    }

    fn compare_and_swap(&self) -> Check {
        let found = "the store has no compare-and-swap";
        self.condition(COMPARE_AND_SWAP, |found| found.compare_and_swap, found)
    }

    fn condition(&self, name: &'static str, holds: fn(&Guarantees) -> bool, lack: &str) -> Check {
        match &self.tried.conditions {
            None => Check::skipped(name, "it takes an object that can be written and read"),
            Some(Err(error)) => Check::warning(
                name,
                error.chain(),
                "what the store does when two processes write at once is not known",
                "allow s3:PutObject on objects that exist, too (the head and the proofs are replaced), or try again",
            ),
            Some(Ok(found)) if holds(found) => Check::ok(name, "honoured"),
            Some(Ok(_)) => Check::warning(
                name,
                lack,
                "Lifeboat looks before it writes, which two processes at once can outrun",
                "make sure that only one process backs up each database, or use a store that honours conditions on writes",
            ),
        }
    }

    fn abort(&self) -> Check {
        match &self.tried.abort {
            Ok(()) => Check::ok(ABORT, "works"),
            Err(error) => Check::warning(
                ABORT,
                error.chain(),
                "uploads that are cut off stay in the bucket, unseen and paid for",
                format!(
                    "{}, or let a lifecycle rule abort incomplete uploads after a day",
                    self.allow(error, "s3:AbortMultipartUpload")
                ),
            ),
        }
    }

    fn delete(&self, prunes: bool) -> Check {
        match &self.tried.delete {
            Ok(()) => Check::ok(DELETE, "works"),
            Err(error) if error.kind() == ErrorKind::Denied => {
                let pruning = match prunes {
                    true => {
                        "; what retention.prune_schedule wants removed is reported and stays: prune with another role, or set it to `off`"
                    }
                    false => "; another role, or the bucket's lifecycle, has to prune",
                };
                let means = format!(
                    "append-only: who takes over this machine cannot remove backups{pruning}. The probe, 16 bytes, stays"
                );
                Check::note(DELETE, error.chain(), means)
            }
            Err(error) => Check::warning(
                DELETE,
                error.chain(),
                "nothing can be pruned while this lasts, and a probe of 16 bytes may have stayed",
                "try again",
            ),
        }
    }

    /// What to do about a right that is not there, or about what else kept it from being tried.
    fn allow(&self, error: &Error, action: &str) -> String {
        match error.kind() {
            ErrorKind::Denied if matches!(self.choice, StorageChoice::S3(_)) => {
                format!("allow {action} to these credentials")
            }
            ErrorKind::Denied => "make the directory, and all in it, this user's own".to_owned(),
            ErrorKind::Limit => "make room".to_owned(),
            _ => "see that the store is well, and try again".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
