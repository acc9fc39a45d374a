//! The crash sweep: the real program is killed with SIGKILL at every crash point of the code, started again, and
//! what must always hold is checked.
//!
//! Each scenario is run once to its end first, and tells by which points it comes and how often. Then it is run
//! again for each of them, on a site of its own, and killed there: the first time the point is reached, and once
//! in the middle of all times. What follows is always the same: look; start the same command again; have a day
//! pass, with a daemon, a prune and a proof; look again. A point by which no scenario comes fails the last test.
//!
//! How to add a point is told in `src/crash/mod.rs`. A scenario is a row in `scenarios.rs`, and belongs to one of
//! the tests here.

mod capture;
mod invariants;
mod outage;
mod scenarios;
mod site;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use lifeboat::crash::{AT_VARIABLE, LOG_VARIABLE, Point};

use self::capture::require_captured;
use self::invariants::{
    Photograph, require_old_or_new, require_source_untouched, require_storage, require_tidy,
};
use self::outage::{require_shipped, require_spool};
use self::scenarios::{Effect, Scenario};
use self::site::Site;
use crate::support::program::Ended;

const KILLED: Option<i32> = Some(9);

const FAMILIES: &[(&str, &[Scenario])] = &[
    ("backup", scenarios::BACKUP),
    ("proof and prune", scenarios::PROOF_AND_PRUNE),
    ("restore", scenarios::RESTORE),
    ("undo", scenarios::UNDO),
    ("boot", scenarios::BOOT),
    ("recovery", scenarios::RECOVERY),
    ("daemon", scenarios::DAEMON),
    ("online", scenarios::ONLINE),
    ("adoption", scenarios::ADOPTION),
    ("bucket", scenarios::BUCKET),
    ("parts", scenarios::PARTS),
    ("outage", outage::OUTAGE),
    ("shipping", outage::SHIPPING),
    ("capture", capture::CAPTURE),
];

/// Runs what is tried, with orders for its crash points; returns how it ended and the points it reached.
fn act(site: &mut Site, scenario: &Scenario, at: Option<&str>) -> (Ended, Vec<String>) {
    let log = site.program.path("reached");
    let mut orders = vec![(LOG_VARIABLE, log.display().to_string())];
    orders.extend(at.map(|at| (AT_VARIABLE, at.to_owned())));
    let ended = (scenario.act)(site, &orders);
    site.require_discretion(&ended);
    site.note_waiting(&ended);
    let reached = fs::read_to_string(&log).unwrap_or_default();
    (ended, reached.lines().map(str::to_owned).collect())
}

fn prepared(scenario: &Scenario) -> Site {
    let mut site = Site::new(scenario.store);
    (scenario.prepare)(&mut site);
    site
}

/// Runs a scenario to its end: by which of its points it comes, and how often.
fn reached(scenario: &Scenario) -> BTreeMap<String, usize> {
    let mut site = prepared(scenario);
    let before = Photograph::of(&site);
    let (ended, reached) = act(&mut site, scenario, None);
    let is_well = ended.code.is_some_and(|code| scenario.codes.contains(&code));
    assert!(is_well, "{}: {ended:?}", scenario.name);
    let mut times = BTreeMap::new();
    for point in reached.into_iter().filter(|point| scenario.is_about(point)) {
        *times.entry(point).or_default() += 1;
    }
    if scenario.effect == Effect::Reads {
        require_source_untouched(&site, &before);
    } else {
        require_old_or_new(&site);
    }
    let now = require_storage(&mut site, &before);
    require_spool(&mut site, &now);
    require_captured(&site);
    times
}

/// The first time a point is reached, and once in the middle.
fn moments(times: usize) -> BTreeSet<usize> {
    BTreeSet::from([1, times / 2 + 1])
}

