//! Every look is bounded in time, and so are all of them together.

use std::time::Duration;

use tokio::time::Instant;

use crate::disk::blocking;
use crate::error::{Error, ErrorKind, Result};

/// A request of storage, and what hangs on a disk.
pub(super) const LOOK: Duration = Duration::from_secs(10);

/// A token, or its exchange, of which each has several tries.
pub(super) const IDENTITY: Duration = Duration::from_secs(15);

/// What takes a request for each snapshot.
pub(super) const SURVEY: Duration = Duration::from_secs(60);

/// A whole diagnosis.
const ALL: Duration = Duration::from_secs(120);

/// `act`, unless it takes longer than one look may; then `Unavailable`.
pub async fn bounded_look<T>(act: impl Future<Output = Result<T>>) -> Result<T> {
    bounded(LOOK, act).await
}

async fn bounded<T>(limit: Duration, act: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, act).await.unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Unavailable, format!("no answer within {} s", limit.as_secs())))
    })
}

/// The time that is left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    until: Instant,
}

impl Patience {
    pub(super) fn begin() -> Patience {
        Patience { until: Instant::now() + ALL }
    }

    /// `act`, unless it takes longer than `limit`; then `Unavailable`. `Limit` if all the time is up.
    pub(super) async fn bounded<T>(self, limit: Duration, act: impl Future<Output = Result<T>>) -> Result<T> {
        let in_time = tokio::time::timeout_at(self.until, bounded(limit, act)).await;
        in_time.unwrap_or_else(|_| {
            let minutes = ALL.as_secs() / 60;
            let message = format!(
                "the {minutes} minutes of a diagnosis are over; look at one database with --name NAME"
            );
            Err(Error::new(ErrorKind::Limit, message))
        })
    }

    /// The same for what may hang on a disk; its thread is then abandoned.
    pub(super) async fn blocking<T: Send + 'static>(
        self,
        what: &'static str,
        act: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.bounded(LOOK, blocking(what, act)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_look_outlasts_its_bound_nor_all_together_theirs() {
        let began = Instant::now();
        let patience = Patience::begin();
        let forever = || std::future::pending::<Result<()>>();
        let error = patience.bounded(LOOK, forever()).await.expect_err("too late");
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (ErrorKind::Unavailable, "no answer within 10 s")
        );
        for _ in 0..100 {
            assert!(patience.bounded(LOOK, forever()).await.is_err());
        }
        assert_eq!(began.elapsed(), ALL);
        assert_eq!(patience.bounded(LOOK, forever()).await.expect_err("too late").kind(), ErrorKind::Limit);
        patience.bounded(LOOK, async { Ok(()) }).await.expect("what is there is taken");
    }
}
