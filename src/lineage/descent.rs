//! Whether a database descends from the newest snapshot. If not, it must not become head: its
//! snapshots form a branch until somebody adopts one side.

use std::fmt;

use jiff::Timestamp;

use crate::snapshot::{Digest, SnapshotId};

/// The newest snapshot, as far as it can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newest {
    /// Its id, as the head names it.
    pub id: SnapshotId,
    /// Digest of its database file and the moment it shows; none if its manifest is damaged.
    pub content: Option<(Digest, Timestamp)>,
}

/// What this machine noted of the database file: where its content comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The snapshot it equalled or followed when the note was written.
    pub snapshot: SnapshotId,
    /// Digest of the database file that was then known to be here.
    pub sha256: Digest,
    /// Whether that snapshot is on a branch.
    pub is_branch: bool,
    /// The snapshot that was about to be published from it.
    pub pending: Option<SnapshotId>,
}

/// What the content of the database file is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Likeness {
    /// The newest snapshot's.
    Newest,
    /// This older snapshot's.
    Older(SnapshotId),
    /// There was no database, or one without a byte: what is there later began from nothing.
    Absent,
    /// No known snapshot's.
    None,
    /// Not the newest's; about older ones nobody looked.
    NotNewest,
    /// Nobody looked, or it took too long.
    Unknown,
}

/// What there is to judge by, taken before the application could write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// What was noted of this very file.
    pub known: Option<Known>,
    /// When database or log were last written.
    pub modified_at: Option<Timestamp>,
    /// What the content is like.
    pub likeness: Likeness,
}

/// Whether a database may become head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It descends from the newest snapshot, or there is none.
    Descends,
    /// Nothing speaks against it, and nothing for it. It is taken to descend: a lost note must not
    /// end the backups of a healthy machine.
    Unknown,
    /// It does not.
    Older(Fork),
}

/// Where and why a database left the line of the newest snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fork {
    /// The snapshot it descends from, if that is known.
    pub from: Option<SnapshotId>,
    /// The newest snapshot then.
    pub newest: SnapshotId,
}

/// What to do about a branch, after its [`Fork`].
pub const WAYS_OUT: &str = "its snapshots form a branch. Keep this side with `lifeboat adopt --apply`, or follow the newest \
                            with `lifeboat restore` while the application is stopped";

impl fmt::Display for Fork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.from {
            Some(from) => {
                write!(f, "the database descends from {from}, not from the newest snapshot {}", self.newest)
            }
            None => write!(f, "the database does not come from the newest snapshot {}", self.newest),
        }
    }
}

/// As whom a process publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its epoch.
    pub epoch: u64,
    /// Why its snapshots form a branch; none if they become head.
    pub fork: Option<Fork>,
}

impl Standing {
    /// A writer whose snapshots become head, as long as nobody claims a higher epoch.
    pub fn head(epoch: u64) -> Standing {
        Standing { epoch, fork: None }
    }
}

