//! Random lives of a database, read in random steps, against what SQLite reads.

use std::collections::VecDeque;

use proptest::collection::vec;
use proptest::prelude::*;
use rusqlite::Connection;

use crate::source::wal::fixture::{Meddled, Pages, Replica, Scene, add, checkpoint, pages, run, touch};
use crate::source::wal::reader::read;
use crate::source::wal::{Bounds, Outcome};

/// One thing that an application does.
#[derive(Debug, Clone)]
enum Deed {
    Touch(u8),
    Add(u8),
    Update(u8),
    Delete(u8),
    Vacuum,
    Shrink(u8),
    Spill(u8),
    RollBack(u8),
    RollBackToSavepoint(u8),
    Checkpoint(&'static str),
    Reopen,
}

fn deed() -> impl Strategy<Value = Deed> {
    let modes = prop::sample::select(vec!["PASSIVE", "FULL", "RESTART", "TRUNCATE"]);
    prop_oneof![
        8 => (1..6_u8).prop_map(Deed::Touch),
        3 => (1..40_u8).prop_map(Deed::Add),
        2 => (2..6_u8).prop_map(Deed::Update),
        2 => (1..5_u8).prop_map(Deed::Delete),
        1 => Just(Deed::Vacuum),
        1 => (1..40_u8).prop_map(Deed::Shrink),
        1 => (20..60_u8).prop_map(Deed::Spill),
        2 => (1..60_u8).prop_map(Deed::RollBack),
        1 => (1..60_u8).prop_map(Deed::RollBackToSavepoint),
        1 => modes.prop_map(Deed::Checkpoint),
        6 => Just(Deed::Checkpoint("FULL")),
        1 => Just(Deed::Reopen),
    ]
}

/// What happens in a life.
#[derive(Debug, Clone)]
enum Event {
    /// The connection with this number does it.
    Do(usize, Deed),
    /// The log is read, within bounds.
    Read(Bounds),
    /// The log is read, and before every so many reads, the first of them being this, something is done.
    Meddle { first: u32, every: u32, deeds: Vec<(usize, Deed)> },
}

fn event() -> impl Strategy<Value = Event> {
    let bounds =
        (prop::sample::select(vec![200 * 4096, 64 << 20]), prop::sample::select(vec![1, 7, 100_000]))
            .prop_map(|(bytes_max, frames_max)| Bounds { bytes_max, frames_max });
    let meddling = (0..25_u32, 1..8_u32, vec((0..2_usize, deed()), 1..5));
    prop_oneof![
        5 => (0..2_usize, deed()).prop_map(|(who, deed)| Event::Do(who, deed)),
        3 => bounds.prop_map(Event::Read),
        2 => meddling.prop_map(|(first, every, deeds)| Event::Meddle { first, every, deeds }),
    ]
}

/// A database that two connections use.
struct Life {
    scene: Scene,
    connections: Vec<Connection>,
    limit: i64,
}

impl Life {
    fn new(page_size: u32, auto_vacuum: u8, limit: i64) -> Life {
        let (scene, connection) = Scene::new(page_size);
        run(&connection, &format!("PRAGMA auto_vacuum={auto_vacuum}; VACUUM"));
        drop(connection);
        let mut life = Life { scene, connections: Vec::new(), limit };
        life.open(&mut || ());
        life
    }

