//! A destination for SQLite's backup API that keeps nothing: pages are handed on as they come.
//!
//! This is the only file with unsafe code beside `memory.rs`. SQLite calls a VFS through a table of C functions; ours
//! has one file, of which it remembers the first page (SQLite reads it back) and the size, and
//! passes every write to a sink. It has no disk behind it, no locks and no journal.
//!
//! Seen in SQLite's `backup.c` and `pager.c`, and checked at run time by the sink: with journal and
//! synchronous off, exclusive locking and a page cache of one page, pages are written once each in
//! ascending order, page 1 possibly several times.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::{ptr, slice};

use rusqlite::ffi::{self, sqlite3_file, sqlite3_int64, sqlite3_io_methods, sqlite3_vfs};
use rusqlite::{Connection, OpenFlags};

/// Receives every write: offset in bytes, content. `false` stops the backup.
pub type Sink = Box<dyn FnMut(u64, &[u8]) -> bool + Send>;

/// A connection to backup into; what is written goes to `sink` on the thread that steps.
pub fn open(sink: Sink) -> rusqlite::Result<Connection> {
    let vfs = register()?;
    let name = deposit(sink);
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags_and_vfs(&name, flags, vfs);
    // SQLite opens the file lazily; whichever happens first takes the sink out again.
    let connection = connection.inspect_err(|_| drop(deposits().remove(&name)))?;
    connection.execute_batch(
        "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA locking_mode=EXCLUSIVE; PRAGMA cache_size=1;",
    )?;
    Ok(connection)
}

const VFS_NAME: &CStr = c"lifeboat-stream";

/// Sinks between [`open`] and SQLite's own opening of the file, under the file name they wait for.
static DEPOSITS: LazyLock<Mutex<HashMap<String, Sink>>> = LazyLock::new(Mutex::default);

fn deposits() -> MutexGuard<'static, HashMap<String, Sink>> {
    DEPOSITS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn deposit(sink: Sink) -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("stream-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    deposits().insert(name.clone(), sink);
    name
}

/// Registers the VFS with SQLite, once per process.
fn register() -> rusqlite::Result<&'static CStr> {
    static REGISTERED: LazyLock<c_int> = LazyLock::new(|| {
        // SAFETY: sqlite3_vfs_find(NULL) returns the default VFS, which lives as long as the process.
        let Some(default) = (unsafe { ffi::sqlite3_vfs_find(ptr::null()).as_ref() }) else {
            return ffi::SQLITE_ERROR;
        };
        let vfs = sqlite3_vfs {
            szOsFile: size_of::<StreamFile>() as c_int,
            pNext: ptr::null_mut(),
            zName: VFS_NAME.as_ptr(),
            xOpen: Some(open_file),
            xDelete: Some(delete),
            xAccess: Some(access),
            xFullPathname: Some(full_path_name),
            // Time, sleep and randomness stay the default's: those functions ignore their VFS argument.
            ..*default
        };
        // SAFETY: SQLite keeps the pointer for ever, and the leaked box is never freed. Not the
        // default VFS (0), so only connections that name it use it.
        unsafe { ffi::sqlite3_vfs_register(Box::into_raw(Box::new(vfs)), 0) }
    });
    match *REGISTERED {
        ffi::SQLITE_OK => Ok(VFS_NAME),
        code => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)),
    }
}

/// The memory SQLite allocates per open file; `base` must come first.
#[repr(C)]
struct StreamFile {
    base: sqlite3_file,
    /// Owned: made by `Box::into_raw` in [`open_file`], taken back in [`close`].
    stream: *mut Stream,
}

struct Stream {
    /// The bytes SQLite may read back: the first page as last written.
    first_page: Vec<u8>,
    bytes: u64,
    sink: Sink,
}

static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(succeed_with_flag),
    xFileSize: Some(file_size),
    xLock: Some(succeed_with_flag),
    xUnlock: Some(succeed_with_flag),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

/// The stream of an open file.
///
/// # Safety
/// `file` is one that [`open_file`] opened and [`close`] has not closed. SQLite uses one file from
/// one thread at a time, so the reference is unique while the callback runs.
unsafe fn stream<'a>(file: *mut sqlite3_file) -> &'a mut Stream {
    // SAFETY: SQLite allocated szOsFile bytes for the file, and open_file filled in the stream.
    unsafe { &mut *(*file.cast::<StreamFile>()).stream }
}

