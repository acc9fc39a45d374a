//! What a worker shows of itself, and what follows from it for whoever asks "are we safe?".

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use jiff::SignedDuration;

use super::job::{Answer, JobId, JobRecord, JobState, Report};
use super::perform::AtStart;
use crate::backup::Outcome;
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind, Result};
use crate::lineage::{Fork, WAYS_OUT};
use crate::snapshot::{Flag, Proof, SnapshotId};
use crate::source::Progress;
use crate::spool::Shipped;

/// The state of one database's backups.
#[derive(Debug, Clone)]
pub struct Status {
    /// Where its backups are.
    pub storage: String,
    /// Whether a newer process has taken over; this one publishes nothing any more.
    pub fenced: bool,
    /// Why this database's snapshots form a branch, if they do.
    pub fork: Option<Fork>,
    /// The last time storage was known to hold what the database held.
    pub last_backup: Option<LastBackup>,
    /// Why the newest snapshot cannot be read; until a newer one is stored.
    pub damage: Option<Answer>,
    /// The last proof this process made or found, of whatever snapshot.
    pub last_proof: Option<Proof>,
    /// The newest snapshot that is proven.
    pub newest_proven: Option<SnapshotId>,
    /// The failed drill of the newest snapshot that had one.
    pub failed_drill: Option<Proof>,
    /// The last failure of each kind of job, by the job's name, until one of that kind succeeds.
    pub failures: BTreeMap<&'static str, Answer>,
    /// Jobs, oldest first: those that wait or run, and the last ones that ended.
    pub jobs: VecDeque<JobRecord>,
}

/// The last backup that ended well.
#[derive(Debug, Clone)]
pub struct LastBackup {
    /// The snapshot that holds the database.
    pub snapshot: SnapshotId,
    /// When the database was seen to be what the snapshot holds.
    pub confirmed_at: Timestamp,
    /// What was wrong with the source.
    pub flags: Vec<Flag>,
}

impl Status {
    pub(super) fn new(storage: String, at_start: &AtStart, fork: Option<Fork>) -> Status {
        // What the newest snapshot holds is not what the database of a branch holds.
        let held = at_start.newest.as_ref().filter(|_| fork.is_none());
        let last_backup = held.map(|manifest| LastBackup {
            snapshot: manifest.id.clone(),
            confirmed_at: manifest.taken_at,
            flags: manifest.flags.clone(),
        });
        Status {
            storage,
            fenced: false,
            fork,
            last_backup,
            damage: at_start.damage.clone(),
            last_proof: at_start.drills.latest.clone(),
            newest_proven: at_start.drills.newest.as_ref().map(|proof| proof.snapshot.clone()),
            failed_drill: at_start.drills.failure.clone(),
            failures: BTreeMap::new(),
            jobs: VecDeque::new(),
        }
    }

    /// The record of a job, if it is still remembered.
    pub fn job(&self, id: JobId) -> Option<&JobRecord> {
        self.jobs.iter().find(|record| record.id == id)
    }

    pub(super) fn with_job(&mut self, id: JobId, act: impl FnOnce(&mut JobRecord)) {
        if let Some(record) = self.jobs.iter_mut().find(|record| record.id == id) {
            act(record);
        }
    }

    /// Sets a running job's progress; says whether anybody needs to know: at every hundredth.
    pub(super) fn set_progress(&mut self, id: JobId, new: Progress) -> bool {
        let hundredth = |progress: &Progress| progress.done * 100 / progress.total.max(1);
        let mut notable = false;
        self.with_job(id, |record| {
            if let JobState::Running { progress } = &mut record.state {
                notable = hundredth(progress) != hundredth(&new);
                *progress = new;
            }
        });
        notable
    }

    /// Takes in that a snapshot was shown not to restore, or not to what it should.
    pub(super) fn refute(&mut self, verdict: Proof) {
        if self.failed_drill.as_ref().is_none_or(|known| known.snapshot <= verdict.snapshot) {
            self.failed_drill = Some(verdict);
        }
    }

    /// The failed drill that counts: no newer snapshot, and not this one since, was proven.
    fn standing_failure(&self) -> Option<&Proof> {
        self.failed_drill.as_ref().filter(|failed| Some(&failed.snapshot) > self.newest_proven.as_ref())
    }

    /// When a drill last said something about a snapshot.
    pub fn drilled_at(&self) -> Option<Timestamp> {
        [&self.last_proof, &self.failed_drill].into_iter().flatten().map(|drill| drill.proven_at).max()
    }

