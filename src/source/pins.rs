//! Keeping a log from being restarted before it was read: two read transactions that take turns.

use std::time::Duration;

use super::connection::{Live, explain};
use super::locate::Source;
use crate::error::{Error, ErrorKind, Result};

/// Two connections, of which one at a time has a read transaction.
///
/// The application goes on writing, and its checkpoints follow the newer transaction; only the log cannot be
/// restarted while there is one, and grows.
pub struct Pins {
    source: Source,
    connections: [Live; 2],
    held: Option<usize>,
}

impl Pins {
    /// Connects, and pins nothing yet. `Source` if the database has no log; as long as this is there, it keeps the
    /// one it has.
    pub fn open(source: &Source, busy_timeout: Duration) -> Result<Pins> {
        let open = || {
            let live = Live::open(source.path(), busy_timeout)?;
            let mode = live.connection.query_row("PRAGMA journal_mode", [], |row| row.get::<_, String>(0));
            match mode.map_err(|error| explain(source.path(), "read", error))?.as_str() {
                "wal" => Ok(live),
                // A transaction would keep the application from committing.
                _ => Err(Error::new(
                    ErrorKind::Source,
                    format!("the database has no write-ahead log: path=`{}`", source.path().display()),
                )),
            }
        };
        Ok(Pins { source: source.clone(), connections: [open()?, open()?], held: None })
    }

    /// Pins the state as it is now; what was pinned before is let go after that.
    pub fn renew(&mut self) -> Result<()> {
        let next = self.held.map_or(0, |held| 1 - held);
        self.execute(next, "BEGIN; SELECT 1 FROM sqlite_schema LIMIT 1;")?;
        let before = self.held.replace(next);
        before.map_or(Ok(()), |before| self.execute(before, "COMMIT"))
    }

    /// Lets go: the log may be restarted.
    pub fn release(&mut self) -> Result<()> {
        self.held.take().map_or(Ok(()), |held| self.execute(held, "COMMIT"))
    }

    /// Whether there is a transaction.
    pub fn is_held(&self) -> bool {
        self.held.is_some()
    }

    fn execute(&self, index: usize, sql: &str) -> Result<()> {
        let done = self.connections[index].connection.execute_batch(sql);
        done.map_err(|error| explain(self.source.path(), "pin", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::wal::fixture::{Scene, checkpoint, run, touch};

    #[test]
    fn a_log_that_is_pinned_is_not_restarted_and_checkpoints_follow() {
        let (scene, app) = Scene::new(512);
        let source = Source::locate(&scene.path).expect("there");
        let mut pins = Pins::open(&source, Duration::from_secs(60)).expect("opens");
        touch(&app);
        let begin = scene.begin();
        for _ in 0..5 {
            // The newer pin is behind this one: all before it may go to the database.
            touch(&app);
            pins.renew().expect("pinned");
            assert!(pins.is_held());
            checkpoint(&app, "PASSIVE");
            touch(&app);
            assert_eq!(scene.begin(), begin, "restarted under the pin");
        }
        pins.release().expect("let go");
        assert!(!pins.is_held());
        checkpoint(&app, "PASSIVE");
        touch(&app);
        assert_ne!(scene.begin(), begin, "somebody keeps it");
    }

    #[test]
    fn a_database_without_a_log_is_not_pinned() {
        let (scene, app) = Scene::new(512);
        run(&app, "PRAGMA journal_mode=DELETE");
        let source = Source::locate(&scene.path).expect("there");
        let error = Pins::open(&source, Duration::ZERO).map(drop).expect_err("it would keep writers out");
        assert_eq!(error.kind(), ErrorKind::Source, "{error}");
    }
}
