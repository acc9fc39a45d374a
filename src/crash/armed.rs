//! Debug builds only: where this process was told to die, and the death.

use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Signal, getpid, kill_process};

use super::Point;
use crate::error::{Context, Error, ErrorKind, Result};

/// Names the point at which the process dies: `NAME` when it is first reached, `NAME:N` at the `N`th time.
pub const AT_VARIABLE: &str = "LIFEBOAT_CRASH_AT";

/// Names a file to which every point is appended when it is reached, one line each.
pub const LOG_VARIABLE: &str = "LIFEBOAT_CRASH_LOG";

/// What a test wants of this process.
struct Orders {
    death: Option<Death>,
    log: Option<File>,
}

#[derive(Debug, PartialEq, Eq)]
struct Death {
    at: Point,
    nth: u32,
}

static ORDERS: OnceLock<Orders> = OnceLock::new();

/// How often the point of death was reached.
static REACHED: AtomicU32 = AtomicU32::new(0);

/// Takes the orders from the values of the two variables; without any, nothing ever happens.
///
/// `Config` if there is no such point, or the log cannot be opened.
pub fn arm(at: Option<&str>, log: Option<&str>) -> Result<()> {
    let death = at.map(parse).transpose()?;
    let open = |path: &str| {
        let opened = File::options().create(true).append(true).open(path);
        opened.context(ErrorKind::Config, || format!("open the log of crash points: {LOG_VARIABLE}=`{path}`"))
    };
    let log = log.map(open).transpose()?;
    match ORDERS.set(Orders { death, log }) {
        Ok(()) => Ok(()),
        Err(_) => Err(Error::new(ErrorKind::Internal, "crash points are armed a second time")),
    }
}

fn parse(at: &str) -> Result<Death> {
    let (name, nth) = at.split_once(':').unwrap_or((at, "1"));
    let point = Point::ALL.iter().find(|point| point.name() == name);
    match (point, nth.parse()) {
        (Some(point), Ok(nth @ 1..)) => Ok(Death { at: *point, nth }),
        _ => {
            Err(Error::new(ErrorKind::Config, format!("there is no such crash point: {AT_VARIABLE}=`{at}`")))
        }
    }
}

/// Writes the point down, and dies if it is the one.
pub(super) fn reach(point: Point) {
    let Some(Orders { death, log }) = ORDERS.get() else { return };
    if let Some(mut log) = log.as_ref() {
        // One write, so that lines of several threads do not mix. A line that is missing fails the sweep.
        let _ = log.write_all(format!("{}\n", point.name()).as_bytes());
    }
    let is_here =
        |death: &Death| death.at == point && REACHED.fetch_add(1, Ordering::SeqCst) + 1 == death.nth;
    if death.as_ref().is_some_and(is_here) {
        // This thread does not come back from it. If the kernel refused, the sweep sees that nobody died.
        let _ = kill_process(getpid(), Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_point_is_found_by_its_name_and_its_turn() {
        let first = Point::ALL[0];
        assert_eq!(parse(first.name()).expect("a point"), Death { at: first, nth: 1 });
        assert_eq!(parse(&format!("{}:12", first.name())).expect("a point"), Death { at: first, nth: 12 });
        for wrong in ["", "no-such-point", &format!("{}:0", first.name()), &format!("{}:x", first.name())] {
            let error = parse(wrong).expect_err(wrong);
            assert_eq!(error.kind(), ErrorKind::Config, "{wrong}");
        }
    }

    #[test]
    fn no_two_points_have_one_name() {
        let names: BTreeSet<&str> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
        let is_plain =
            |name: &&str| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        assert!(names.iter().all(is_plain), "{names:?}");
    }
}
