//! Whatever stands in a record of ours: it is damage, or it can be written and read again. A head
//! moves forward, or says why not.
use std::fmt::Debug;

use lifeboat::clock::Timestamp;
use lifeboat::error::ErrorKind;
use lifeboat::lineage;
use lifeboat::snapshot::{Claim, Head, Identity, Key, Proof, Record, SnapshotId};

pub fn holds(bytes: &[u8]) {
    read::<Identity>(bytes);
    read::<Claim>(bytes);
    read::<Proof>(bytes);
    if let Some(head) = read::<Head>(bytes) {
        moves_forward(&head);
    }
}

fn read<T: Record + PartialEq + Debug>(bytes: &[u8]) -> Option<T> {
    let key = Key::Probe("fuzz".to_owned());
    match T::decode(bytes, &key) {
        Ok(record) => {
            assert_eq!(T::decode(&record.encode(), &key).expect("written by us"), record);
            Some(record)
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.to_string().contains(&key.path()), "it names the key: {error}");
            None
        }
    }
}

fn moves_forward(head: &Head) {
    let now = Timestamp::UNIX_EPOCH;
    let Ok(epoch) = lineage::next_epoch(Some(head), None) else { return };
    assert!(epoch > head.epoch);
    let claimed = lineage::claimed_head(Some(head), epoch, None, now).expect("a higher epoch claims");
    assert_eq!(claimed.snapshot, head.snapshot, "a claim moves no snapshot");
    let id = SnapshotId::next(now, head.snapshot.as_ref(), 0);
    if head.snapshot.as_ref().is_some_and(|newest| newest.time() == id.time()) {
        // The last millisecond there is: nothing is newer.
        return;
    }
    let moved = lineage::moved_head(Some(&claimed), epoch, &id, now).expect("a newer snapshot is published");
    assert!(moved.snapshot > head.snapshot);
    assert!(lineage::moved_head(Some(&moved), head.epoch, &id, now).is_err(), "the old writer is fenced");
}
