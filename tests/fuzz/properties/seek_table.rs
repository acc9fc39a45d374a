//! A seek table that is read is, written again, the same bytes; its pieces cover the frames once.
//!
//! The first 20 bytes are what the manifest says; sizes of the object beyond what it says are made to fit.
use lifeboat::snapshot::SeekTable;

pub fn holds(bytes: &[u8]) {
    let Some((sizes, encoded)) = bytes.split_at_checked(20) else { return };
    let number = |at: usize| u64::from_le_bytes(sizes[at..at + 8].try_into().expect("eight bytes"));
    // What a manifest that was read guarantees.
    let frame_bytes = u32::from_le_bytes(sizes[16..].try_into().expect("four bytes")).clamp(512, 128 << 20);
    let (stored_bytes, plain_bytes) = (number(0), number(8).min(u64::from(u32::MAX) << 16));
    let Ok(table) = SeekTable::decode(encoded, stored_bytes, plain_bytes, frame_bytes) else { return };
    assert_eq!(table.encode(), encoded);
    let plain: u64 = (0..table.len()).map(|index| table.sizes(index).1 as u64).sum();
    assert_eq!(plain, plain_bytes);
    for target in [1, 4 << 20, u64::MAX] {
        let pieces = table.pieces(target);
        let (mut frame, mut byte) = (0, 0);
        for (frames, range) in &pieces {
            assert_eq!((frames.start, range.start), (frame, byte), "without a gap");
            assert!(frames.end > frame);
            (frame, byte) = (frames.end, range.end);
        }
        assert_eq!((frame, byte), (table.len(), stored_bytes - encoded.len() as u64), "to the end");
    }
}