    /// Does it; each of its commits is told.
    fn perform(&mut self, who: usize, deed: &Deed, told: &mut dyn FnMut()) {
        let connection = &self.connections[who];
        match deed {
            Deed::Touch(times) => (0..*times).for_each(|_| {
                touch(connection);
                told();
            }),
            Deed::Add(rows) => add(connection, u32::from(*rows)),
            Deed::Update(part) => {
                run(connection, &format!("UPDATE t SET x = randomblob(700) WHERE id % {part} = 0"));
            }
            Deed::Delete(part) => run(connection, &format!("DELETE FROM t WHERE id % {part} = 0")),
            Deed::Vacuum => run(connection, "VACUUM"),
            Deed::Shrink(pages) => {
                run(connection, "DELETE FROM t WHERE id % 2");
                told();
                run(connection, &format!("PRAGMA incremental_vacuum({pages})"));
            }
            Deed::Spill(rows) => {
                run(connection, "BEGIN");
                add(connection, u32::from(*rows));
                run(connection, "UPDATE t SET x = randomblob(900); COMMIT");
            }
            Deed::RollBack(rows) => {
                run(connection, "BEGIN");
                add(connection, u32::from(*rows));
                run(connection, "ROLLBACK");
            }
            Deed::RollBackToSavepoint(rows) => {
                run(connection, "BEGIN; INSERT INTO t(x) VALUES (1); SAVEPOINT s");
                add(connection, u32::from(*rows));
                run(connection, "DELETE FROM t WHERE id % 3; ROLLBACK TO s; UPDATE t SET x = 2; COMMIT");
            }
            Deed::Checkpoint(mode) => checkpoint(connection, mode),
            Deed::Reopen => {
                self.open(told);
                return;
            }
        }
        told();
    }

    /// Closes all connections, if there are any, and opens others.
    fn open(&mut self, told: &mut dyn FnMut()) {
        self.connections.clear();
        for _ in 0..2 {
            let connection = self.scene.open();
            let sql = format!("PRAGMA journal_size_limit={}", self.limit);
            connection.query_row(&sql, [], |row| row.get::<_, i64>(0)).expect("set");
            // A connection has the log open only once it has used it.
            touch(&connection);
            told();
            self.connections.push(connection);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happened, a copy kept up from the log is the database, or it is said that it may not be.
    #[test]
    fn a_copy_kept_up_from_the_log_is_the_database(
        page_size in prop::sample::select(vec![512_u32, 1024, 4096]),
        auto_vacuum in 0..3_u8,
        limit in prop::sample::select(vec![-1_i64, -1, 0, 30_000, 200_000]),
        events in vec(event(), 1..40),
    ) {
        let mut life = Life::new(page_size, auto_vacuum, limit);
        let mut replica = Replica::of(&life.scene.path);
        let everything = Bounds { bytes_max: 64 << 20, frames_max: 100_000 };
        replica.follow(&everything);
        let path = life.scene.path.clone();
        // All states since the log was last read to its end.
        let mut states = vec![pages(&path)];
        for event in &events {
            match event {
                Event::Do(who, deed) => {
                    life.perform(*who, deed, &mut || states.push(pages(&path)));
                }
                Event::Read(bounds) => {
                    replica.follow(bounds);
                    replica.compare("after a reading");
                    states = vec![pages(&path)];
                }
                Event::Meddle { first, every, deeds } => {
                    let Some(mark) = replica.mark.clone().filter(|_| life.scene.log_path().exists()) else { continue };
                    if !matches!(life.scene.outcome(&mark), Outcome::Read(_)) {
                        continue;
                    }
                    let mut deeds: VecDeque<_> = deeds.iter().collect();
                    let log = Meddled::new(&path, 500, |number| {
                        if number >= *first && (number - first).is_multiple_of(*every)
                            && let Some((who, deed)) = deeds.pop_front()
                        {
                            life.perform(*who, deed, &mut || states.push(pages(&path)));
                        }
                    });
                    let outcome = read(&log, &mark, &everything).expect("readable");
                    drop(log);
                    match outcome {
                        Outcome::Read(changes) => {
                            replica.apply(changes);
                            let unwritten = &replica.unwritten;
                            let is = |state: &Pages| {
                                state.len() == replica.pages.len()
                                    && state.iter().all(|(page, content)| {
                                        unwritten.contains(page) || replica.pages[page] == *content
                                    })
                            };
                            prop_assert!(states.iter().any(is), "no state that ever was");
                        }
                        Outcome::Lost(_) => replica.start_again(),
                    }
                    replica.follow(&everything);
                    replica.compare("after a reading with meddling");
                    states = vec![pages(&path)];
                }
            }
        }
    }
}