/// Judges by what was noted; what the content is can only speak for a database that the note
/// speaks against, for a note may be out of date. Without a note the content and the times tell.
pub fn judge(newest: Option<&Newest>, evidence: &Evidence) -> Verdict {
    let Some(newest) = newest else { return Verdict::Descends };
    if evidence.likeness == Likeness::Newest {
        return Verdict::Descends;
    }
    let older =
        |from: Option<&SnapshotId>| Verdict::Older(Fork { from: from.cloned(), newest: newest.id.clone() });
    if let Some(known) = &evidence.known {
        let is_named = known.snapshot == newest.id || known.pending.as_ref() == Some(&newest.id);
        // The content that was here is the newest now: somebody adopted it.
        let is_adopted = newest.content.is_some_and(|(sha256, _)| sha256 == known.sha256);
        return match () {
            () if is_named || is_adopted => Verdict::Descends,
            // The head stands behind what was published from here: storage lost something, not we.
            () if !known.is_branch && newest.id < known.snapshot => Verdict::Unknown,
            () => older(Some(&known.snapshot)),
        };
    }
    let is_untouched_since = match (evidence.modified_at, newest.content) {
        (Some(modified_at), Some((_, taken_at))) => modified_at < taken_at,
        _ => false,
    };
    match &evidence.likeness {
        Likeness::Older(id) => older(Some(id)),
        Likeness::Absent => older(None),
        // Whatever was last written before the newest snapshot was taken from here is in it.
        Likeness::None | Likeness::NotNewest if is_untouched_since => older(None),
        _ => Verdict::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(minute: i64) -> SnapshotId {
        SnapshotId::next(time(minute), None, 0)
    }

    fn time(minute: i64) -> Timestamp {
        Timestamp::from_second(minute * 60).expect("in range")
    }

    fn digest(minute: i64) -> Digest {
        Digest::of(&minute.to_be_bytes())
    }

    fn known(minute: i64) -> Known {
        Known { snapshot: id(minute), sha256: digest(minute), is_branch: false, pending: None }
    }

    /// The newest snapshot is that of minute 5.
    fn verdict(known: Option<Known>, modified: Option<i64>, likeness: Likeness) -> Verdict {
        let newest = Newest { id: id(5), content: Some((digest(5), time(5))) };
        judge(Some(&newest), &Evidence { known, modified_at: modified.map(time), likeness })
    }

    fn older(from: Option<i64>) -> Verdict {
        Verdict::Older(Fork { from: from.map(id), newest: id(5) })
    }

    #[test]
    fn a_note_of_this_file_decides() {
        use Likeness::{NotNewest, Unknown};
        use Verdict::Descends;
        let pending = |minute| Some(Known { pending: Some(id(minute)), ..known(3) });
        let branch = |minute| Some(Known { is_branch: true, ..known(minute) });
        let same_content = Some(Known { sha256: digest(5), is_branch: true, ..known(4) });
        for (note, likeness, expected) in [
            (Some(known(5)), Unknown, Descends),
            // Whatever was written since: it was written on top of it.
            (Some(known(5)), NotNewest, Descends),
            (Some(known(3)), Unknown, older(Some(3))),
            (Some(known(3)), NotNewest, older(Some(3))),
            // The note is out of date, and the content shows it.
            (Some(known(3)), Likeness::Newest, Descends),
            // Published, and killed before that was noted.
            (pending(5), Unknown, Descends),
            (pending(4), Unknown, older(Some(3))),
            // Storage was set back.
            (Some(known(7)), Unknown, Verdict::Unknown),
            // A branch stays one, also when it is the younger side.
            (branch(7), Unknown, older(Some(7))),
            (branch(4), Unknown, older(Some(4))),
            // Adopted: under another id, with the content that is here.
            (same_content, Unknown, Descends),
        ] {
            // When the file was written adds nothing.
            for modified in [None, Some(1), Some(9)] {
                assert_eq!(
                    verdict(note.clone(), modified, likeness.clone()),
                    expected,
                    "{note:?} {likeness:?}"
                );
            }
        }
    }

    #[test]
    fn without_a_note_the_content_and_the_times_tell() {
        use Likeness::{None as Neither, NotNewest, Older, Unknown};
        for (modified, likeness, expected) in [
            (Some(4), Likeness::Newest, Verdict::Descends),
            (Some(9), Likeness::Newest, Verdict::Descends),
            (Some(4), Older(id(2)), older(Some(2))),
            (Some(9), Older(id(2)), older(Some(2))),
            (None, Likeness::Absent, older(None)),
            (Some(9), Likeness::Absent, older(None)),
            (Some(4), Neither, older(None)),
            (Some(4), NotNewest, older(None)),
            (Some(4), Unknown, Verdict::Unknown),
            // Written since: that is what a healthy machine does that lost its note.
            (Some(9), Neither, Verdict::Unknown),
            (Some(9), NotNewest, Verdict::Unknown),
            (Some(5), Neither, Verdict::Unknown),
            (None, Neither, Verdict::Unknown),
        ] {
            assert_eq!(verdict(None, modified, likeness.clone()), expected, "{modified:?} {likeness:?}");
        }
    }

    #[test]
    fn where_there_is_no_snapshot_every_database_is_the_first() {
        for note in [None, Some(known(3))] {
            let evidence = Evidence { known: note, modified_at: None, likeness: Likeness::Unknown };
            assert_eq!(judge(None, &evidence), Verdict::Descends);
        }
    }

    #[test]
    fn a_damaged_newest_snapshot_is_known_by_its_id_only() {
        let newest = Newest { id: id(5), content: None };
        let judged = |known| {
            judge(Some(&newest), &Evidence { known, modified_at: Some(time(1)), likeness: Likeness::Unknown })
        };
        assert_eq!(judged(Some(known(5))), Verdict::Descends);
        assert_eq!(judged(Some(known(3))), older(Some(3)));
        assert_eq!(judged(None), Verdict::Unknown);
    }
}
