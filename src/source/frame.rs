//! What a few reads tell of a database of any size: whether its frame stands, not what is in its pages.

use rusqlite::{Connection, OptionalExtension};

/// Trees looked at, at most, and pages of the list of unused ones: each costs one read.
const READS_MAX: i64 = 1_000;

/// The complaints, if any. An error if SQLite cannot even read the schema.
///
/// By opening and reading the schema SQLite itself has looked at the header, and that the file is as
/// long as the header says. Here: that each table and index begins on a page of the database that can
/// be the root of one, and that the list of unused pages is one, as far as it is followed. Damage anywhere
/// else is not seen.
pub(super) fn frame(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    connection.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema;")?;
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let pages = number("PRAGMA page_count")?;
    let mut complaints: Vec<String> = roots(connection, pages)?;
    complaints.extend(unused(connection, pages, number("PRAGMA freelist_count")?)?);
    connection.execute_batch("COMMIT")?;
    Ok(complaints)
}

/// The first bytes of a page, or what SQLite has in its place; `None` if there is no such page.
fn page(connection: &Connection, number: i64) -> rusqlite::Result<Option<Vec<u8>>> {
    let sql = "SELECT substr(data, 1, 112) FROM sqlite_dbpage('main') WHERE pgno = ?1";
    connection.query_row(sql, [number], |row| row.get(0)).optional()
}

/// What the first byte of a page says if it can be the root of a table or an index.
const TREE_PAGES: [u8; 4] = [2, 5, 10, 13];

fn roots(connection: &Connection, pages: i64) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection
        .prepare("SELECT name, rootpage FROM sqlite_schema WHERE rootpage > 0 ORDER BY rootpage LIMIT ?1")?;
    let roots =
        statement.query_map([READS_MAX], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
    let mut complaints = Vec::new();
    for root in roots {
        let (name, number) = root?;
        let first = match number <= pages {
            true => page(connection, number)?.and_then(|page| page.first().copied()),
            false => None,
        };
        if !first.is_some_and(|first| TREE_PAGES.contains(&first)) {
            complaints.push(format!("`{name}` does not begin on page {number}, where the schema says"));
        }
    }
    Ok(complaints)
}

/// Follows the list of unused pages: each of its own pages names the next one, and how many it lists.
fn unused(connection: &Connection, pages: i64, count: i64) -> rusqlite::Result<Option<String>> {
    let broken = |what: String| Ok(Some(format!("the list of unused pages is broken: {what}")));
    if !(0..pages).contains(&count) {
        return broken(format!("it counts {count} of {pages} pages"));
    }
    let word = |page: &[u8], at: usize| {
        page.get(at..at + 4)
            .map_or(0, |word| i64::from(u32::from_be_bytes(word.try_into().expect("four bytes"))))
    };
    let Some(header) = page(connection, 1)? else { return Ok(None) };
    let (mut next, mut listed, mut reads) = (word(&header, 32), 0, 0);
    while next != 0 && reads < READS_MAX {
        if next > pages {
            return broken(format!("it goes on at page {next} of {pages}"));
        }
        let Some(trunk) = page(connection, next)? else { break };
        listed += 1 + word(&trunk, 4);
        if listed > count {
            return broken(format!("it lists more than the {count} pages it counts"));
        }
        (next, reads) = (word(&trunk, 0), reads + 1);
    }
    match next {
        0 if listed != count => broken(format!("it lists {listed} pages and counts {count}")),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::source::connection::Live;

    const PAGE: usize = 4096;

    /// A database with tables, an index and unused pages, all written to the file.
    fn database(folder: &tempfile::TempDir) -> PathBuf {
        let path = folder.path().join("app.db");
        let sql = "CREATE TABLE t(x); CREATE INDEX i ON t(x); CREATE TABLE gone(x);
            WITH RECURSIVE n(k) AS (SELECT 1 UNION ALL SELECT k+1 FROM n WHERE k < 3000)
            INSERT INTO gone SELECT randomblob(4000) FROM n;
            INSERT INTO t VALUES (1); DROP TABLE gone; CREATE VIEW v AS SELECT * FROM t;";
        Connection::open(&path).expect("opens").execute_batch(sql).expect("fills");
        path
    }

    /// What is found after `change` was made to the file.
    fn found(change: impl FnOnce(&mut Vec<u8>)) -> rusqlite::Result<Vec<String>> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = database(&folder);
        let mut bytes = fs::read(&path).expect("readable");
        change(&mut bytes);
        fs::write(&path, bytes).expect("written");
        frame(&Live::open_unexplained(&path, Duration::ZERO)?.connection)
    }

    fn word(bytes: &[u8], at: usize) -> usize {
        u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
    }

    #[test]
    fn a_database_that_is_whole_has_a_frame() {
        assert_eq!(found(|_| {}).expect("readable"), Vec::<String>::new());
    }

    #[test]
    fn a_cut_file_is_no_database() {
        found(|bytes| bytes.truncate(bytes.len() - PAGE)).expect_err("shorter than its header says");
    }

    #[test]
    fn damage_to_the_frame_is_seen() {
        type Change = fn(&mut Vec<u8>);
        let cases: [(Change, &str); 6] = [
            (|bytes| bytes[PAGE..2 * PAGE].fill(0), "`t` does not begin on page 2"),
            (|bytes| bytes[2 * PAGE..3 * PAGE].fill(0xff), "`i` does not begin on page 3"),
            (|bytes| bytes[36..40].copy_from_slice(&u32::MAX.to_be_bytes()), "it counts"),
            (|bytes| bytes[32..36].copy_from_slice(&0x00ff_ffff_u32.to_be_bytes()), "it goes on at page"),
            (|bytes| bytes[32..36].copy_from_slice(&[0; 4]), "it lists 0 pages and counts"),
            (
                |bytes| {
                    let trunk = (word(bytes, 32) - 1) * PAGE;
                    bytes[trunk + 4..trunk + 8].copy_from_slice(&u32::MAX.to_be_bytes());
                },
                "it lists more than",
            ),
        ];
        for (change, expected) in cases {
            let complaints = found(change).expect("the schema can be read");
            assert_eq!(complaints.len(), 1, "{expected}: {complaints:?}");
            assert!(complaints[0].contains(expected), "{expected}: {complaints:?}");
        }
    }
}
