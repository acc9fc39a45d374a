//! How many files may be open: many databases take more than a shell allows by default.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A connection has the database, its log and the index of that; the log is read by itself.
const PER_DATABASE: u64 = 6;

/// Jobs, storage and HTTP.
const BESIDE: u64 = 256;

/// Raises the limit to what so many databases take, if it is lower, and as far as this process may.
pub fn allow_for(databases: usize) {
    let needed = BESIDE + PER_DATABASE * databases as u64;
    let limit = getrlimit(Resource::Nofile);
    let raised = raised(limit, needed);
    if raised.current == limit.current {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays");
    }
    if raised.current.is_some_and(|allowed| allowed < needed) {
        tracing::warn!(
            allowed = raised.current,
            needed,
            "so many databases take more open files than are allowed: raise the hard limit (`ulimit -Hn`, LimitNOFILE=)"
        );
    }
}

/// The same limit, with `needed` files or as many as the hard limit has. Pure.
fn raised(limit: Rlimit, needed: u64) -> Rlimit {
    let allowed = limit.maximum.map_or(needed, |maximum| needed.min(maximum));
    Rlimit { current: limit.current.map(|current| current.max(allowed)), ..limit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_raised_to_what_is_needed_and_never_lowered() {
        let limit = |current, maximum| Rlimit { current, maximum };
        for (before, needed, after) in [
            (limit(Some(1024), Some(4096)), 2000, Some(2000)),
            (limit(Some(1024), None), 2000, Some(2000)),
            (limit(Some(1024), Some(1500)), 2000, Some(1500)),
            (limit(Some(1024), Some(4096)), 300, Some(1024)),
            (limit(None, None), 2000, None),
        ] {
            assert_eq!(raised(before, needed).current, after, "{before:?}");
        }
    }
}
