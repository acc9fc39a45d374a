//! A file that is written front to back and is on the disk when it is finished.

use std::fs::File;
use std::io::{self, Write};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

/// Writes go to the page cache; a second thread hands them to the disk while more are written.
///
/// So the last sync is short, and no other program's sync ever waits behind a whole database.
pub struct SyncedFile {
    file: File,
    unsynced: u64,
    nudge: SyncSender<()>,
    syncing: JoinHandle<io::Result<()>>,
}

/// Unsynced bytes that start a sync.
const SYNC_BYTES: u64 = 16 << 20;

impl SyncedFile {
    /// Takes an empty file.
    pub fn new(file: File) -> io::Result<SyncedFile> {
        let (nudge, nudges) = sync_channel(1);
        let synced = file.try_clone()?;
        // The kernel reports a failed write-back once per open file, to whoever syncs first: this
        // thread's result must be asked for, a later sync would say "fine".
        let sync = move || nudges.into_iter().try_for_each(|()| synced.sync_data());
        let syncing = thread::Builder::new().name("lifeboat-sync".to_owned()).spawn(sync)?;
        Ok(SyncedFile { file, unsynced: 0, nudge, syncing })
    }

    /// Appends `bytes`.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.unsynced += bytes.len() as u64;
        if self.unsynced >= SYNC_BYTES {
            self.unsynced = 0;
            // A sync under way takes these bytes with it, or the next one will.
            let _ = self.nudge.try_send(());
        }
        Ok(())
    }

    /// Returns once everything is on the disk.
    pub fn finish(self) -> io::Result<()> {
        drop(self.nudge);
        self.syncing.join().map_err(|_| io::Error::other("the syncing thread panicked"))??;
        self.file.sync_all()
    }
}
