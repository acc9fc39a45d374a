//! A database with a log, what SQLite reads of it, and a copy that is kept up from the log alone.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use rusqlite::Connection;
use tempfile::TempDir;

use super::chain::Bytes;
use super::format::{ByteOrder, Checksum, FRAME_HEADER_BYTES, HEADER_BYTES, Header, frame_checksum};
use super::{Bounds, Changes, Log, Loss, Mark, Outcome};
use crate::source::locate::log_path;

pub const BOUNDS: Bounds = Bounds { bytes_max: 64 << 20, frames_max: 100_000 };

/// A database in WAL mode in a folder of its own.
pub struct Scene {
    pub folder: TempDir,
    pub path: PathBuf,
}

impl Scene {
    /// The database has a table `t(id INTEGER PRIMARY KEY, x)`; all of its log is in the file.
    pub fn new(page_size: u32) -> (Scene, Connection) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("app.db");
        let scene = Scene { folder, path };
        let connection = scene.open();
        run(&connection, &format!("PRAGMA page_size={page_size}; PRAGMA journal_mode=WAL"));
        run(&connection, "CREATE TABLE t(id INTEGER PRIMARY KEY, x); PRAGMA wal_checkpoint(TRUNCATE)");
        (scene, connection)
    }

    /// Another connection, which checkpoints only when told to.
    pub fn open(&self) -> Connection {
        let connection = Connection::open(&self.path).expect("opens");
        connection.busy_timeout(Duration::from_secs(60)).expect("set");
        run(&connection, "PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=10; PRAGMA synchronous=OFF");
        connection
    }

    pub fn log(&self) -> Log {
        Log::of(&self.path)
    }

    pub fn log_path(&self) -> PathBuf {
        log_path(&self.path)
    }

    pub fn log_bytes(&self) -> Vec<u8> {
        fs::read(self.log_path()).expect("readable")
    }

    /// A mark at the very end of the log, when nobody writes.
    pub fn mark(&self) -> Mark {
        let settled = self.log().mark().expect("readable").expect("a log");
        self.read(&settled).mark
    }

    /// A mark before the first frame of the log.
    pub fn begin(&self) -> Mark {
        let header = self.log_bytes().first_chunk().and_then(Header::parse).expect("a header");
        Mark::start(&header, fs::metadata(self.log_path()).expect("a log").ino())
    }

    pub fn read(&self, mark: &Mark) -> Changes {
        match self.outcome(mark) {
            Outcome::Read(changes) => changes,
            Outcome::Lost(loss) => panic!("lost: {loss}"),
        }
    }

    pub fn lost(&self, mark: &Mark) -> Loss {
        match self.outcome(mark) {
            Outcome::Read(changes) => panic!("read: {} transactions", changes.transactions),
            Outcome::Lost(loss) => loss,
        }
    }

    pub fn outcome(&self, mark: &Mark) -> Outcome {
        self.log().read(mark, &BOUNDS).expect("readable")
    }
}

pub fn run(connection: &Connection, sql: &str) {
    connection.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Adds `rows` rows, each nearly a third of a page of 4096 bytes.
pub fn add(connection: &Connection, rows: u32) {
    let sql = "WITH RECURSIVE n(k) AS (SELECT 1 UNION ALL SELECT k+1 FROM n WHERE k < ?1)
        INSERT INTO t(x) SELECT randomblob(1200) FROM n";
    connection.execute(sql, [rows]).expect("adds");
}

/// One transaction of few pages.
pub fn touch(connection: &Connection) {
    run(connection, "INSERT INTO t(x) VALUES (hex(randomblob(8)))");
}

pub fn checkpoint(connection: &Connection, mode: &str) {
    let sql = format!("PRAGMA wal_checkpoint({mode})");
    connection.query_row(&sql, [], |_| Ok(())).expect("asked");
}

/// The pages of a database.
pub type Pages = BTreeMap<u32, Box<[u8]>>;

/// All pages as SQLite reads them, in one transaction.
pub fn pages(path: &Path) -> Pages {
    let connection = Connection::open(path).expect("opens");
    connection.busy_timeout(Duration::from_secs(60)).expect("set");
    let mut statement = connection.prepare("SELECT pgno, data FROM sqlite_dbpage('main')").expect("known");
    let rows =
        statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?.into()))).expect("asked");
    rows.collect::<rusqlite::Result<_>>().expect("pages")
}