    /// Takes in how a job ended.
    pub(super) fn apply(&mut self, job: &'static str, result: &Result<Report>, now: Timestamp) {
        match result {
            // Nothing was there to be proven: a failure before it stands.
            Ok(Report::Verify(None)) => {}
            // It is safe from a crash of the application, not from the loss of this machine.
            Ok(Report::Spooled(spooled)) => drop(self.failures.insert(job, spooled.outage.clone())),
            Ok(report) => {
                self.failures.remove(job);
                self.apply_report(report, now);
            }
            Err(error) if error.kind() == ErrorKind::Cancelled => {}
            Err(error) => {
                self.fenced |= error.kind() == ErrorKind::Fenced;
                self.failures.insert(job, Answer::from(error));
            }
        }
    }

    fn apply_report(&mut self, report: &Report, now: Timestamp) {
        match report {
            Report::Backup(outcome) => {
                let manifest = outcome.manifest();
                self.damage = None;
                self.last_backup = Some(LastBackup {
                    snapshot: manifest.id.clone(),
                    confirmed_at: match outcome {
                        Outcome::Stored(_) => manifest.taken_at,
                        Outcome::Unchanged(_) => now,
                    },
                    flags: manifest.flags.clone(),
                });
            }
            Report::Verify(Some(proof)) => self.take_in_proof(proof),
            Report::Verify(None) | Report::Prune(_) | Report::Restore(_) => {}
            Report::Spooled(_) | Report::Ship(_) | Report::Capture(_) => {}
        }
    }

    /// Takes in that a snapshot from the spool is in storage.
    pub(super) fn take_in_shipped(&mut self, shipped: &Shipped) {
        let Some(manifest) = shipped.manifest() else { return };
        if self.last_backup.as_ref().is_none_or(|last| last.snapshot < manifest.id) {
            self.damage = None;
            self.last_backup = Some(LastBackup {
                snapshot: manifest.id.clone(),
                confirmed_at: manifest.taken_at,
                flags: manifest.flags.clone(),
            });
        }
        if let Shipped::Proven(_, proof) = shipped {
            self.take_in_proof(proof);
        }
    }

    fn take_in_proof(&mut self, proof: &Proof) {
        if self.failed_drill.as_ref().is_some_and(|failed| failed.snapshot == proof.snapshot) {
            self.failed_drill = None;
        }
        self.newest_proven = self.newest_proven.take().max(Some(proof.snapshot.clone()));
        self.last_proof = Some(proof.clone());
    }
}

/// How old things may become before they count against us.
#[derive(Debug, Clone, Copy)]
pub struct Freshness {
    /// The last confirmed backup; `None` if nothing is scheduled.
    pub backup_age_max: Option<Duration>,
    /// The same of a database between whose snapshots nothing is captured.
    pub uncaptured_age_max: Option<Duration>,
    /// The last proof; `None` if no drill is scheduled.
    pub proof_age_max: Option<Duration>,
    /// The first commit that is not stored yet; `None` if nothing is captured.
    pub capture_lag_max: Option<Duration>,
}

/// Whether the database could be lost now without losing its data.
#[derive(Debug, Clone)]
pub struct Readiness {
    /// No reason speaks against it.
    pub ready: bool,
    /// What speaks against it, for the operator.
    pub reasons: Vec<String>,
}

impl Readiness {
    /// The same with what else speaks against it.
    pub(super) fn and(mut self, reasons: Vec<String>) -> Readiness {
        self.reasons.extend(reasons);
        Readiness { ready: self.reasons.is_empty(), reasons: self.reasons }
    }
}

impl Status {
    /// Judges the state at `now`. Pure.
    pub fn readiness(&self, freshness: Freshness, now: Timestamp) -> Readiness {
        let mut reasons = Vec::new();
        if self.fenced {
            reasons.push("fenced: a newer process publishes this database's backups".to_owned());
        }
        if let Some(fork) = &self.fork {
            reasons.push(format!("{fork}: {WAYS_OUT}"));
        }
        if let Some(damage) = &self.damage {
            reasons.push(format!("the newest snapshot is damaged: {}", damage.message));
        }
        match (&self.last_backup, freshness.backup_age_max) {
            (None, _) if self.damage.is_some() => {}
            (None, _) => reasons.push("there is no snapshot yet".to_owned()),
            (Some(last), Some(age_max)) if age(last.confirmed_at, now) > age_max => reasons.push(format!(
                "the last backup is {} old, more than {}",
                short(age(last.confirmed_at, now)),
                short(age_max)
            )),
            _ => {}
        }
        let flags = self.last_backup.as_ref().map(|last| last.flags.as_slice()).unwrap_or_default();
        for flag in flags {
            reasons.push(match flag {
                Flag::Shrunken => {
                    "the database has shrunk by more than half; older snapshots are kept until it \
                                   is restored, or accepted (`lifeboat backup --accept-shrunken`)"
                        .to_owned()
                }
                // Told above, with the way out.
                Flag::Branch => continue,
                flag => format!("the newest snapshot is flagged: {}", flag.told()),
            });
        }
        if let Some(age_max) = freshness.proof_age_max {
            match &self.last_proof {
                None => reasons.push("no snapshot is proven to restore yet".to_owned()),
                Some(proof) if age(proof.proven_at, now) > age_max => {
                    let age = short(age(proof.proven_at, now));
                    reasons.push(format!("the last proof is {age} old, more than {}", short(age_max)));
                }
                Some(_) => {}
            }
        }
        if let Some(failed) = self.standing_failure() {
            reasons.push(format!(
                "snapshot {} failed its drill at {:.0}, and nothing is pruned until a newer one, or it itself, is \
                 proven: {}",
                failed.snapshot,
                failed.proven_at,
                failed.failure.as_deref().unwrap_or_default()
            ));
        } else if let Some(failure) = self.failures.get("verify") {
            reasons.push(format!("the last drill failed: {}", failure.message));
        }
        Readiness { ready: reasons.is_empty(), reasons }
    }

