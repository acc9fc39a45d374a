//! How often the log is read, and when it is kept from being restarted.

use std::time::Duration;

/// What to do before the log is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Wait until it is written.
    Rest,
    /// Read again after this time, without any lock.
    Read(Duration),
    /// Pin the present state, and read again after this time.
    Pin(Duration),
    /// Let the log be restarted, for this time, and pin again.
    LetGo(Duration),
}

/// What one read showed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    /// Frames that were read.
    pub frames: u32,
    /// Frames behind them of a transaction that is not committed.
    pub uncommitted: u32,
    /// Bytes of the log up to where it was read.
    pub log_bytes: u64,
    /// Whether it is written faster than it is read.
    pub is_behind: bool,
}

/// Decides from what was seen.
#[derive(Debug, Clone, Copy)]
pub struct Rhythm {
    log_bytes_max: u64,
    /// Reads in a row that saw little.
    calm: u32,
    is_pinned: bool,
}

/// An application that leaves checkpoints to SQLite restarts its log after a thousand pages: this part of it went
/// by between two reads, so that the next may come too late.
const FRAMES_BUSY: u32 = 200;

const READ_PAUSE: Duration = Duration::from_millis(10);
const PIN_PAUSE: Duration = Duration::from_millis(20);
const LET_GO: Duration = Duration::from_millis(3);
/// A transaction that is not committed is read again each time.
const UNCOMMITTED_PAUSE: Duration = Duration::from_millis(200);
/// So many reads that saw little end the pinning.
const CALM_MIN: u32 = 25;

impl Rhythm {
    /// A log that is pinned is let go when it has that many bytes.
    pub fn new(log_bytes_max: u64) -> Rhythm {
        Rhythm { log_bytes_max, calm: 0, is_pinned: false }
    }

    /// The log went by too fast: it is kept from that at once, and until it is calm.
    pub fn pin(&mut self) -> Step {
        (self.is_pinned, self.calm) = (true, 0);
        Step::Pin(PIN_PAUSE)
    }

    /// What follows from what was seen.
    pub fn next(&mut self, seen: Seen) -> Step {
        let is_busy = seen.frames >= FRAMES_BUSY;
        self.calm = if is_busy { 0 } else { self.calm + 1 };
        if is_busy || (self.is_pinned && self.calm < CALM_MIN) {
            // Best when all was read; whoever cannot follow loses the thread, for the log does not grow without end.
            let is_due = seen.log_bytes >= self.log_bytes_max && !seen.is_behind;
            let may_let_go = self.is_pinned && (is_due || seen.log_bytes >= 2 * self.log_bytes_max);
            self.is_pinned = true;
            return match may_let_go {
                true => Step::LetGo(LET_GO),
                false => Step::Pin(PIN_PAUSE),
            };
        }
        self.is_pinned = false;
        match seen.uncommitted {
            FRAMES_BUSY.. => Step::Read(UNCOMMITTED_PAUSE),
            _ if seen.frames == 0 => Step::Rest,
            _ => Step::Read(READ_PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(frames: u32, log_bytes: u64) -> Seen {
        Seen { frames, log_bytes, ..Seen::default() }
    }

    #[test]
    fn a_slow_log_is_never_pinned_and_an_idle_one_not_read() {
        let mut rhythm = Rhythm::new(1 << 20);
        for _ in 0..100 {
            assert_eq!(rhythm.next(seen(FRAMES_BUSY - 1, 9 << 20)), Step::Read(READ_PAUSE));
        }
        assert_eq!(rhythm.next(seen(0, 9 << 20)), Step::Rest);
        let open = Seen { uncommitted: FRAMES_BUSY, ..Seen::default() };
        assert_eq!(rhythm.next(open), Step::Read(UNCOMMITTED_PAUSE));
    }

    #[test]
    fn a_fast_log_is_pinned_until_it_is_calm_and_let_go_when_it_is_long() {
        let mut rhythm = Rhythm::new(1 << 20);
        assert_eq!(rhythm.next(seen(FRAMES_BUSY, 2 << 20)), Step::Pin(PIN_PAUSE), "read it again first");
        assert_eq!(rhythm.next(seen(FRAMES_BUSY, 2 << 20)), Step::LetGo(LET_GO));
        assert_eq!(rhythm.next(seen(FRAMES_BUSY, 1 << 10)), Step::Pin(PIN_PAUSE));
        for _ in 1..CALM_MIN {
            assert_eq!(rhythm.next(seen(0, 1 << 10)), Step::Pin(PIN_PAUSE));
        }
        assert_eq!(rhythm.next(seen(0, 1 << 10)), Step::Rest);
    }
}