/// A copy of a database, kept up from the log.
pub struct Replica {
    pub path: PathBuf,
    pub mark: Option<Mark>,
    pub pages: Pages,
    /// Pages whose content the log did not tell.
    pub unwritten: BTreeSet<u32>,
}

impl Replica {
    pub fn of(path: &Path) -> Replica {
        let mut replica =
            Replica { path: path.to_owned(), mark: None, pages: Pages::new(), unwritten: BTreeSet::new() };
        replica.start_again();
        replica
    }

    /// A mark, and then what SQLite reads: exact only after the next reading.
    pub fn start_again(&mut self) {
        self.mark = Log::of(&self.path).mark().expect("readable");
        self.pages = pages(&self.path);
        self.unwritten.clear();
    }

    pub fn apply(&mut self, changes: Changes) {
        let page_count_before = self.pages.len() as u32;
        let unwritten: Vec<u32> = changes.unwritten(page_count_before).collect();
        if let Some(page_count) = changes.page_count {
            self.pages.retain(|page, _| *page <= page_count);
            self.unwritten.retain(|page| *page <= page_count);
        }
        for (page, content) in changes.pages {
            self.unwritten.remove(&page);
            self.pages.insert(page, content);
        }
        for page in unwritten {
            self.unwritten.insert(page);
            self.pages.entry(page).or_default();
        }
        self.mark = Some(changes.mark);
    }

    /// Reads until there is no more; after a loss starts again, which is exact if nobody writes.
    pub fn follow(&mut self, bounds: &Bounds) -> Option<Loss> {
        loop {
            let Some(mark) = &self.mark else {
                self.start_again();
                return Some(Loss::Gone);
            };
            match Log::of(&self.path).read(mark, bounds).expect("readable") {
                Outcome::Read(changes) => {
                    let more = changes.more;
                    self.apply(changes);
                    if !more {
                        return None;
                    }
                }
                Outcome::Lost(loss) => {
                    self.start_again();
                    return Some(loss);
                }
            }
        }
    }

    /// Compares with what SQLite reads now.
    pub fn compare(&self, context: &str) {
        let expected = pages(&self.path);
        assert_eq!(self.pages.len(), expected.len(), "{context}: number of pages");
        for (page, content) in &expected {
            let same = self.unwritten.contains(page) || self.pages[page] == *content;
            assert!(same, "{context}: page {page} of {} differs", expected.len());
        }
    }
}

/// A log that somebody does something to between the reads of its reader.
pub struct Meddled<'a> {
    file: File,
    /// Bytes that a read gives at most.
    piece: usize,
    reads: Cell<u32>,
    /// Is given the number of the read it comes before; the first is 0.
    before_read: RefCell<Box<dyn FnMut(u32) + 'a>>,
}

impl<'a> Meddled<'a> {
    pub fn new(database: &Path, piece: usize, before_read: impl FnMut(u32) + 'a) -> Meddled<'a> {
        let file = File::open(log_path(database)).expect("opens");
        let before_read = RefCell::new(Box::new(before_read) as Box<dyn FnMut(u32)>);
        Meddled { file, piece, reads: Cell::new(0), before_read }
    }
}

impl Bytes for Meddled<'_> {
    fn size(&self) -> io::Result<u64> {
        (self.before_read.borrow_mut())(self.reads.replace(self.reads.get() + 1));
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        (self.before_read.borrow_mut())(self.reads.replace(self.reads.get() + 1));
        let bytes = buffer.len().min(self.piece);
        FileExt::read_at(&self.file, &mut buffer[..bytes], offset)
    }
}

/// Makes the checksums of a log of one run right again, taken in this order.
pub fn chain_again(log: &mut [u8], order: ByteOrder) {
    log[3] = if order == ByteOrder::Little { 0x82 } else { 0x83 };
    let mut checksum = Checksum::ZERO.over(&log[..24], order);
    let put = |at: &mut [u8], Checksum(one, two): Checksum| {
        at[..4].copy_from_slice(&one.to_be_bytes());
        at[4..8].copy_from_slice(&two.to_be_bytes());
    };
    put(&mut log[24..], checksum);
    let page_size = u32::from_be_bytes(log[8..12].try_into().expect("four bytes")) as usize;
    for frame in log[HEADER_BYTES..].chunks_exact_mut(FRAME_HEADER_BYTES + page_size) {
        checksum = frame_checksum(checksum, frame, order);
        put(&mut frame[16..], checksum);
    }
}
