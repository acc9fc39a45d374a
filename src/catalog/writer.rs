//! Writing to the catalog: claim an epoch, publish a snapshot, note a proof.

use bytes::Bytes;
use jiff::Timestamp;

use super::Catalog;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::lineage;
use crate::snapshot::{
    Claim, DatabaseId, FORMAT, Head, Identity, Key, Kind, Manifest, Proof, Record, SnapshotId,
    is_other_format,
};
use crate::storage::{self, Version};

/// How often a lost compare-and-swap is tried again. Each loss means that another writer got one
/// through, and there are never more than a few.
const SWAPS_MAX: usize = 16;

/// How many epochs above the head are tried: each that is taken is a start that ended before it moved
/// the head, or that of a branch.
const CLAIMS_MAX: usize = 64;

impl Catalog {
    /// The identity of this history; the first caller makes it, from 128 random bits. One that was
    /// lost is made again as this catalog or the newest snapshot has it.
    pub async fn ensure_identity(&self, now: Timestamp, random: u128) -> Result<Identity> {
        if let Some(identity) = self.identity().await? {
            return Ok(identity);
        }
        let newest = match self.head().await? {
            Some((Head { snapshot: Some(id), .. }, _)) => Some(self.named(&id).await?),
            _ => None,
        };
        let known = self.known.get().cloned().or_else(|| newest.map(|newest| newest.database_id));
        let ours = Identity {
            format: FORMAT,
            database: self.database.clone(),
            database_id: known.unwrap_or_else(|| DatabaseId::new(random)),
            created_at: now,
        };
        match self.create(&Key::Identity(self.database.clone()), &ours).await {
            Ok(()) => {
                let _ = self.known.set(ours.database_id.clone());
                Ok(ours)
            }
            Err(error) if error.kind() == ErrorKind::Conflict => self.identity().await?.ok_or(error),
            Err(error) => Err(error),
        }
    }

    /// Claims a new epoch and moves the head to it, whatever it names, which fences every writer
    /// before us. `holder` says who we are, for people.
    ///
    /// `Fenced` if somebody claimed a higher epoch meanwhile.
    pub async fn claim_epoch(&self, holder: &str, now: Timestamp) -> Result<u64> {
        let (epoch, listed) = self.claim(holder, false, now).await?;
        self.move_head(epoch, |head| lineage::claimed_head(head, epoch, listed.as_ref(), now)).await?;
        Ok(epoch)
    }

    /// The same for a writer whose database was found to descend from the snapshot `judged`.
    ///
    /// `Conflict` if the head names another one by now: judge again. Then the head has not moved.
    pub async fn claim_epoch_after(
        &self,
        judged: Option<&SnapshotId>,
        holder: &str,
        now: Timestamp,
    ) -> Result<u64> {
        let (epoch, listed) = self.claim(holder, false, now).await?;
        let next = |head: Option<&Head>| {
            lineage::judged_head(lineage::claimed_head(head, epoch, listed.as_ref(), now)?, judged)
        };
        self.move_head(epoch, next).await?;
        Ok(epoch)
    }

    /// Claims an epoch for a writer that must not become head: it names its branch, and fences nobody.
    pub async fn claim_branch(&self, holder: &str, now: Timestamp) -> Result<u64> {
        self.claim(holder, true, now).await.map(|(epoch, _)| epoch)
    }

    /// Says in the head that the writer of `own_epoch` has stopped in order.
    ///
    /// `Fenced` if a newer writer owns the head.
    pub async fn release_epoch(&self, own_epoch: u64, now: Timestamp) -> Result<()> {
        self.move_head(own_epoch, |head| lineage::released_head(head, own_epoch, now)).await.map(drop)
    }

    /// An epoch of our own, and the newest snapshot by listing if there is no head to tell it.
    async fn claim(&self, holder: &str, branch: bool, now: Timestamp) -> Result<(u64, Option<SnapshotId>)> {
        let head = self.head().await?.map(|(head, _)| head);
        let highest = match &head {
            Some(_) => None,
            None => self.claim_highest().await?,
        };
        let first = lineage::next_epoch(head.as_ref(), highest)?;
        let epoch = self.create_claim(first, holder, branch, now).await?;
        let listed = match &head {
            Some(_) => None,
            None => self.newest_for_head(epoch).await?,
        };
        Ok((epoch, listed))
    }

