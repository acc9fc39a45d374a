//! How the C library's allocator treats large buffers: it gives them back.
//!
//! A snapshot and a drill take buffers of 1 to 8 MiB on threads that come and go. glibc's allocator raises
//! its own threshold for separate mappings once such a buffer was freed, keeps them in an arena for each
//! thread from then on, and never gives most of it back: a daemon was seen to grow by 6 MiB with each
//! snapshot. With a fixed threshold it does not; but frames, which come and go a thousand times in a
//! snapshot, are not to be fetched from the kernel each time.
#![allow(unsafe_code)]

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Larger allocations, such as parts, are mappings of their own, which are given back when they are
/// freed; frames are not. In bytes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_BYTES_MIN: libc::c_int = 4 << 20;

/// What is free at the end of an arena is given back from here on: more than the frames under way at
/// once. In bytes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const TRIMMED_BYTES_MIN: libc::c_int = 16 << 20;

/// One arena for all threads: what one frees the next one takes. They meet there seldom, for what they
/// pass around is large.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS_MAX: libc::c_int = 1;

/// Between two times at which all that is free is given back: it takes a look at all of it.
const PAUSE: Duration = Duration::from_secs(1);

/// Gives what is free back to the system, wherever it lies: unless that was done a moment ago.
pub fn give_back_all() {
    static LAST: Mutex<Option<Instant>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if last.is_some_and(|last| last.elapsed() < PAUSE) {
        return;
    }
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim takes an integer and releases free pages of the allocator under its own locks.
    unsafe {
        libc::malloc_trim(0);
    }
    *last = Some(Instant::now());
}

/// To be called once, before there are threads. Other allocators than glibc's are left alone.
pub fn give_back_large_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt takes two integers and changes parameters of the allocator under its own lock; a
    // value that it refuses changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN);
        libc::mallopt(libc::M_TRIM_THRESHOLD, TRIMMED_BYTES_MIN);
        libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX);
    }
}
