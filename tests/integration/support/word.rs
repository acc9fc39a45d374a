//! A database that says one word: which one tells what a restore has brought back.

use std::path::Path;

use rusqlite::Connection;

use crate::support::program::Program;

/// Makes the word `new`.
const CHANGE: &str = "UPDATE t SET word = 'new' WHERE word IS NOT NULL";

/// A program with a snapshot that says `old`, of the database that `fill` makes: a table `t` with one
/// `word`. The database has said `new` since, and is closed.
pub fn with_snapshot_of(fill: &str) -> Program {
    let program = Program::new();
    let app = program.app(fill);
    program.succeed(&["backup"]);
    app.execute_batch(CHANGE).expect("changes");
    program
}

/// What a database says; it must be whole.
pub fn word(database: &Path) -> String {
    let connection = Connection::open(database).expect("opens");
    let whole: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("checks");
    assert_eq!(whole, "ok");
    connection.query_row("SELECT word FROM t WHERE word IS NOT NULL", [], |row| row.get(0)).expect("queries")
}