    /// Makes a snapshot exist, after its data is stored: its manifest first, then the head.
    ///
    /// `Fenced` if a newer writer owns the head, `Conflict` if the head names a newer snapshot;
    /// neither leaves a manifest behind. After any other error the manifest may stand: then the
    /// snapshot exists but is not the newest, and the same call may be made again.
    pub async fn publish(&self, manifest: &Manifest, own_epoch: u64, now: Timestamp) -> Result<Head> {
        if manifest.is_branch() {
            let message = format!("make a branch the newest snapshot: key=`{}`", manifest.key());
            return Err(Error::new(ErrorKind::Internal, message));
        }
        self.require_ours(manifest, own_epoch)?;
        let next = |head: Option<&Head>| lineage::moved_head(head, own_epoch, &manifest.id, now);
        let current = self.head_unless_fenced(own_epoch).await?;
        next(current.as_ref().map(|(head, _)| head))?;
        // From here until the swap another writer may overtake us. In that window our manifest is
        // listed although we are fenced. It is harmless: the data is complete, the head never
        // names it, and it is withdrawn when the swap is refused. If we die in between, or may not
        // delete, it stays as a snapshot that never was the newest.
        self.create_manifest(manifest).await?;
        let moved = self.move_head(own_epoch, next).await;
        if let Err(error) = &moved
            && matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Conflict)
        {
            self.withdraw_unless_named(manifest).await;
        }
        moved
    }

    /// Makes a snapshot the newest whose manifest stands: whoever published it was interrupted before the
    /// head moved, and its epoch may be an older one.
    ///
    /// `Fenced` if a newer writer owns the head, `Conflict` if the head names a newer snapshot.
    pub async fn finish_publishing(
        &self,
        manifest: &Manifest,
        own_epoch: u64,
        now: Timestamp,
    ) -> Result<Head> {
        if manifest.is_branch() {
            let message = format!("make a branch the newest snapshot: key=`{}`", manifest.key());
            return Err(Error::new(ErrorKind::Internal, message));
        }
        self.move_head(own_epoch, |head| lineage::moved_head(head, own_epoch, &manifest.id, now)).await
    }

    /// Makes a snapshot of a branch exist, after its data is stored. The head stays what it is.
    ///
    /// `Conflict` if its data is gone: whoever prunes takes data for an orphan that waits for its
    /// manifest for longer than the safety age. Then no manifest is left behind.
    pub async fn publish_branch(&self, manifest: &Manifest, own_epoch: u64) -> Result<()> {
        if !manifest.is_branch() {
            let message = format!("publish past the head what is no branch: key=`{}`", manifest.key());
            return Err(Error::new(ErrorKind::Internal, message));
        }
        self.require_ours(manifest, own_epoch)?;
        self.create_beside_head(manifest).await
    }

    /// Makes a snapshot exist that is older than the newest one, after its data is stored: it was taken
    /// before that and waited elsewhere. The head stays what it is.
    ///
    /// `Fenced` if a newer writer owns the head; `Internal` if the head names no newer snapshot;
    /// `Conflict` if its data is gone. None of them leaves a manifest behind.
    pub async fn publish_older(&self, manifest: &Manifest, own_epoch: u64) -> Result<()> {
        self.require_ours(manifest, own_epoch)?;
        let head = self.head_unless_fenced(own_epoch).await?.and_then(|(head, _)| head.snapshot);
        if manifest.is_branch() || head.as_ref() <= Some(&manifest.id) {
            let message =
                format!("publish past the head what is not older than it: key=`{}`", manifest.key());
            return Err(Error::new(ErrorKind::Internal, message));
        }
        self.create_beside_head(manifest).await
    }

    /// Writes the manifest, unless the data was removed before that.
    async fn create_beside_head(&self, manifest: &Manifest) -> Result<()> {
        self.create_manifest(manifest).await?;
        if self.storage.head(&manifest.data_key()).await?.is_some() {
            return Ok(());
        }
        self.storage.delete(&manifest.key()).await?;
        let message =
            format!("the data was removed before its manifest was written: key=`{}`", manifest.data_key());
        Err(Error::new(ErrorKind::Conflict, message))
    }

    fn require_ours(&self, manifest: &Manifest, own_epoch: u64) -> Result<()> {
        if manifest.database == self.database && manifest.epoch == own_epoch {
            return Ok(());
        }
        let message = format!("publish a manifest of another database or epoch: key=`{}`", manifest.key());
        Err(Error::new(ErrorKind::Internal, message))
    }

    /// Notes what came of a snapshot's drill, in place of an older outcome.
    pub async fn write_proof(&self, proof: &Proof) -> Result<()> {
        let key = Key::Proof(self.database.clone(), proof.snapshot.clone());
        for _ in 0..SWAPS_MAX {
            let (standing, version) = match self.bytes(&key, Proof::BYTES_MAX).await? {
                Some((bytes, version)) => match Proof::decode(&bytes, &key) {
                    Err(error) if is_other_format(&error) => return Err(error),
                    // A damaged one is replaced.
                    standing => (standing.ok(), Some(version)),
                },
                None => (None, None),
            };
            if standing.is_some_and(|standing| standing.proven_at >= proof.proven_at) {
                return Ok(());
            }
            match self.storage.replace(&key, version.as_ref(), proof.encode().into()).await {
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                written => return written.map(drop),
            }
        }
        Err(kept_changing(&key))
    }

    /// The head, if the writer of `own_epoch` may still publish.
    async fn head_unless_fenced(&self, own_epoch: u64) -> Result<Option<(Head, Version)>> {
        let current = self.head().await?;
        lineage::may_publish(current.as_ref().map(|(head, _)| head), own_epoch)?;
        // Somebody removed the head, or the store may lose a swap: then the claims tell.
        if (current.is_none() || !self.storage.guarantees().compare_and_swap)
            && let Some(newer) = self.overtaken_by(own_epoch).await?
        {
            return Err(lineage::fenced(own_epoch, newer));
        }
        Ok(current)
    }

    /// The first claim after `own_epoch` that is no branch's. One that cannot be read counts.
    async fn overtaken_by(&self, own_epoch: u64) -> Result<Option<u64>> {
        for epoch in (own_epoch..).skip(1).take(CLAIMS_MAX) {
            match self.record::<Claim>(&Key::Epoch(self.database.clone(), epoch)).await {
                Ok(None) => return Ok(None),
                Ok(Some((claim, _))) if claim.branch => {}
                Ok(Some(_)) => return Ok(Some(epoch)),
                Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(Some(epoch)),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Swaps the head for what `next` makes of it, again as long as others swap it before us.
    async fn move_head(
        &self,
        own_epoch: u64,
        next: impl Fn(Option<&Head>) -> Result<Head> + Send,
    ) -> Result<Head> {
        let key = self.head_key();
        for _ in 0..SWAPS_MAX {
            let current = self.head_unless_fenced(own_epoch).await?;
            let (head, version) = current.unzip();
            let moved = next(head.as_ref())?;
            match self.storage.replace(&key, version.as_ref(), moved.encode().into()).await {
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                Ok(_) if !self.storage.guarantees().compare_and_swap => {
                    // Nothing was compared. Whoever wrote at the same time is seen now, in the head or by
                    // its claim; what it wrote in place of ours stands, unless it is older.
                    let standing = self.head_unless_fenced(own_epoch).await?.map(|(head, _)| head);
                    if standing.as_ref() == Some(&moved) {
                        return Ok(moved);
                    }
                }
                swapped => return swapped.map(|_| moved),
            }
        }
        Err(kept_changing(&key))
    }

    async fn create_claim(&self, first: u64, holder: &str, branch: bool, now: Timestamp) -> Result<u64> {
        if let Some(epoch) = self.first_free_claim(first, holder, branch, now).await? {
            return Ok(epoch);
        }
        // Every start of a branch takes one and moves no head; with luck, all are listed.
        let beyond = self.claim_highest().await?.and_then(|highest| highest.checked_add(1));
        if let Some(beyond) = beyond.filter(|beyond| *beyond > first)
            && let Some(epoch) = self.first_free_claim(beyond, holder, branch, now).await?
        {
            return Ok(epoch);
        }
        Err(Error::new(
            ErrorKind::Limit,
            format!(
                "claim an epoch, {CLAIMS_MAX} in a row are taken: database=`{}` first=`{first}`",
                self.database
            ),
        ))
    }

    async fn first_free_claim(
        &self,
        first: u64,
        holder: &str,
        branch: bool,
        now: Timestamp,
    ) -> Result<Option<u64>> {
        for epoch in (first..).take(CLAIMS_MAX) {
            let claim = Claim { format: FORMAT, epoch, holder: holder.to_owned(), claimed_at: now, branch };
            match self.create(&Key::Epoch(self.database.clone(), epoch), &claim).await {
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                created => return created.map(|()| Some(epoch)),
            }
        }
        Ok(None)
    }

    /// The highest epoch ever claimed, as far as listing is permitted.
    async fn claim_highest(&self) -> Result<Option<u64>> {
        let claims = match self.objects(Kind::Epochs).await {
            Err(error) if error.kind() == ErrorKind::Denied => return Ok(None),
            claims => claims?,
        };
        Ok(claims
            .into_iter()
            .filter_map(|(key, _)| match key {
                Key::Epoch(_, epoch) => Some(epoch),
                _ => None,
            })
            .max())
    }

    /// The newest snapshot by listing, for a head that has to be made anew.
    ///
    /// A head that says "no snapshot" beside existing ones would let a boot begin with an empty
    /// database. So without permission to list only the very first claim goes on.
    async fn newest_for_head(&self, own_epoch: u64) -> Result<Option<SnapshotId>> {
        match self.newest_id_listed().await {
            Err(error) if error.kind() == ErrorKind::Denied && own_epoch == 1 => Ok(None),
            Err(error) if error.kind() == ErrorKind::Denied => Err(Error::new(
                ErrorKind::Denied,
                format!(
                    "head.json is missing though there were writers before, and finding the newest snapshot \
                     takes a listing: permit it for one start, or put head.json back: database=`{}`",
                    self.database
                ),
            )
            .because(error)),
            newest => newest,
        }
    }

    /// Writes the manifest; that the same one stands already is no error.
    async fn create_manifest(&self, manifest: &Manifest) -> Result<()> {
        let key = manifest.key();
        Manifest::read(&manifest.encode(), &key)
            .context(ErrorKind::Internal, || "publish a manifest no reader would accept".to_owned())?;
        match self.create(&key, manifest).await {
            Err(error) if error.kind() == ErrorKind::Conflict => {
                match self.find_manifest(&key).await? {
                    Some(standing) if standing == *manifest => Ok(()),
                    // Not `Conflict`: what stands there is not ours to withdraw.
                    _ => Err(Error::new(
                        ErrorKind::Corrupt,
                        format!("another snapshot stands under our id: key=`{key}`"),
                    )
                    .because(error)),
                }
            }
            created => created,
        }
    }

    /// Takes a refused snapshot back (its data is swept later, as an orphan), unless the head names it: our swap may
    /// have succeeded with its answer lost, and whoever overtook us then built upon it. When in doubt it stays.
    async fn withdraw_unless_named(&self, manifest: &Manifest) {
        let key = manifest.key();
        match self.head().await {
            Ok(Some((head, _))) if head.snapshot.as_ref() != Some(&manifest.id) => {}
            _ => return,
        }
        if let Err(error) = self.storage.delete(&key).await {
            tracing::warn!(%key, error = error.chain(), "the manifest of a fenced writer stays listed");
        }
    }

    async fn create(&self, key: &Key, record: &impl Record) -> Result<()> {
        self.storage.create(key, storage::whole(Bytes::from(record.encode()))).await
    }
}

fn kept_changing(key: &Key) -> Error {
    Error::new(ErrorKind::Busy, format!("swap a record, it changed {SWAPS_MAX} times meanwhile: key=`{key}`"))
}
