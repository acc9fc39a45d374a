//! The table of crash points: where each stands in the order of things, and its name.

/// Makes the enum, the list of all and the names from one table.
macro_rules! points {
    ($($(#[$what_was_done:meta])+ $point:ident $name:literal,)+) => {
        /// A moment between two steps at which a crash is tried.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Point {
            $($(#[$what_was_done])+ $point,)+
        }

        impl Point {
            /// Every point.
            pub const ALL: &[Point] = &[$(Point::$point),+];

            /// Its name, by which a test asks for it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Point::$point => $name,)+
                }
            }
        }
    };
}

points! {
    // Writes to storage, whatever its kind: each before it is asked for and after it was answered.
    /// The identity is about to be made.
    IdentityCreating "identity-creating",
    /// The identity stands.
    IdentityCreated "identity-created",
    /// An epoch is about to be claimed.
    ClaimCreating "claim-creating",
    /// The claim stands; the head has not moved.
    ClaimCreated "claim-created",
    /// The data of a snapshot is about to be stored.
    DataCreating "data-creating",
    /// The storage takes one more part of the data.
    DataPartTaken "data-part-taken",
    /// The data stands; there is no manifest.
    DataCreated "data-created",
    /// The manifest is about to be written.
    ManifestCreating "manifest-creating",
    /// The snapshot exists; the head does not name it.
    ManifestCreated "manifest-created",
    /// The head is about to move.
    HeadReplacing "head-replacing",
    /// The head has moved.
    HeadReplaced "head-replaced",
    /// A proof is about to be noted.
    ProofReplacing "proof-replacing",
    /// A proof is noted.
    ProofReplaced "proof-replaced",
    /// The store is about to be tried.
    ProbeCreating "probe-creating",
    /// A probe stands.
    ProbeCreated "probe-created",
    /// A probe is about to be replaced.
    ProbeReplacing "probe-replacing",
    /// A probe was replaced, or that was refused.
    ProbeReplaced "probe-replaced",
    /// A delta is about to be stored.
    DeltaCreating "delta-creating",
    /// A delta stands.
    DeltaCreated "delta-created",
    /// A delta is about to be removed.
    DeltaDeleting "delta-deleting",
    /// A delta is gone; others that lead over the same positions stand.
    DeltaDeleted "delta-deleted",
    /// A manifest is about to be removed.
    ManifestDeleting "manifest-deleting",
    /// The manifest is gone; its data stands.
    ManifestDeleted "manifest-deleted",
    /// The data of a snapshot is about to be removed.
    DataDeleting "data-deleting",
    /// The data is gone; its proof stands.
    DataDeleted "data-deleted",
    /// A proof is about to be removed.
    ProofDeleting "proof-deleting",
    /// A proof is gone.
    ProofDeleted "proof-deleted",
    /// A probe is about to be removed.
    ProbeDeleting "probe-deleting",
    /// A probe is gone.
    ProbeDeleted "probe-deleted",
    /// What was never finished is about to be removed.
    UnfinishedSweeping "unfinished-sweeping",
    /// What was never finished is gone.
    UnfinishedSwept "unfinished-swept",

    // A directory as storage.
    /// A folder of the layout was made and is not synced.
    DirectoryFolderMade "directory-folder-made",
    /// An object's temporary file is there, empty.
    DirectoryObjectBegun "directory-object-begun",
    /// A piece of an object is in its temporary file.
    DirectoryObjectAppended "directory-object-appended",
    /// All of an object is in its temporary file, synced.
    DirectoryObjectSynced "directory-object-synced",
    /// An object has its name and its temporary one; the folder is not synced.
    DirectoryObjectLinked "directory-object-linked",
    /// The lock for replacing a record is held.
    DirectoryRecordLocked "directory-record-locked",
    /// The new record is in its temporary file, synced.
    DirectoryRecordSynced "directory-record-synced",
    /// The record is replaced; the folder is not synced.
    DirectoryRecordRenamed "directory-record-renamed",
    /// An object's name is removed; the folder is not synced.
    DirectoryObjectRemoved "directory-object-removed",
    /// A temporary file of an earlier process is removed.
    DirectoryUnfinishedRemoved "directory-unfinished-removed",

    // A bucket as storage.
    /// A multipart upload has begun.
    S3UploadBegun "s3-upload-begun",
    /// A part of an upload was sent.
    S3PartSent "s3-part-sent",
    /// All parts were sent; the upload is not completed.
    S3PartsSent "s3-parts-sent",
    /// The upload is completed.
    S3UploadCompleted "s3-upload-completed",
    /// An upload that failed, or whose content is stored already, is ended.
    S3UploadAborted "s3-upload-aborted",
    /// An upload that an earlier process began is ended.
    S3UnfinishedAborted "s3-unfinished-aborted",

    // A backup, on this machine.
    /// The transaction on the source is open.
    SourcePinned "source-pinned",
    /// The scratch copy of a database without WAL is written.
    SourceCopied "source-copied",
    /// The note of descent is in its temporary file, synced.
    NoteSynced "note-synced",
    /// The note of descent is replaced; its folder is not synced.
    NoteRenamed "note-renamed",

    // The spool, while storage cannot be reached.
    /// One of the spool's own files is in its temporary file, synced.
    SpoolRecordSynced "spool-record-synced",
    /// One of the spool's own files has its name; the folder is not synced.
    SpoolRecordRenamed "spool-record-renamed",
    /// Nobody else works on the spool of this database.
    SpoolLocked "spool-locked",
    /// What a process left unfinished in the spool is removed.
    SpoolUnfinishedRemoved "spool-unfinished-removed",
    /// Data or a proof without a manifest is removed from the spool.
    SpoolOrphanRemoved "spool-orphan-removed",
    /// The data of a snapshot is in the spool; there is no manifest.
    SpoolDataWritten "spool-data-written",
    /// The snapshot waits in the spool; nobody was told yet.
    SpoolManifestWritten "spool-manifest-written",
    /// It is noted that a snapshot is dropped; it is still there.
    SpoolLossNoted "spool-loss-noted",
    /// The data of a snapshot that waits is in storage; there is no manifest.
    SpoolDataShipped "spool-data-shipped",
    /// A snapshot that waits is published; it is not proven in storage.
    SpoolPublished "spool-published",
    /// What was shipped is proven in storage; it still is in the spool.
    SpoolProven "spool-proven",
    /// A manifest is gone from the spool; its data stands.
    SpoolManifestRemoved "spool-manifest-removed",
    /// The data is gone from the spool; its proof may stand.
    SpoolDataRemoved "spool-data-removed",
    /// Nothing is left of a snapshot in the spool.
    SpoolProofRemoved "spool-proof-removed",
    /// What was dropped is forgotten, for something newer was shipped.
    SpoolLossForgotten "spool-loss-forgotten",

    // A copy of a snapshot.
    /// The copy's file is there, empty and locked.
    CopyCreated "copy-created",
    /// A piece of the database is in the copy.
    CopyAppended "copy-appended",
    /// The copy is complete and synced, its hashes compared.
    CopyFetched "copy-fetched",
    /// A delta is in the copy.
    DeltaApplied "delta-applied",
    /// The copy may become the database.
    CopyAccepted "copy-accepted",
    /// What an earlier process left of a copy is removed.
    CopySwept "copy-swept",

    // The swap.
    /// The copy has its owner and mode.
    SwapOwned "swap-owned",
    /// The intent is in its temporary file, synced.
    IntentSynced "intent-synced",
    /// The intent has its name; the folder is not synced.
    IntentNamed "intent-named",
    /// The intent is durable.
    IntentWritten "intent-written",
    /// The log of the old database is folded in, and it is locked.
    SwapLogFolded "swap-log-folded",
    /// The empty log of the old database, or its index, is removed.
    SwapLogRemoved "swap-log-removed",
    /// Nobody else can open the old database.
    SwapLocked "swap-locked",
    /// The old database has its second name.
    SwapKept "swap-kept",
    /// A log or journal of the old database, or none, is beside its second name.
    SwapCompanionMoved "swap-companion-moved",
    /// What is kept is durable.
    SwapKeptSynced "swap-kept-synced",
    /// The new database has its name; the folder is not synced.
    SwapRenamed "swap-renamed",
    /// The new database is durable.
    SwapRenameSynced "swap-rename-synced",
    /// Nobody was seen to have opened the old database meanwhile; it is let go.
    SwapReleased "swap-released",
    /// A log or journal of what is put back, or none, followed it.
    SwapCompanionFollowed "swap-companion-followed",
    /// The intent is removed; the folder is not synced.
    IntentRemoved "intent-removed",
    /// One file of what an earlier restore replaced is removed.
    KeptRemoved "kept-removed",

    // What a crash in a swap left, brought to an end.
    /// A log or journal of the old database, or none, is back beside it.
    RecoveryCompanionReturned "recovery-companion-returned",
    /// The second name of the old database is removed.
    RecoveryNameRemoved "recovery-name-removed",
    /// The copy is removed, unless it is what was kept.
    RecoveryCopyRemoved "recovery-copy-removed",
    /// What was done is durable; the intent stands.
    RecoverySynced "recovery-synced",

    // A restore into the open database.
    /// The transaction on the live database is about to begin.
    OverwriteBeginning "overwrite-beginning",
    /// Some pages are written, none committed.
    OverwriteStepped "overwrite-stepped",
    /// The new content is committed.
    OverwriteCommitted "overwrite-committed",
}
