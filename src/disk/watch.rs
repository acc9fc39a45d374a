//! Being told when files are written, for any number of files with one descriptor and one task.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::folder_of;

/// Tells of writes to files.
#[derive(Clone)]
pub struct Watcher {
    shared: Arc<Shared>,
}

struct Shared {
    /// None where the system gives out none: then time is what tells.
    inotify: Option<AsyncFd<OwnedFd>>,
    watched: Mutex<Watched>,
}

#[derive(Default)]
struct Watched {
    /// By the watch of its folder, and the name in it.
    files: HashMap<(i32, OsString), Vec<Arc<Notify>>>,
    /// Those that cannot be watched.
    polled: Vec<Arc<Notify>>,
}

/// How often those that cannot be watched are told.
const POLL: Duration = Duration::from_secs(1);

/// Room for the events that are read at once.
const EVENT_BYTES: usize = 16 << 10;

impl Watcher {
    /// Watches nothing yet. Somebody has to [`Watcher::run`] it.
    pub fn new() -> Watcher {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)
            .map_err(io::Error::from)
            .and_then(AsyncFd::new)
            .inspect_err(|error| tracing::warn!("files are looked at every second, for nobody tells: {error}"));
        Watcher { shared: Arc::new(Shared { inotify: inotify.ok(), watched: Mutex::default() }) }
    }

    /// Is notified whenever the file of one of these names beside `path` is written, comes or goes; maybe more
    /// often.
    pub fn watch(&self, path: &Path, suffixes: &[&str]) -> Arc<Notify> {
        let notify = Arc::new(Notify::new());
        let mut watched = self.shared.watched();
        match self.shared.add(folder_of(path)) {
            Ok(folder) => {
                for suffix in suffixes {
                    let mut name = path.file_name().unwrap_or_default().to_owned();
                    name.push(suffix);
                    watched.files.entry((folder, name)).or_default().push(Arc::clone(&notify));
                }
            }
            Err(error) => {
                tracing::warn!("it is looked at every second, for nobody tells: path=`{}`: {error}", path.display());
                watched.polled.push(Arc::clone(&notify));
            }
        }
        notify
    }

    /// Tells until it is dropped.
    pub async fn run(&self) {
        tokio::join!(self.shared.listen(), self.shared.poll());
    }
}

impl Default for Watcher {
    fn default() -> Self {
        Watcher::new()
    }
}

impl Shared {
    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, folder: &Path) -> io::Result<i32> {
        let inotify = self.inotify.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let what = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_TO;
        Ok(inotify::add_watch(inotify.get_ref(), folder, what | WatchFlags::ONLYDIR)?)
    }

    async fn listen(&self) {
        let Some(inotify) = &self.inotify else { return };
        let mut room = [MaybeUninit::uninit(); EVENT_BYTES];
        loop {
            let Ok(mut ready) = inotify.readable().await else { return };
            let mut reader = Reader::new(inotify.get_ref(), &mut room);
            loop {
                match reader.next() {
                    Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => self.tell_all(),
                    Ok(event) => {
                        let name = event.file_name().map_or(&b""[..], CStr::to_bytes);
                        self.tell(event.wd(), OsStr::from_bytes(name));
                    }
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR) => {}
                    Err(error) => {
                        tracing::error!("nobody tells of writes any more: {error}");
                        return;
                    }
                }
            }
            ready.clear_ready();
        }
    }

    fn tell(&self, folder: i32, name: &OsStr) {
        let watched = self.watched();
        for notify in watched.files.get(&(folder, name.to_owned())).into_iter().flatten() {
            notify.notify_one();
        }
    }

    fn tell_all(&self) {
        self.watched().files.values().flatten().for_each(|notify| notify.notify_one());
    }

    async fn poll(&self) {
        loop {
            tokio::time::sleep(POLL).await;
            self.watched().polled.iter().for_each(|notify| notify.notify_one());
        }
    }
}