unsafe extern "C" fn open_file(
    _vfs: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    flags_out: *mut c_int,
) -> c_int {
    // SAFETY: `file` points to szOsFile writable bytes; a null method table tells SQLite that
    // there is nothing to close when opening fails.
    unsafe { (*file).pMethods = ptr::null() };
    if name.is_null() || flags & ffi::SQLITE_OPEN_MAIN_DB == 0 {
        return ffi::SQLITE_CANTOPEN;
    }
    // SAFETY: a non-null name is a terminated string for the duration of the call.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    let Some(sink) = deposits().remove(name.as_ref()) else {
        return ffi::SQLITE_CANTOPEN;
    };
    let stream = Box::into_raw(Box::new(Stream { first_page: Vec::new(), bytes: 0, sink }));
    // SAFETY: as above; METHODS is static.
    unsafe {
        file.cast::<StreamFile>().write(StreamFile { base: sqlite3_file { pMethods: &METHODS }, stream });
        if !flags_out.is_null() {
            *flags_out = flags;
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    // SAFETY: SQLite closes a file once; the box was made in open_file and nobody else owns it.
    drop(unsafe { Box::from_raw((*file.cast::<StreamFile>()).stream) });
    ffi::SQLITE_OK
}

unsafe extern "C" fn write(
    file: *mut sqlite3_file,
    content: *const c_void,
    length: c_int,
    offset: sqlite3_int64,
) -> c_int {
    let (Ok(length), Ok(offset)) = (usize::try_from(length), u64::try_from(offset)) else {
        return ffi::SQLITE_IOERR_WRITE;
    };
    // SAFETY: see `stream`; `content` points to `length` readable bytes for the duration of the call.
    let (stream, content) = unsafe { (stream(file), slice::from_raw_parts(content.cast::<u8>(), length)) };
    stream.bytes = stream.bytes.max(offset + length as u64);
    if offset == 0 {
        stream.first_page = content.to_vec();
    }
    // A panic must not cross into C.
    let taken = catch_unwind(AssertUnwindSafe(|| (stream.sink)(offset, content)));
    if taken.unwrap_or(false) { ffi::SQLITE_OK } else { ffi::SQLITE_IOERR_WRITE }
}

unsafe extern "C" fn read(
    file: *mut sqlite3_file,
    out: *mut c_void,
    length: c_int,
    offset: sqlite3_int64,
) -> c_int {
    let (Ok(length), Ok(offset)) = (usize::try_from(length), usize::try_from(offset)) else {
        return ffi::SQLITE_IOERR_READ;
    };
    // SAFETY: see `stream`; `out` points to `length` writable bytes.
    let (stream, out) = unsafe { (stream(file), slice::from_raw_parts_mut(out.cast::<u8>(), length)) };
    let available = stream.first_page.get(offset..).unwrap_or_default();
    let count = available.len().min(length);
    out[..count].copy_from_slice(&available[..count]);
    // SQLite relies on the rest being zero when a read is short.
    out[count..].fill(0);
    if count == length { ffi::SQLITE_OK } else { ffi::SQLITE_IOERR_SHORT_READ }
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, size: sqlite3_int64) -> c_int {
    // SAFETY: see `stream`.
    unsafe { stream(file) }.bytes = size.max(0) as u64;
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_size(file: *mut sqlite3_file, out: *mut sqlite3_int64) -> c_int {
    // SAFETY: see `stream`; `out` is a valid place for the answer.
    unsafe { *out = stream(file).bytes as sqlite3_int64 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn succeed_with_flag(_file: *mut sqlite3_file, _flag: c_int) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn check_reserved_lock(_file: *mut sqlite3_file, out: *mut c_int) -> c_int {
    // SAFETY: `out` is a valid place for the answer. Nobody else can hold a lock here.
    unsafe { *out = 0 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_control(
    _file: *mut sqlite3_file,
    _operation: c_int,
    _argument: *mut c_void,
) -> c_int {
    ffi::SQLITE_NOTFOUND
}

unsafe extern "C" fn sector_size(_file: *mut sqlite3_file) -> c_int {
    // The smallest: a sector above the page size would make SQLite write neighbouring pages again.
    512
}

unsafe extern "C" fn device_characteristics(_file: *mut sqlite3_file) -> c_int {
    0
}

unsafe extern "C" fn delete(_vfs: *mut sqlite3_vfs, _name: *const c_char, _sync: c_int) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn access(
    _vfs: *mut sqlite3_vfs,
    _name: *const c_char,
    _flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: `out` is a valid place for the answer. No journal or log of ours ever exists.
    unsafe { *out = 0 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn full_path_name(
    _vfs: *mut sqlite3_vfs,
    name: *const c_char,
    length: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: `name` is a terminated string.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes_with_nul();
    if name.len() > usize::try_from(length).unwrap_or(0) {
        return ffi::SQLITE_CANTOPEN;
    }
    // SAFETY: `out` has room for `length` bytes, which the name does not exceed; they do not overlap.
    unsafe { ptr::copy_nonoverlapping(name.as_ptr().cast::<c_char>(), out, name.len()) };
    ffi::SQLITE_OK
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use rusqlite::backup::{Backup, StepResult};

    use super::*;

    #[test]
    fn pages_come_in_order_and_the_first_one_too() {
        let source = Connection::open_in_memory().expect("opens");
        let fill = "PRAGMA page_size=512; CREATE TABLE t(x);
            WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<500)
            INSERT INTO t SELECT randomblob(300) FROM n;";
        source.execute_batch(fill).expect("fills");
        let writes = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&writes);
        let take = move |offset: u64, page: &[u8]| {
            seen.lock().unwrap_or_else(PoisonError::into_inner).push((offset, page.len()));
            true
        };
        let mut destination = open(Box::new(take)).expect("opens");
        let backup = Backup::new(&source, &mut destination).expect("begins");
        while backup.step(10).expect("steps") == StepResult::More {}
        drop(backup);

        let writes = writes.lock().unwrap_or_else(PoisonError::into_inner);
        type Writes = Vec<(u64, usize)>;
        let (first, rest): (Writes, Writes) = writes.iter().copied().partition(|(offset, _)| *offset == 0);
        assert!(!first.is_empty(), "page 1 is handed on, to be compared");
        let expected: Writes = (1..=rest.len() as u64).map(|page| (page * 512, 512)).collect();
        assert_eq!(rest, expected);
    }

    #[test]
    fn a_sink_that_refuses_or_panics_stops_the_backup() {
        let refusals: [fn() -> bool; 2] = [|| false, || panic!("in the sink")];
        for refuse in refusals {
            let source = Connection::open_in_memory().expect("opens");
            source
                .execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (zeroblob(100000))")
                .expect("fills");
            let mut destination = open(Box::new(move |_, _| refuse())).expect("opens");
            let backup = Backup::new(&source, &mut destination).expect("begins");
            backup.step(-1).expect_err("the write failed");
        }
    }
}
