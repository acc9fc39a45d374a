//! `lifeboat snapshots`, and what the other verbs say of the spool.

use bytesize::ByteSize;
use serde_json::json;

use super::verbs::{Verbs, line};
use crate::catalog::{self, Branch, Gap, Listing, Reach, Window};
use crate::config::DatabaseFile;
use crate::error::{ErrorKind, Result};
use crate::metrics::Metrics;
use crate::setup;
use crate::snapshot::{Manifest, Proof, SnapshotId};
use crate::spool::{Contents, Spool, State};

/// What storage has of one database.
struct Stored {
    listing: Listing,
    drills: Vec<Proof>,
    branches: Vec<Branch>,
    /// An error if deltas may not be listed.
    reach: Result<Option<Reach>>,
    location: String,
}

impl Verbs<'_> {
    /// Lists what is in storage, and what waits for it in the spool; that also if storage cannot be reached.
    pub async fn snapshots(&self, name: Option<String>) -> Result<()> {
        let database = self.database(name)?;
        let (waits, trouble) = match self.spool(&database) {
            None => (Contents::default(), Vec::new()),
            Some(spool) => match spool.contents().await {
                Ok(contents) => {
                    let trouble = contents.trouble.clone();
                    (contents, trouble)
                }
                Err(error) => (Contents::default(), vec![error.chain()]),
            },
        };
        let (stored, outage) = match self.stored(&database).await {
            Ok(stored) => (Some(stored), None),
            Err(error) if waits.waiting.is_empty() && trouble.is_empty() => return Err(error),
            Err(error) => (None, Some(error)),
        };
        let mut text = String::new();
        let newest_first = || waits.waiting.iter().rev();
        for manifest in newest_first() {
            text.push_str(&format!("{}  waits in the spool\n", with_drill(manifest, &waits.drills)));
        }
        for dropped in &waits.dropped {
            text.push_str(&format!("dropped {} from the spool, for {}\n", dropped.snapshot, dropped.reason));
        }
        text.extend(trouble.iter().map(|trouble| format!("spool: {trouble}\n")));
        let mut listed = json!({
            "spooled": newest_first().collect::<Vec<_>>(), "dropped": waits.dropped, "spool_trouble": trouble
        });
        if let Some(stored) = &stored {
            text.push_str(&stored.text());
            let more = stored.json();
            listed.as_object_mut().into_iter().for_each(|listed| listed.extend(more.clone()));
        }
        if text.is_empty() {
            let location = stored.map(|stored| stored.location).unwrap_or_default();
            text = format!("no snapshots of {} in {location}", database.name);
        }
        self.output.result(&listed, text)?;
        outage.map_or(Ok(()), Err)
    }

    async fn stored(&self, database: &DatabaseFile) -> Result<Stored> {
        let catalog = setup::catalog(&self.open().await?, &database.name);
        let (listing, drills) = (catalog.list().await?, catalog.drills().await?);
        // The head is asked only where it tells something; one that cannot be read does not keep the rest back.
        let newest = match listing.snapshots.iter().any(Manifest::is_branch) {
            true => catalog.newest_id().await.ok().flatten(),
            false => None,
        };
        let branches = catalog::branches(&listing.snapshots, newest.as_ref());
        let reach = match catalog.reach(&listing.snapshots).await {
            Err(error) if error.kind() != ErrorKind::Denied => return Err(error),
            reach => reach,
        };
        Ok(Stored { listing, drills, branches, reach, location: catalog.storage().location() })
    }

    /// Where the snapshots of `database` wait while storage cannot be reached, if anywhere.
    pub(super) fn spool(&self, database: &DatabaseFile) -> Option<Spool> {
        // Nobody asks a command for its numbers.
        let metrics = Metrics::new().database(&database.name);
        setup::spool(&self.config, &database.name, &self.clock, metrics)
    }

    /// What the spool shows, if there is one.
    pub(super) async fn spool_state(&self, database: &DatabaseFile) -> Option<State> {
        let spool = self.spool(database)?;
        spool.look().await;
        Some(spool.state())
    }

    /// Prints what the spool shows, where there is nothing else to show.
    pub(super) fn show_spool(&self, spool: Option<&State>) -> Result<()> {
        let reasons = spool.map(State::reasons).unwrap_or_default();
        if reasons.is_empty() {
            return Ok(());
        }
        let text: String = reasons.iter().map(|reason| format!("spool     {reason}\n")).collect();
        self.output.result(&json!({ "spool": spool }), text)
    }

    /// Proves a snapshot in the spool; `None` if none of this id waits there.
    pub(super) async fn prove_spooled(
        &self,
        database: &DatabaseFile,
        id: &SnapshotId,
    ) -> Result<Option<Proof>> {
        let Some(spool) = self.spool(database) else { return Ok(None) };
        let Some(storage) = spool.storage().await? else { return Ok(None) };
        spool.prove(id, &self.resources(&storage, "proving")).await
    }
}

