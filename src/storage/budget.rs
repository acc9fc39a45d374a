//! Storage that is asked for no more than a day may cost.
//!
//! What begins something is refused at the limit, what finishes something a tenth above it, and what only
//! reads never: so a limit that is too low costs snapshots, but neither a restore nor half a snapshot.

use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;

use super::{Entry, Guarantees, Object, Operation, Parts, Storage, Version};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::BudgetMetrics;
use crate::snapshot::Key;

const DAY_SECONDS: i64 = 24 * 3_600;

/// At this much of a limit, in percent, it is said in the log, once a day.
const WARN_PERCENT: u128 = 80;

/// What finishes may go above a limit by one part in this many, and by this many requests at least.
const RESERVE_DIVISOR: u64 = 10;
const RESERVE_REQUESTS_MIN: u64 = 100;

/// S3 answers a listing in pages of this many objects, each a request.
const LIST_PAGE: u64 = 1_000;

/// What may be spent in one day; `None` is without limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Allowance {
    /// Requests.
    pub requests: Option<NonZeroU64>,
    /// Bytes sent to storage.
    pub uploaded_bytes: Option<NonZeroU64>,
}

/// What an operation is for, as far as it can be told from the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// The data of a snapshot, a listing, a sweep: refused once a limit is reached.
    Begin,
    /// Records and removals, which finish or undo what was begun.
    Finish,
    /// What a restore consists of: counted, never refused.
    Read,
}

impl Class {
    const fn name(self) -> &'static str {
        match self {
            Class::Begin => "begin",
            Class::Finish => "finish",
            Class::Read => "read",
        }
    }

    /// How far it may go where `limit` is set.
    fn bound(self, limit: u64, reserve_min: u64) -> u64 {
        match self {
            Class::Begin => limit,
            Class::Finish => limit.saturating_add((limit / RESERVE_DIVISOR).max(reserve_min)),
            Class::Read => u64::MAX,
        }
    }
}

tokio::task_local! {
    static UNLIMITED: ();
}

/// Does `work` with no regard to a budget; what it asks of storage is counted all the same.
///
/// For what must not fail for a limit: a restore, which stores the database first, and the last snapshot on
/// the way out. Holds for operations begun on this task, not for those of tasks that it spawns.
pub async fn regardless_of_budget<T>(work: impl Future<Output = T>) -> T {
    UNLIMITED.scope((), work).await
}

fn is_limited() -> bool {
    UNLIMITED.try_with(|()| ()).is_err()
}

/// Passes on what the day's allowance covers, and counts it. Days are those of UTC.
///
/// It counts in memory only: a new process begins with a whole allowance. Repetitions inside one operation are
/// not seen and not counted.
#[derive(Debug, Clone)]
pub struct Budgeted {
    inner: Arc<dyn Storage>,
    ledger: Arc<Ledger>,
}

impl Budgeted {
    /// Asks `inner` for no more than `allowance`, by the day of `clock`.
    pub fn new(
        inner: Arc<dyn Storage>,
        allowance: Allowance,
        clock: Clock,
        metrics: BudgetMetrics,
    ) -> Budgeted {
        metrics.limits(allowance.requests, allowance.uploaded_bytes);
        let day = Mutex::new(Day::of(clock.now()));
        Budgeted { inner, ledger: Arc::new(Ledger { allowance, clock, metrics, day }) }
    }

    async fn spend<T>(
        &self,
        operation: Operation,
        class: Class,
        bytes: u64,
        act: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.ledger.charge(operation, class, is_limited(), 1, bytes)?;
        act.await
    }
}

#[derive(Debug)]
struct Ledger {
    allowance: Allowance,
    clock: Clock,
    metrics: BudgetMetrics,
    day: Mutex<Day>,
}

/// What was spent on one day.
#[derive(Debug)]
struct Day {
    /// Days since 1970.
    number: i64,
    requests: u64,
    bytes: u64,
    has_warned: bool,
    has_refused: bool,
}

impl Day {
    fn of(now: Timestamp) -> Day {
        let number = now.as_second().div_euclid(DAY_SECONDS);
        Day { number, requests: 0, bytes: 0, has_warned: false, has_refused: false }
    }

    /// When the next one begins.
    fn end(&self) -> Timestamp {
        Timestamp::from_second((self.number + 1) * DAY_SECONDS).unwrap_or(Timestamp::MAX)
    }
}

/// One limit and how far it is used.
struct Measure {
    key: &'static str,
    unit: &'static str,
    limit: Option<NonZeroU64>,
    spent: u64,
    asked: u64,
    reserve_min: u64,
}

impl Measure {
    /// Whether `class` may not have what it asks for.
    fn refuses(&self, class: Class) -> bool {
        let above = |limit: NonZeroU64| {
            self.asked > 0
                && self.spent.saturating_add(self.asked) > class.bound(limit.get(), self.reserve_min)
        };
        self.limit.is_some_and(above)
    }

    fn is_nearly_used(&self) -> bool {
        let spent = self.spent.saturating_add(self.asked);
        self.limit.is_some_and(|limit| u128::from(spent) * 100 >= u128::from(limit.get()) * WARN_PERCENT)
    }
}

