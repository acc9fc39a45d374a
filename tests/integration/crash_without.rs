//! A release build has no crash points: what asks for one is not even read.

use crate::support::files::names;
use crate::support::program::Program;

#[test]
fn a_release_build_has_no_crash_points() {
    let program = Program::new()
        .with("LIFEBOAT_CRASH_AT", "no-such-point")
        .with("LIFEBOAT_CRASH_LOG", "crash-points.log");
    drop(program.app("CREATE TABLE t(n INTEGER)"));
    program.succeed(&["backup"]);
    assert_eq!(names(program.dir.path()), ["backups", "data", "runs"], "nothing was written down");
}
