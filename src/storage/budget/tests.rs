//! What is refused at a limit, and what never is.

use super::super::{Memory, whole};
use super::*;
use crate::snapshot::SnapshotId;

const NOON: &str = "2026-11-22T12:00:00Z";

/// A storage that allows so much, and the clock by which it does.
struct Bank {
    storage: Budgeted,
    now: Arc<Mutex<Timestamp>>,
}

impl Bank {
    fn with(requests: u64, uploaded_bytes: u64) -> Bank {
        let now = Arc::new(Mutex::new(NOON.parse().expect("a time")));
        let clock = Clock::from_fn({
            let now = Arc::clone(&now);
            move || *now.lock().expect("not poisoned")
        });
        let allowance = Allowance {
            requests: NonZeroU64::new(requests),
            uploaded_bytes: NonZeroU64::new(uploaded_bytes),
        };
        let storage = Budgeted::new(Arc::new(Memory::default()), allowance, clock, BudgetMetrics::default());
        Bank { storage, now }
    }

    fn spent(&self) -> (u64, u64) {
        let day = self.storage.ledger.day.lock().expect("not poisoned");
        (day.requests, day.bytes)
    }

    async fn store(&self, number: u32, parts: usize) -> Result<()> {
        let part = || Ok(Bytes::from_static(&[7; 100]));
        let parts = futures::stream::iter((0..parts).map(move |_| part())).boxed();
        self.storage.create(&data(number), parts).await
    }
}

fn data(number: u32) -> Key {
    Key::Snapshot("app".parse().expect("a name"), id(number))
}

fn id(number: u32) -> SnapshotId {
    format!("20261122T120000.000Z-{number:08x}").parse().expect("an id")
}

fn record(number: u32) -> Key {
    Key::Manifest("app".parse().expect("a name"), id(number))
}

#[tokio::test]
async fn what_begins_is_refused_at_the_limit_and_says_until_when() {
    let bank = Bank::with(3, 0);
    for number in 0..3 {
        bank.store(number, 1).await.expect("within the limit");
    }
    let refused = [
        bank.store(3, 1).await.expect_err("used up"),
        bank.storage.list("app/").await.expect_err("used up"),
        bank.storage.sweep_unfinished(Timestamp::MIN).await.expect_err("used up"),
    ];
    for error in refused {
        assert_eq!(error.kind(), ErrorKind::Limit);
        for part in ["key=`storage.requests_per_day`", "limit=`3`", "resets_at=`2026-11-23T00:00:00Z`"] {
            assert!(error.to_string().contains(part), "no {part}: {error}");
        }
    }
    assert!(bank.storage.head(&data(3)).await.expect("looks").is_none(), "nothing was stored");
}

#[tokio::test]
async fn what_was_begun_is_finished_within_a_reserve_and_reading_goes_on_for_ever() {
    let bank = Bank::with(1, 0);
    bank.store(0, 1).await.expect("the only one");
    for number in 0..RESERVE_REQUESTS_MIN as u32 {
        bank.storage.create(&record(number), whole("a record")).await.expect("finishes");
    }
    let error =
        bank.storage.create(&record(500), whole("a record")).await.expect_err("the reserve is used up");
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert!(
        bank.storage.delete(&record(0)).await.is_err()
            && bank.storage.replace(&record(0), None, "x".into()).await.is_err()
    );
    for _ in 0..1_000 {
        bank.storage.read(&record(0), 100).await.expect("a restore reads");
        bank.storage.read_range(&data(0), 0..1).await.expect("a restore reads");
    }
    assert_eq!(bank.spent().0, 1 + RESERVE_REQUESTS_MIN + 2_000, "reading is counted");
}

#[tokio::test]
async fn a_restore_and_the_last_snapshot_heed_no_limit_but_count() {
    let bank = Bank::with(1, 1);
    let all = async {
        bank.storage.list("app/").await?;
        bank.store(0, 3).await?;
        bank.storage.list("app/").await
    };
    regardless_of_budget(all).await.expect("not refused");
    assert_eq!(bank.spent(), (1 + 5 + 1, 300));
    assert!(bank.storage.list("app/").await.is_err(), "afterwards it is again");
}

#[tokio::test]
async fn bytes_end_an_upload_in_the_middle_and_nothing_is_left() {
    let bank = Bank::with(0, 1_000);
    let error = bank.store(0, 20).await.expect_err("too much");
    assert!(
        error.chain().contains("key=`storage.upload_per_day` limit=`1000` used=`1100`"),
        "{}",
        error.chain()
    );
    assert!(bank.storage.head(&data(0)).await.expect("looks").is_none());
    assert_eq!(bank.store(1, 1).await.expect_err("still").kind(), ErrorKind::Limit);
    assert_eq!(bank.spent().1, 1_100, "a tenth above it");
}

#[tokio::test]
async fn midnight_begins_anew() {
    let bank = Bank::with(1, 0);
    bank.store(0, 1).await.expect("the only one");
    let set = |time: &str| *bank.now.lock().expect("not poisoned") = time.parse().expect("a time");
    set("2026-11-22T23:59:59Z");
    bank.store(1, 1).await.expect_err("still the same day");
    set("2026-11-23T00:00:00Z");
    bank.store(1, 1).await.expect("another day");
    assert_eq!(bank.spent().0, 1);
}

#[tokio::test]
async fn without_a_limit_everything_is_counted_and_nothing_refused() {
    let bank = Bank::with(0, 0);
    for number in 0..300 {
        bank.store(number, 2).await.expect("no limit");
    }
    bank.storage.list("app/").await.expect("no limit");
    assert_eq!(bank.spent(), (300 * 4 + 1, 300 * 200));
}

#[tokio::test]
async fn four_fifths_are_said_once() {
    let bank = Bank::with(10, 0);
    let has_warned = || bank.storage.ledger.day.lock().expect("not poisoned").has_warned;
    for number in 0..7 {
        bank.store(number, 1).await.expect("stored");
    }
    assert!(!has_warned());
    bank.store(7, 1).await.expect("stored");
    assert!(has_warned());
}

#[tokio::test]
async fn the_metrics_show_limit_use_and_refusals() {
    let metrics = crate::metrics::Metrics::new();
    let allowance = Allowance { requests: NonZeroU64::new(1), uploaded_bytes: NonZeroU64::new(5_000) };
    let storage =
        Budgeted::new(Arc::new(Memory::default()), allowance, Clock::system(), metrics.budget().clone());
    storage.create(&data(0), whole("seven b")).await.expect("stored");
    storage.head(&data(0)).await.expect("looks");
    storage.list("app/").await.expect_err("used up");
    let text = metrics.render().expect("renders");
    for line in [
        "lifeboat_budget_requests_limit 1",
        "lifeboat_budget_upload_limit_bytes 5000",
        r#"lifeboat_budget_requests{class="begin"} 1"#,
        r#"lifeboat_budget_requests{class="read"} 1"#,
        "lifeboat_budget_upload_bytes 7",
        r#"lifeboat_budget_refused_total{operation="list"} 1"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
}
