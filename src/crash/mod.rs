//! Crash points: named places at which a test has this very process killed, to see what a crash there leaves.
//!
//! Every storage write, every step of a restore and every change of a file of ours is one. The sweep
//! (`tests/integration/crash_sweep`) takes them from [`Point::ALL`], kills the real program at each with SIGKILL,
//! starts it again and checks what must always hold; a point that no scenario reaches fails it.
//!
//! To add one: a row in `points.rs`, one `crash::at(Point::…)` where the step was done, and, if no scenario of the
//! sweep comes by, a scenario. A point stands in the code once, so that its name says which line.
//!
//! A release build has no crash points: [`at`] is nothing there, and no variable of the environment is read.

#[cfg(debug_assertions)]
mod armed;
mod points;

#[cfg(debug_assertions)]
pub use armed::{AT_VARIABLE, LOG_VARIABLE, arm};
pub use points::Point;

/// Kills this process if this is where it was told to die; see [`Point`].
#[inline(always)]
pub fn at(point: Point) {
    #[cfg(debug_assertions)]
    armed::reach(point);
    #[cfg(not(debug_assertions))]
    let _ = point;
}
