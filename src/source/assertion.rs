//! A user's own test of a restored copy: one SELECT that must say yes.

use std::path::Path;
use std::time::Instant;

use rusqlite::Connection;
use rusqlite::types::{Type, ValueRef};

use super::connection::{explain, open_copy};
use crate::error::{Error, ErrorKind, Result};

/// What an assertion answered where it should have said yes.
enum Answer {
    Yes,
    /// The reason, which shows nothing of the data but a number.
    No(String),
}

/// Asks the private copy at `path` the question `sql`: one SELECT whose first row must have a number
/// other than 0 in its first column.
///
/// `Unhealthy` if the answer is anything else, or if the copy cannot be asked this; `Limit` if there
/// is none by `deadline`.
pub fn require_assertion(path: &Path, sql: &str, deadline: Instant) -> Result<()> {
    let fails = |why: String| Error::new(ErrorKind::Unhealthy, format!("{why}: verify.sql=`{sql}`"));
    let answered = open_copy(path, deadline).and_then(|connection| ask(&connection, sql));
    match answered {
        Ok(Answer::Yes) => Ok(()),
        Ok(Answer::No(what)) => {
            Err(fails(format!("the assertion does not hold for the restored database, {what}")))
        }
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted) => {
            Err(explain(path, "ask the assertion of", error))
        }
        Err(error) => {
            Err(fails("the assertion cannot be asked of the restored database".to_owned()).because(error))
        }
    }
}

fn ask(connection: &Connection, sql: &str) -> rusqlite::Result<Answer> {
    // More than one statement is an error.
    let mut statement = connection.prepare(sql)?;
    if !statement.readonly() || statement.column_count() == 0 {
        return Ok(Answer::No("for it is no SELECT".to_owned()));
    }
    let mut rows = statement.query([])?;
    Ok(match rows.next()? {
        None => Answer::No("it returned no row".to_owned()),
        Some(row) => match row.get_ref(0)? {
            ValueRef::Integer(0) => Answer::No("it returned 0".to_owned()),
            ValueRef::Real(0.0) => Answer::No("it returned 0.0".to_owned()),
            ValueRef::Integer(_) | ValueRef::Real(_) => Answer::Yes,
            other => Answer::No(format!("it returned {} where a number belongs", name(other.data_type()))),
        },
    })
}

fn name(data_type: Type) -> &'static str {
    match data_type {
        Type::Null => "null",
        Type::Integer | Type::Real => "a number",
        Type::Text => "text",
        Type::Blob => "a blob",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ENDLESS: &str =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT count(*) FROM n";

    fn asked(sql: &str, time: Duration) -> Result<()> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("copy.db");
        let database = Connection::open(&path).expect("opens");
        let fill = "CREATE TABLE orders(total); INSERT INTO orders VALUES (3), (4)";
        database.execute_batch(fill).expect("fills");
        drop(database);
        let answer = require_assertion(&path, sql, Instant::now() + time);
        let left: Vec<_> = std::fs::read_dir(folder.path()).expect("listed").collect();
        assert_eq!(left.len(), 1, "{sql}: nothing appears beside the copy");
        let database = Connection::open(&path).expect("opens");
        let total: i64 =
            database.query_row("SELECT sum(total) FROM orders", [], |row| row.get(0)).expect("sums");
        assert_eq!(total, 7, "{sql}: nothing was changed");
        answer
    }

    #[test]
    fn only_a_number_that_is_not_zero_is_a_yes() {
        for sql in ["SELECT count(*) = 2 FROM orders", "SELECT 0.5;", "WITH n AS (SELECT -1) SELECT * FROM n"]
        {
            asked(sql, Duration::from_secs(60)).expect(sql);
        }
        for (sql, reason) in [
            ("SELECT count(*) > 2 FROM orders", "it returned 0"),
            ("SELECT 0.0", "it returned 0.0"),
            ("SELECT total FROM orders WHERE total > 10", "no row"),
            ("SELECT 'secret'", "text where a number"),
            ("SELECT NULL", "null where"),
            ("SELECT x'01'", "a blob where"),
            ("SELECT * FROM customers", "no such table: customers"),
            ("SELEC 1", "syntax error"),
            ("", "it is no SELECT"),
            ("SELECT 1; SELECT 1", "Multiple statements"),
            ("SELECT 1; DELETE FROM orders", "Multiple statements"),
        ] {
            let error = asked(sql, Duration::from_secs(60)).expect_err(sql);
            assert_eq!(error.kind(), ErrorKind::Unhealthy, "{sql}: {error}");
            assert!(error.chain().contains(reason), "{sql}: {}", error.chain());
            assert!(!error.chain().replace(sql, "").contains("secret"), "{}", error.chain());
        }
    }

    #[test]
    fn nothing_else_can_be_done_with_it() {
        for sql in [
            "DELETE FROM orders RETURNING 1",
            "UPDATE orders SET total = 9 RETURNING 1",
            "ATTACH '/etc/passwd' AS other",
            "ATTACH ':memory:' AS other",
            "VACUUM INTO '/tmp/lifeboat-assertion-leak.db'",
            "SELECT load_extension('/tmp/evil.so')",
            "CREATE TEMP TABLE t AS SELECT 1",
        ] {
            let error = asked(sql, Duration::from_secs(60)).expect_err(sql);
            assert_eq!(error.kind(), ErrorKind::Unhealthy, "{sql}: {error}");
        }
        assert!(!Path::new("/tmp/lifeboat-assertion-leak.db").exists());
    }

    #[test]
    fn an_answer_that_does_not_come_is_not_waited_for() {
        let began = Instant::now();
        let error = asked(ENDLESS, Duration::from_millis(200)).expect_err("it never ends");
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }
}