impl Ledger {
    /// Counts an operation, or refuses it.
    fn charge(
        &self,
        operation: Operation,
        class: Class,
        is_limited: bool,
        requests: u64,
        bytes: u64,
    ) -> Result<()> {
        let now = self.clock.now();
        let mut day = self.day.lock().unwrap_or_else(PoisonError::into_inner);
        // Also after a clock went back: an allowance too many is better than none until that day returns.
        if Day::of(now).number != day.number {
            *day = Day::of(now);
            self.metrics.new_day();
        }
        let measures = [
            Measure {
                key: "storage.requests_per_day",
                unit: "requests",
                limit: self.allowance.requests,
                spent: day.requests,
                asked: requests,
                reserve_min: RESERVE_REQUESTS_MIN,
            },
            Measure {
                key: "storage.upload_per_day",
                unit: "bytes",
                limit: self.allowance.uploaded_bytes,
                spent: day.bytes,
                asked: bytes,
                reserve_min: 0,
            },
        ];
        if is_limited && let Some(measure) = measures.iter().find(|measure| measure.refuses(class)) {
            self.metrics.refused(operation.name());
            let error = refusal(operation, measure, day.end());
            if !std::mem::replace(&mut day.has_refused, true) {
                tracing::error!("backups pause: {error}");
            }
            return Err(error);
        }
        if let Some(measure) = measures.iter().find(|measure| measure.is_nearly_used())
            && !std::mem::replace(&mut day.has_warned, true)
        {
            tracing::warn!(
                key = measure.key, resets_at = %day.end(),
                "{WARN_PERCENT} % of what a day may ask of storage are used up; at the limit no snapshot is begun: \
                 key=`{}` limit=`{}`",
                measure.key, measure.limit.map_or(0, NonZeroU64::get)
            );
        }
        day.requests = day.requests.saturating_add(requests);
        day.bytes = day.bytes.saturating_add(bytes);
        self.metrics.spent(class.name(), requests, bytes);
        Ok(())
    }
}

fn refusal(operation: Operation, measure: &Measure, resets_at: Timestamp) -> Error {
    let Measure { key, unit, limit, spent, .. } = measure;
    let limit = limit.map_or(0, NonZeroU64::get);
    let message = format!(
        "{}: the {unit} of a day are used up, until midnight UTC or a higher limit: key=`{key}` limit=`{limit}` \
         used=`{spent}` resets_at=`{resets_at}`",
        operation.verb()
    );
    Error::new(ErrorKind::Limit, message)
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Storage for Budgeted {
    fn location(&self) -> String {
        self.inner.location()
    }

    /// Each part is a request, and where there are several, two more begin and end them. A limit that is
    /// passed in the middle ends the parts, so that the storage undoes what it began.
    async fn create(&self, key: &Key, parts: Parts) -> Result<()> {
        let class = if matches!(key, Key::Snapshot(..)) { Class::Begin } else { Class::Finish };
        let (is_limited, ledger) = (is_limited(), Arc::clone(&self.ledger));
        // Before the first part is made: making it reads the database.
        if class == Class::Begin {
            ledger.charge(Operation::Create, class, is_limited, 1, 0)?;
        }
        let charged = u64::from(class == Class::Begin);
        let parts = parts.enumerate().map(move |(at, part)| {
            let part = part?;
            let (class, requests) = match at {
                0 => (class, 1 - charged),
                1 => (Class::Finish, 3),
                _ => (Class::Finish, 1),
            };
            ledger.charge(Operation::Create, class, is_limited, requests, part.len() as u64)?;
            Ok(part)
        });
        self.inner.create(key, parts.boxed()).await
    }

    async fn replace(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version> {
        let sent = bytes.len() as u64;
        self.spend(Operation::Replace, Class::Finish, sent, self.inner.replace(key, expected, bytes)).await
    }

    async fn read(&self, key: &Key, bytes_max: usize) -> Result<Object> {
        self.spend(Operation::Read, Class::Read, 0, self.inner.read(key, bytes_max)).await
    }

    async fn read_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.spend(Operation::ReadRange, Class::Read, 0, self.inner.read_range(key, range)).await
    }

    async fn head(&self, key: &Key) -> Result<Option<Entry>> {
        self.spend(Operation::Head, Class::Read, 0, self.inner.head(key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        let listed = self.spend(Operation::List, Class::Begin, 0, self.inner.list(prefix)).await?;
        // How many pages it had is known afterwards, when there is nothing to refuse any more.
        let more = listed.len() as u64 / LIST_PAGE;
        self.ledger.charge(Operation::List, Class::Read, false, more, 0)?;
        Ok(listed)
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.spend(Operation::Delete, Class::Finish, 0, self.inner.delete(key)).await
    }

    async fn sweep_unfinished(&self, older_than: Timestamp) -> Result<u64> {
        let sweep = self.inner.sweep_unfinished(older_than);
        self.spend(Operation::Sweep, Class::Begin, 0, sweep).await
    }

    fn guarantees(&self) -> Guarantees {
        self.inner.guarantees()
    }
}

#[cfg(test)]
mod tests;
