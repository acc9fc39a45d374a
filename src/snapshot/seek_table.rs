//! The seek table at the end of a stored snapshot: zstd's seekable format, without checksums.
//!
//! A skippable zstd frame, so that stock decoders pass over it. All numbers little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | `5E 2A 4D 18`, the skippable frame magic |
//! | 4 | size of what follows: 8 × frames + 9 |
//! | 8 × frames | per frame: stored size (4), plain size (4) |
//! | 4 | number of frames |
//! | 1 | descriptor, 0: no checksums |
//! | 4 | `B1 EA 92 8F`, the seekable format's magic |
//!
//! Source: the seekable format's description in the zstd repository, version 0.1.0.

use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};

const SKIPPABLE_MAGIC: u32 = 0x184D_2A5E;
const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;
const HEADER_BYTES: usize = 8;
const ENTRY_BYTES: usize = 8;
const FOOTER_BYTES: usize = 9;

/// Where each frame of a stored snapshot begins and how long it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeekTable {
    /// Per frame: stored size, plain size, in bytes.
    frames: Vec<(u32, u32)>,
}

impl SeekTable {
    /// Appends one frame.
    pub fn push(&mut self, stored_bytes: u32, plain_bytes: u32) {
        self.frames.push((stored_bytes, plain_bytes));
    }

    /// Number of frames.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether there is no frame.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Stored and plain size of frame `index`, in bytes.
    pub fn sizes(&self, index: usize) -> (usize, usize) {
        let (stored, plain) = self.frames[index];
        (stored as usize, plain as usize)
    }

    /// Size of an encoded table of `frames` frames, in bytes.
    pub const fn encoded_bytes(frames: u64) -> u64 {
        frames * ENTRY_BYTES as u64 + (HEADER_BYTES + FOOTER_BYTES) as u64
    }

    /// The table as it is stored.
    pub fn encode(&self) -> Vec<u8> {
        let count = u32::try_from(self.frames.len()).expect("2^32 frames are 4 PiB");
        let content = (self.frames.len() * ENTRY_BYTES + FOOTER_BYTES) as u32;
        let mut out = Vec::with_capacity(HEADER_BYTES + content as usize);
        out.extend(SKIPPABLE_MAGIC.to_le_bytes());
        out.extend(content.to_le_bytes());
        for (stored, plain) in &self.frames {
            out.extend(stored.to_le_bytes());
            out.extend(plain.to_le_bytes());
        }
        out.extend(count.to_le_bytes());
        out.push(0);
        out.extend(SEEKABLE_MAGIC.to_le_bytes());
        out
    }

    /// Reads a table and holds it against what the manifest says of the snapshot.
    ///
    /// `encoded` is exactly the table; `stored_bytes` is the size of the whole object,
    /// `plain_bytes` of the database, `frame_bytes` of every frame but the last.
    pub fn decode(
        encoded: &[u8],
        stored_bytes: u64,
        plain_bytes: u64,
        frame_bytes: u32,
    ) -> Result<SeekTable> {
        let corrupt =
            |what: &str| Error::new(ErrorKind::Corrupt, format!("the seek table is damaged: {what}"));
        let frames = plain_bytes.div_ceil(u64::from(frame_bytes));
        if encoded.len() as u64 != SeekTable::encoded_bytes(frames) {
            return Err(corrupt("its size is not that of the manifest's frames"));
        }
        let word = |at: usize| u32::from_le_bytes(encoded[at..at + 4].try_into().expect("four bytes"));
        let footer = encoded.len() - FOOTER_BYTES;
        if word(0) != SKIPPABLE_MAGIC || word(footer + 5) != SEEKABLE_MAGIC || encoded[footer + 4] != 0 {
            return Err(corrupt("its magic numbers are wrong"));
        }
        if word(4) as usize != encoded.len() - HEADER_BYTES || u64::from(word(footer)) != frames {
            return Err(corrupt("its own sizes disagree"));
        }
        let entries = encoded[HEADER_BYTES..footer].chunks_exact(ENTRY_BYTES);
        let table = SeekTable {
            frames: entries
                .map(|entry| {
                    let word =
                        |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().expect("four bytes"));
                    (word(0), word(4))
                })
                .collect(),
        };
        let expected_plain =
            |index: u64| (plain_bytes - index * u64::from(frame_bytes)).min(u64::from(frame_bytes));
        let plain_agrees = table
            .frames
            .iter()
            .zip(0..)
            .all(|((_, plain), index)| u64::from(*plain) == expected_plain(index));
        let stored: u64 = table.frames.iter().map(|(stored, _)| u64::from(*stored)).sum();
        if !plain_agrees || stored + encoded.len() as u64 != stored_bytes {
            return Err(corrupt("its frames do not add up to the manifest's sizes"));
        }
        Ok(table)
    }

    /// Groups neighbouring frames into pieces of about `target_bytes` stored bytes.
    ///
    /// Returns, per piece, its frames and its byte range in the object: the plan of a parallel read.
    pub fn pieces(&self, target_bytes: u64) -> Vec<(Range<usize>, Range<u64>)> {
        let mut pieces = Vec::new();
        let (mut first, mut start, mut end) = (0, 0, 0);
        for (index, (stored, _)) in self.frames.iter().enumerate() {
            end += u64::from(*stored);
            if end - start >= target_bytes || index + 1 == self.frames.len() {
                pieces.push((first..index + 1, start..end));
                (first, start) = (index + 1, end);
            }
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> SeekTable {
        let mut table = SeekTable::default();
        table.push(600, 1024);
        table.push(500, 1024);
        table.push(20, 100);
        table
    }

    #[test]
    fn decode_is_the_inverse_of_encode() {
        let encoded = table().encode();
        assert_eq!(encoded.len() as u64, SeekTable::encoded_bytes(3));
        let decoded = SeekTable::decode(&encoded, 1120 + encoded.len() as u64, 2148, 1024).expect("valid");
        assert_eq!(decoded, table());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed_or_moves_a_frame_border() {
        let encoded = table().encode();
        let decode = |bytes: &[u8]| SeekTable::decode(bytes, 1120 + encoded.len() as u64, 2148, 1024);
        for bit in 0..encoded.len() * 8 {
            let mut damaged = encoded.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            decode(&damaged).expect_err("a single flip changes a sum or a constant");
        }
        for length in 0..encoded.len() {
            decode(&encoded[..length]).expect_err("cut");
        }
    }

    #[test]
    fn pieces_cover_every_byte_once() {
        assert_eq!(table().pieces(1), vec![(0..1, 0..600), (1..2, 600..1100), (2..3, 1100..1120)]);
        assert_eq!(table().pieces(700), vec![(0..2, 0..1100), (2..3, 1100..1120)]);
        assert_eq!(table().pieces(u64::MAX), vec![(0..3, 0..1120)]);
        assert_eq!(SeekTable::default().pieces(1), vec![]);
    }
}
