//! Being told when files are written, for any number of files with one descriptor and one thread.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::sync::Notify;

use super::folder_of;

/// Tells of writes to files, as long as it is there.
#[derive(Clone)]
pub struct Watcher {
    shared: Arc<Shared>,
}

struct Shared {
    inotify: OwnedFd,
    watched: Mutex<Watched>,
}

#[derive(Default)]
struct Watched {
    /// By the watch of its folder, and the name in it.
    files: HashMap<(i32, OsString), Vec<Arc<Notify>>>,
    /// Those that cannot be watched.
    polled: Vec<Arc<Notify>>,
}

/// How often those that cannot be watched are told, and whether anybody wants to be told at all is looked at.
const POLL: Duration = Duration::from_secs(1);

/// Room for the events that are read at once.
const EVENT_BYTES: usize = 16 << 10;

impl Watcher {
    /// Watches nothing yet.
    pub fn new() -> io::Result<Watcher> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let shared = Arc::new(Shared { inotify, watched: Mutex::default() });
        let weak = Arc::downgrade(&shared);
        thread::Builder::new().name("lifeboat-watch".to_owned()).spawn(move || listen(&weak))?;
        Ok(Watcher { shared })
    }

    /// Is notified whenever the file at `path`, with one of the suffixes, is written, comes or goes; maybe more
    /// often. Where the system cannot tell, it is notified every second.
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
                tracing::warn!(
                    "looked at every second, for nobody tells: path=`{}`: {error}",
                    path.display()
                );
                watched.polled.push(Arc::clone(&notify));
            }
        }
        notify
    }
}

/// Tells until nobody wants to be told.
fn listen(shared: &Weak<Shared>) {
    let mut room = [MaybeUninit::uninit(); EVENT_BYTES];
    while let Some(shared) = shared.upgrade() {
        let pause = Timespec { tv_sec: POLL.as_secs() as i64, tv_nsec: 0 };
        let is_quiet = poll(&mut [PollFd::new(&shared.inotify, PollFlags::IN)], Some(&pause)) == Ok(0);
        if is_quiet {
            shared.watched().polled.iter().for_each(|notify| notify.notify_one());
        }
        let mut events = Reader::new(&shared.inotify, &mut room);
        loop {
            match events.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => shared.tell_all(),
                Ok(event) => {
                    let name = event.file_name().map_or(&b""[..], CStr::to_bytes);
                    shared.tell(event.wd(), OsStr::from_bytes(name));
                }
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
    }
}

impl Shared {
    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, folder: &Path) -> io::Result<i32> {
        let what = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_TO;
        Ok(inotify::add_watch(&self.inotify, folder, what | WatchFlags::ONLYDIR)?)
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
}
