//! What must be true of a database that was restored beside writers: it is a prefix of the order of
//! their commits, of whole transactions, and neither older nor newer than can be.

use std::collections::BTreeSet;
use std::path::Path;

use rusqlite::Connection;

use crate::oracle_writer::{Journal, SCHEMA};

/// What is wrong with the copy at `path`, if anything is; else the length of the prefix.
///
/// `before` are the writers' accounts from before the backup was asked for, `after` those from after
/// the copy was made.
pub fn judge(path: &Path, before: &[Journal], after: &[Journal]) -> Result<i64, String> {
    let copy = Connection::open(path).map_err(|error| error.to_string())?;
    let one =
        |sql: &str| copy.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(|error| error.to_string());
    let is = |what: &str, found: i64, expected: i64| match found == expected {
        true => Ok(()),
        false => Err(format!("{what}: {found}, not {expected}")),
    };
    let verdict: String =
        copy.query_row("PRAGMA integrity_check", [], |row| row.get(0)).map_err(|error| error.to_string())?;
    if verdict != "ok" {
        return Err(verdict);
    }
    let length = one("SELECT n FROM counter")?;
    is("transactions", one("SELECT count(*) FROM tx")?, length)?;
    is("the last transaction", one("SELECT coalesce(max(g), 0) FROM tx")?, length)?;
    let torn = "SELECT count(*) FROM tx WHERE parts !=
        (SELECT count(*) FROM part WHERE part.g = tx.g AND i BETWEEN 0 AND parts - 1)";
    is("torn transactions", one(torn)?, 0)?;
    is("rows of nobody", one("SELECT count(*) FROM pragma_foreign_key_check")?, 0)?;
    is("parts", one("SELECT count(*) FROM part")?, one("SELECT coalesce(sum(parts), 0) FROM tx")?)?;
    let gaps = "SELECT count(*) FROM (SELECT 1 FROM tx GROUP BY writer HAVING max(seq) != count(*) OR min(seq) != 1)";
    is("writers with a gap", one(gaps)?, 0)?;
    if names(&copy, "SELECT name FROM sqlite_schema WHERE name LIKE 'extra%' AND type = 'table'")
        != names(&copy, "SELECT name FROM made")
    {
        return Err("the schema is not of the same moment as the rows".to_owned());
    }
    bounds(&copy, before, after)?;
    let acknowledged =
        before.iter().flat_map(|journal| journal.committed.values()).max().copied().unwrap_or(0);
    match length >= acknowledged {
        true => Ok(length),
        false => {
            Err(format!("{acknowledged} was committed before the backup was asked for, {length} is there"))
        }
    }
}

/// Each writer's own numbers: all that it knew to be committed, nothing that it never began, and each
/// in the place it was told.
fn bounds(copy: &Connection, before: &[Journal], after: &[Journal]) -> Result<(), String> {
    let mut statement =
        copy.prepare("SELECT writer, seq, g FROM tx ORDER BY g").map_err(|error| error.to_string())?;
    let rows = statement
        .query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?)))
        .and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>)
        .map_err(|error| error.to_string())?;
    let mut last = vec![0; after.len()];
    for (writer, seq, g) in rows {
        let journal = &after[writer as usize];
        if seq > journal.begun {
            return Err(format!("writer {writer} never began {seq}"));
        }
        if journal.committed.get(&seq).is_some_and(|told| *told != g) {
            return Err(format!(
                "transaction {seq} of writer {writer} is in place {g}: {:?}",
                journal.committed[&seq]
            ));
        }
        last[writer as usize] = seq;
    }
    for (writer, journal) in before.iter().enumerate() {
        let acknowledged = journal.committed.keys().next_back().copied().unwrap_or(0);
        if last[writer] < acknowledged {
            return Err(format!(
                "writer {writer} had committed {acknowledged}, the copy ends with {}",
                last[writer]
            ));
        }
    }
    Ok(())
}

fn names(copy: &Connection, sql: &str) -> BTreeSet<String> {
    let mut statement = copy.prepare(sql).expect("a query");
    let rows = statement.query_map([], |row| row.get(0)).expect("names");
    rows.map(|name| name.expect("a name")).collect()
}

/// Two transactions of two writers, as their own accounts tell them.
fn history(copy: &Path) -> Vec<Journal> {
    let app = Connection::open(copy).expect("opens");
    app.execute_batch(SCHEMA).expect("made");
    app.execute_batch(
        "INSERT INTO tx VALUES (1, 0, 1, 2), (2, 1, 1, 1), (3, 0, 2, 1);
         INSERT INTO part VALUES (1, 0, ''), (1, 1, ''), (2, 0, ''), (3, 0, '');
         CREATE TABLE extra_0_2(x); INSERT INTO made VALUES (0, 'extra_0_2'); UPDATE counter SET n = 3;",
    )
    .expect("written");
    let journal = |begun, committed: &[(i64, i64)]| Journal {
        begun,
        committed: committed.iter().copied().collect(),
        counted: None,
    };
    vec![journal(2, &[(1, 1), (2, 3)]), journal(1, &[(1, 2)])]
}

#[test]
fn a_copy_that_is_no_prefix_is_found_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let spoiled = [
        ("DELETE FROM part WHERE g = 1 AND i = 1", "torn transactions"),
        ("DELETE FROM tx WHERE g = 2; DELETE FROM part WHERE g = 2", "transactions: 2"),
        ("DELETE FROM tx WHERE g = 3; UPDATE counter SET n = 2", "rows of nobody"),
        ("INSERT INTO part VALUES (9, 0, '')", "rows of nobody"),
        ("INSERT INTO part VALUES (3, 7, '')", "parts: 5"),
        ("DROP TABLE extra_0_2", "schema"),
        ("UPDATE tx SET seq = 3 WHERE g = 3", "gap"),
        ("INSERT INTO tx VALUES (4, 0, 3, 0); UPDATE counter SET n = 4", "never began 3"),
        (
            "DELETE FROM part WHERE g = 3; DELETE FROM tx WHERE g = 3; UPDATE counter SET n = 2",
            "writer 0 had committed 2",
        ),
    ];
    for (number, (sql, finding)) in spoiled.into_iter().enumerate() {
        let copy = dir.path().join(number.to_string());
        let journals = history(&copy);
        assert_eq!(judge(&copy, &journals, &journals), Ok(3));
        let spoilt =
            Connection::open(&copy).expect("opens").execute_batch(&format!("PRAGMA foreign_keys=OFF; {sql}"));
        let found = match spoilt {
            Ok(()) => judge(&copy, &journals, &journals).expect_err(sql),
            Err(error) => error.to_string(),
        };
        assert!(found.contains(finding), "{sql}: {found}");
    }
}