    /// The error of a fenced worker, for those who must stop because of it.
    pub fn fenced_error(&self) -> Option<Error> {
        self.fenced
            .then(|| Error::new(ErrorKind::Fenced, "a newer process publishes this database's backups"))
    }
}

/// Clocks may differ by this much; a time further in the future tells nothing of an age.
const SKEW_MAX: SignedDuration = SignedDuration::from_mins(10);

fn age(then: Timestamp, now: Timestamp) -> Duration {
    let age = now.duration_since(then);
    match age < -SKEW_MAX {
        true => Duration::MAX,
        false => age.try_into().unwrap_or(Duration::ZERO),
    }
}

/// A duration in words, to the second.
pub(super) fn short(duration: Duration) -> String {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    let seconds = SignedDuration::from_secs(seconds);
    format!("{seconds:#}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::NewestDrills;

    const DAY: Duration = Duration::from_secs(86_400);
    const FRESHNESS: Freshness = Freshness {
        backup_age_max: Some(Duration::from_secs(900)),
        uncaptured_age_max: Some(Duration::from_secs(900)),
        proof_age_max: Some(DAY),
        capture_lag_max: None,
    };

    fn at(text: &str) -> Timestamp {
        text.parse().expect("valid time")
    }

    fn backed_up_and_proven() -> Status {
        let id = SnapshotId::next(at("2026-11-21T14:00:00Z"), None, 1);
        let mut status = Status::new("memory".to_owned(), &AtStart::default(), None);
        status.last_backup = Some(LastBackup {
            snapshot: id.clone(),
            confirmed_at: at("2026-11-21T14:00:00Z"),
            flags: vec![],
        });
        status.newest_proven = Some(id.clone());
        status.last_proof = Some(Proof {
            format: 1,
            snapshot: id,
            proven_at: at("2026-11-21T14:00:00Z"),
            took_ms: 1,
            check: "integrity_check".to_owned(),
            assertion: None,
            failure: None,
            tool: "test".to_owned(),
        });
        status
    }

    #[test]
    fn fresh_and_proven_is_ready() {
        let readiness = backed_up_and_proven().readiness(FRESHNESS, at("2026-11-21T14:14:59Z"));
        assert_eq!(readiness.reasons, Vec::<String>::new());
        assert!(readiness.ready);
    }

    #[test]
    fn each_lack_is_a_reason_of_its_own() {
        type Change = fn(&mut Status);
        let cases: [(Change, &str); 8] = [
            (
                |status| {
                    let id = status.last_backup.as_ref().expect("set").snapshot.clone();
                    status.fork = Some(Fork { from: None, newest: id });
                    // Its own snapshots have the flag, which is no second reason.
                    status.last_backup.as_mut().expect("set").flags.push(Flag::Branch);
                },
                "lifeboat adopt",
            ),
            (|status| status.last_backup = None, "no snapshot yet"),
            (
                |status| {
                    status.last_backup = None;
                    status.damage =
                        Some(Answer { kind: ErrorKind::Corrupt, message: "cut short".to_owned() });
                },
                "the newest snapshot is damaged: cut short",
            ),
            (|status| status.last_proof = None, "no snapshot is proven"),
            (|status| status.fenced = true, "fenced"),
            (
                |status| status.last_backup.as_mut().expect("set").confirmed_at = at("2026-11-21T13:00:00Z"),
                "old, more than",
            ),
            (
                |status| status.last_proof.as_mut().expect("set").proven_at = at("2026-11-01T13:00:00Z"),
                "last proof is",
            ),
            (|status| status.last_backup.as_mut().expect("set").flags.push(Flag::Shrunken), "shrunken"),
        ];
        for (change, reason) in cases {
            let mut status = backed_up_and_proven();
            change(&mut status);
            let readiness = status.readiness(FRESHNESS, at("2026-11-21T14:01:00Z"));
            assert!(!readiness.ready && readiness.reasons.len() == 1, "{reason}: {readiness:?}");
            assert!(readiness.reasons[0].contains(reason), "{reason}: {readiness:?}");
        }
    }

    #[test]
    fn a_failure_is_forgotten_when_the_same_job_succeeds() {
        let mut status = backed_up_and_proven();
        status.apply("verify", &Err(Error::new(ErrorKind::Corrupt, "flipped")), at("2026-11-21T14:00:00Z"));
        assert!(!status.readiness(FRESHNESS, at("2026-11-21T14:01:00Z")).ready);
        status.apply("backup", &Ok(Report::Verify(None)), at("2026-11-21T14:00:00Z"));
        assert!(status.failures.contains_key("verify"));
        status.apply("verify", &Ok(Report::Verify(None)), at("2026-11-21T14:00:00Z"));
        assert!(status.failures.contains_key("verify"), "nothing was proven");
        let proof = status.last_proof.clone().expect("set");
        status.apply("verify", &Ok(Report::Verify(Some(proof))), at("2026-11-21T14:00:00Z"));
        assert!(status.failures.is_empty());
        assert!(status.readiness(FRESHNESS, at("2026-11-21T14:01:00Z")).ready);
    }

    /// A proof, or a failed drill, of the snapshot taken at this minute.
    fn drill(minute: u32, failure: Option<&str>) -> Proof {
        let taken_at = at(&format!("2026-11-21T13:{minute:02}:00Z"));
        Proof {
            snapshot: SnapshotId::next(taken_at, None, 1),
            failure: failure.map(str::to_owned),
            ..backed_up_and_proven().last_proof.expect("set")
        }
    }

    #[test]
    fn a_failed_drill_stands_until_that_snapshot_or_a_newer_one_is_proven() {
        let now = at("2026-11-21T14:01:00Z");
        for (failed, proven, stands) in
            [(30, &[][..], true), (30, &[10, 20], true), (30, &[40], false), (30, &[20, 30], false)]
        {
            let mut status = backed_up_and_proven();
            status.newest_proven = None;
            status.apply("verify", &Err(Error::new(ErrorKind::Corrupt, "torn")), now);
            status.refute(drill(failed, Some("torn")));
            for minute in proven {
                status.apply("verify", &Ok(Report::Verify(Some(drill(*minute, None)))), now);
            }
            let reasons = status.readiness(FRESHNESS, now).reasons;
            assert_eq!(!reasons.is_empty(), stands, "{proven:?}: {reasons:?}");
            assert!(
                reasons.iter().all(|reason| reason.contains("failed its drill") && reason.ends_with("torn"))
            );
        }
    }

    #[test]
    fn a_failed_drill_of_an_older_snapshot_than_the_newest_proven_is_no_reason() {
        let mut status = backed_up_and_proven();
        status.refute(drill(30, Some("torn")));
        let readiness = status.readiness(FRESHNESS, at("2026-11-21T14:01:00Z"));
        assert_eq!(readiness.reasons, Vec::<String>::new());
    }

    #[test]
    fn what_storage_knows_of_failed_drills_is_known_from_the_start() {
        let drills = NewestDrills {
            newest: Some(drill(10, None)),
            latest: Some(drill(5, None)),
            failure: Some(drill(30, Some("torn"))),
        };
        let status = Status::new("memory".to_owned(), &AtStart { drills, ..AtStart::default() }, None);
        let reasons = status.readiness(FRESHNESS, at("2026-11-21T14:01:00Z")).reasons;
        assert!(reasons.iter().any(|reason| reason.ends_with("torn")), "{reasons:?}");
        assert!(!reasons.iter().any(|reason| reason.contains("no snapshot is proven")), "{reasons:?}");
    }

    #[test]
    fn a_failed_drill_is_not_forgotten_over_a_failed_backup() {
        let mut status = backed_up_and_proven();
        let now = at("2026-11-21T14:00:00Z");
        status.apply("verify", &Err(Error::new(ErrorKind::Corrupt, "flipped")), now);
        status.apply("backup", &Err(Error::new(ErrorKind::Unavailable, "no answer")), now);
        let readiness = status.readiness(FRESHNESS, now);
        assert_eq!(readiness.reasons, ["the last drill failed: flipped"]);
        status.apply("backup", &Ok(Report::Verify(None)), now);
        assert!(!status.readiness(FRESHNESS, now).ready);
    }
}
