//! The unit for systemd: what systemd's own tools say of it, and whether the program does what it claims.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lifeboat::config::SETTINGS;
use lifeboat::error::ErrorKind;
use rustix::process::Signal;

use crate::support::program::Program;

const UNIT: &str = "deploy/systemd/lifeboat.service";

/// What an exposure of 10 is with nothing at all, in tenths; `systemd-analyze` calls up to 2.0 "OK". Newer versions
/// weigh a little differently.
const EXPOSURE_MAX: &str = "20";

fn unit() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(UNIT)).expect("the unit is there")
}

/// Every value of a key, in order.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    let lines = unit.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| *name == key)
        .map(|(_, value)| value)
        .collect()
}

fn value<'a>(unit: &'a str, key: &str) -> &'a str {
    let [value] = values(unit, key)[..] else { panic!("{key} stands there once") };
    value
}

/// What `systemd-analyze` says; the program is that of this build.
fn analyze(unit: &str, arguments: &[&str]) -> (bool, String) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("lifeboat.service");
    let unit = unit.replace("/usr/local/bin/lifeboat", env!("CARGO_BIN_EXE_lifeboat"));
    fs::write(&file, unit).expect("writes");
    let output = Command::new("systemd-analyze").args(arguments).arg(&file).output();
    let output = output.unwrap_or_else(|error| {
        panic!(
            "systemd-analyze is needed, on Debian in the package systemd, which tests/run installs: {error}"
        )
    });
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn systemd_reads_the_unit_without_a_complaint() {
    let (is_fine, said) = analyze(&unit(), &["verify", "--man=no"]);
    assert!(is_fine && !said.contains("lifeboat.service"), "{said}");
    let (_, said) = analyze(&unit().replace("RestartSec=5s", "RestartSec=soon"), &["verify", "--man=no"]);
    assert!(said.contains("lifeboat.service"), "a mistake would be told: {said}");
}

#[test]
fn the_sandbox_leaves_little_exposed() {
    let threshold = format!("--threshold={EXPOSURE_MAX}");
    let arguments = ["security", "--offline=true", "--no-pager", &threshold];
    let (is_fine, said) = analyze(&unit(), &arguments);
    assert!(is_fine, "{said}");
    let open = unit().replace("SystemCallFilter=", "#").replace("CapabilityBoundingSet=", "#");
    assert!(!analyze(&open, &arguments).0, "without two of its walls it is too much");
}

#[test]
fn what_the_unit_says_is_what_the_program_knows() {
    let unit = unit();
    for assignment in values(&unit, "Environment") {
        let (name, _) = assignment.split_once('=').expect("NAME=VALUE");
        assert!(SETTINGS.iter().any(|setting| setting.env == name), "{name} is no setting");
    }
    let codes = [ErrorKind::Config, ErrorKind::Fenced].map(|kind| kind.exit_code().to_string());
    assert_eq!(value(&unit, "RestartPreventExitStatus"), codes.join(" "));
    let seconds = |text: &str| text.trim_end_matches('s').parse::<u64>().expect("seconds");
    let deadline: toml::Table =
        include_str!("../../config/default.toml").parse().expect("the defaults are TOML");
    let deadline = seconds(deadline["backup"]["shutdown_deadline"].as_str().expect("text"));
    // Two times 5 s for what is under way and for HTTP, and as much again.
    assert!(seconds(value(&unit, "TimeoutStopSec")) >= deadline + 20);
    assert!(values(&unit, "WatchdogSec").is_empty(), "the program sends no pings");
}

#[test]
fn systemd_is_told_when_it_works_and_when_it_leaves() {
    assert_eq!(value(&unit(), "Type"), "notify");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a free path");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
    let told = || {
        let mut buffer = [0; 256];
        let count = socket.recv(&mut buffer).expect("it tells");
        String::from_utf8_lossy(&buffer[..count]).trim().to_owned()
    };
    let program = Program::new().with("NOTIFY_SOCKET", path.display().to_string());
    drop(program.app("CREATE TABLE t(n INTEGER)"));
    let daemon = program.start(&["run"]);
    assert_eq!(told(), "READY=1");
    daemon.signal(Signal::TERM);
    assert_eq!(told(), "STOPPING=1");
    assert_eq!(daemon.wait().code, Some(0));
}