fn kill(scenario: &Scenario, point: &str, nth: usize) {
    let mut site = prepared(scenario);
    let before = Photograph::of(&site);
    let (ended, reached) = act(&mut site, scenario, Some(&format!("{point}:{nth}")));
    assert_eq!(ended.signal, KILLED, "it did not die there: {ended:?}");
    // Or more often: another thread may have come by while this one died.
    assert!(reached.iter().filter(|reached| *reached == point).count() >= nth, "{reached:?}");

    // As it was left.
    let crashed = require_storage(&mut site, &before);
    require_spool(&mut site, &crashed);
    require_captured(&site);
    if scenario.effect == Effect::Reads {
        require_source_untouched(&site, &before);
        site.write();
    } else {
        require_old_or_new(&site);
    }

    // The same again: it works now, or says why not (I7), and tells what it found.
    let is_interrupted = site.has_intent();
    let again = (scenario.act)(&site, &[]);
    site.require_discretion(&again);
    site.note_waiting(&again);
    assert_eq!(again.stderr.contains("an interrupted restore was"), is_interrupted, "I7: {again:?}");
    let is_well =
        again.code.is_some_and(|code| scenario.codes.contains(&code) || scenario.again.contains(&code));
    assert!(is_well, "{again:?}");
    require_old_or_new(&site);
    let again = require_storage(&mut site, &crashed);
    require_spool(&mut site, &again);
    require_captured(&site);

    // Whatever was left over is old by now.
    site.age_unfinished();
    site.set("BACKUP_CAPTURE", "off");
    let daemon = site.program.run(&["run", "--", "true"]);
    assert_eq!(daemon.code, Some(0), "{daemon:?}");
    site.require_discretion(&daemon);
    site.prune();
    site.prove();
    require_old_or_new(&site);
    let last = require_storage(&mut site, &again);
    require_tidy(&mut site, &last);
    require_spool(&mut site, &last);
    require_shipped(&site, &last);
}

fn sweep(family: &str) {
    let scenarios = FAMILIES.iter().find(|(name, _)| *name == family).expect("a family").1;
    for scenario in scenarios {
        let times = reached(scenario);
        assert!(!times.is_empty(), "{}: it comes by no point", scenario.name);
        for (point, times) in times {
            for nth in moments(times) {
                eprintln!("{}, killed at {point}:{nth} of {times}", scenario.name);
                kill(scenario, &point, nth);
            }
        }
    }
}

#[test]
fn a_backup_killed_at_any_point() {
    sweep("backup");
}

#[test]
fn a_proof_and_a_prune_killed_at_any_point() {
    sweep("proof and prune");
}

#[test]
fn a_restore_killed_at_any_point() {
    sweep("restore");
}

#[test]
fn an_undo_killed_at_any_point() {
    sweep("undo");
}

#[test]
fn a_boot_killed_at_any_point() {
    sweep("boot");
}

#[test]
fn a_recovery_killed_at_any_point() {
    sweep("recovery");
}

#[test]
fn a_daemon_killed_at_any_point() {
    sweep("daemon");
}

#[test]
fn an_online_restore_killed_at_any_point() {
    sweep("online");
}

#[test]
fn an_adoption_killed_at_any_point() {
    sweep("adoption");
}

#[test]
fn a_bucket_is_sound_whenever_the_program_is_killed() {
    sweep("bucket");
}

#[test]
fn an_upload_in_parts_killed_at_any_point() {
    sweep("parts");
}

#[test]
fn an_outage_killed_at_any_point() {
    sweep("outage");
}

#[test]
fn a_shipment_killed_at_any_point() {
    sweep("shipping");
}

#[test]
fn a_capture_and_a_restore_of_it_killed_at_any_point() {
    sweep("capture");
}

/// Also that every family has its test: what is in none is killed in none.
#[test]
fn some_scenario_comes_by_every_point_of_the_code() {
    let of_all: BTreeSet<String> = FAMILIES
        .iter()
        .flat_map(|(_, scenarios)| *scenarios)
        .flat_map(|scenario| reached(scenario).into_keys())
        .collect();
    let missed: Vec<&str> =
        Point::ALL.iter().map(|point| point.name()).filter(|name| !of_all.contains(*name)).collect();
    assert!(missed.is_empty(), "no scenario comes by {missed:?}");
}
