//! How the C library's allocator treats large buffers: it gives them back.
//!
//! A snapshot and a drill take buffers of 1 to 8 MiB on threads that come and go. glibc's allocator raises its own
//! threshold for separate mappings once such a buffer was freed, keeps them in an arena for each thread
//! from then on, and never gives most of it back: a daemon was seen to grow by 6 MiB with each snapshot.
#![allow(unsafe_code)]

/// Larger allocations are mappings of their own, which are given back when they are freed. In bytes; below
/// the smallest buffer that grows with anything, above what is allocated often.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_BYTES_MIN: libc::c_int = 256 << 10;

/// To be called once, before there are threads. Other allocators than glibc's are left alone.
pub fn give_back_large_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt takes two integers and changes parameters of the allocator under its own lock; a
    // value that it refuses changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN);
    }
}