impl Stored {
    fn text(&self) -> String {
        let mut text = String::new();
        for manifest in &self.listing.snapshots {
            text.push_str(&with_drill(manifest, &self.drills));
            text.push('\n');
        }
        for branch in &self.branches {
            text.push_str(&format!("{branch}\n"));
        }
        for (key, error) in &self.listing.damaged {
            text.push_str(&format!("damaged {key}: {}\n", error.chain()));
        }
        match &self.reach {
            Ok(reach) => reach.iter().for_each(|reach| text.push_str(&windows(reach))),
            Err(error) => text.push_str(&format!(
                "whether more than snapshots can be restored is not known, deltas may not be listed: {}\n",
                error.chain()
            )),
        }
        text
    }

    fn json(&self) -> serde_json::Map<String, serde_json::Value> {
        let Stored { listing: Listing { snapshots, damaged }, drills, branches, reach, .. } = self;
        let (failed, proofs): (Vec<&Proof>, Vec<&Proof>) =
            drills.iter().partition(|drill| drill.failure.is_some());
        let damaged: Vec<String> =
            damaged.iter().map(|(key, error)| format!("{key}: {}", error.chain())).collect();
        let listed = json!({
            "snapshots": snapshots, "proofs": proofs, "failed_drills": failed, "branches": branches,
            "damaged": damaged
        });
        let mut listed = listed.as_object().cloned().unwrap_or_default();
        match reach {
            Ok(None) => {}
            Ok(Some(reach)) => drop(listed.insert("point_in_time".to_owned(), json!(reach))),
            Err(error) => drop(listed.insert("point_in_time_denied".to_owned(), json!(error.chain()))),
        }
        listed
    }
}

/// From when to when any moment can be restored, and the gaps, newest first.
fn windows(reach: &Reach) -> String {
    let of_window = |Window { from, until, deltas, delta_bytes }: &Window| {
        let bytes = ByteSize(*delta_bytes);
        (*from, format!("any moment  {from} to {until}, {deltas} deltas of {bytes}\n"))
    };
    let of_gap = |Gap { after, until }: &Gap| (*after, format!("gap         {after} to {until}\n"));
    let mut lines: Vec<_> =
        reach.windows.iter().map(of_window).chain(reach.gaps.iter().map(of_gap)).collect();
    lines.sort();
    lines.into_iter().rev().map(|(_, line)| line).collect()
}

/// A snapshot on one line, with its last drill.
fn with_drill(manifest: &Manifest, drills: &[Proof]) -> String {
    line(manifest, Some(drills.iter().find(|drill| drill.snapshot == manifest.id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::error::Error;

    fn stored(reach: Result<Option<Reach>>) -> Stored {
        let listing = Listing { snapshots: Vec::new(), damaged: Vec::new() };
        Stored { listing, drills: Vec::new(), branches: Vec::new(), reach, location: String::new() }
    }

    fn time(clock: &str) -> Timestamp {
        format!("2026-11-21T{clock}Z").parse().expect("a time")
    }

    #[test]
    fn windows_and_gaps_are_shown_newest_first_where_something_was_captured() {
        let window =
            |from, until| Window { from: time(from), until: time(until), deltas: 2, delta_bytes: 2048 };
        let windows = vec![window("12:00:00", "12:30:00"), window("13:00:00", "14:00:00")];
        let gaps = vec![Gap { after: time("12:30:00"), until: time("13:00:00") }];
        let stored_deltas = stored(Ok(Some(Reach { windows, gaps })));
        insta::assert_snapshot!(stored_deltas.text(), @r"
        any moment  2026-11-21T13:00:00Z to 2026-11-21T14:00:00Z, 2 deltas of 2.0 KiB
        gap         2026-11-21T12:30:00Z to 2026-11-21T13:00:00Z
        any moment  2026-11-21T12:00:00Z to 2026-11-21T12:30:00Z, 2 deltas of 2.0 KiB
        ");
        assert_eq!(stored_deltas.json()["point_in_time"]["gaps"][0]["after"], "2026-11-21T12:30:00Z");
        let nothing = stored(Ok(None));
        assert_eq!(nothing.text(), "");
        assert!(!nothing.json().contains_key("point_in_time"));
    }

    #[test]
    fn that_deltas_may_not_be_listed_is_said() {
        let denied = stored(Err(Error::new(ErrorKind::Denied, "no s3:ListBucket")));
        assert!(denied.text().contains("deltas may not be listed: no s3:ListBucket"), "{}", denied.text());
        assert_eq!(denied.json()["point_in_time_denied"], "no s3:ListBucket");
    }
}
