//! The bytes of a write-ahead log: its header, the headers of its frames, and the checksum that
//! chains them. <https://sqlite.org/fileformat2.html#the_write_ahead_log>

use serde::{Deserialize, Serialize};

/// Bytes of the header a log begins with.
pub const HEADER_BYTES: usize = 32;

/// Bytes in front of the page in each frame.
pub const FRAME_HEADER_BYTES: usize = 24;

/// The magic number of a log whose checksums take words as little-endian; one more: as big-endian.
const MAGIC: u32 = 0x377f_0682;

/// The only version there is.
const VERSION: u32 = 3_007_000;

/// SQLite never stores anything in the page that holds this byte: it is where locks are taken.
const LOCK_BYTE: u32 = 0x4000_0000;

/// The number of the page that is never written, for pages of this size.
pub fn lock_page(page_size: u32) -> u32 {
    LOCK_BYTE / page_size + 1
}

/// How the checksum takes words. All numbers of the log itself are big-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ByteOrder {
    /// What SQLite writes on every machine in common use.
    Little,
    /// What it writes on a big-endian machine.
    Big,
}

/// What tells the frames of one run of the log from those an earlier run left behind them.
///
/// At each restart in place the first is one higher and the second is random.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Salts(pub u32, pub u32);

/// The running checksum: over the header, and then over each frame up to this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksum(pub u32, pub u32);

impl Checksum {
    /// Where the checksum of a log begins.
    pub const ZERO: Checksum = Checksum(0, 0);

    /// The checksum carried on over `bytes`, whose number is a multiple of eight.
    pub fn over(self, bytes: &[u8], order: ByteOrder) -> Checksum {
        let (pairs, rest) = bytes.as_chunks::<8>();
        debug_assert!(rest.is_empty(), "what a log consists of are words in pairs");
        let word = |pair: &[u8; 8], at: usize| {
            let bytes = [pair[at], pair[at + 1], pair[at + 2], pair[at + 3]];
            match order {
                ByteOrder::Little => u32::from_le_bytes(bytes),
                ByteOrder::Big => u32::from_be_bytes(bytes),
            }
        };
        pairs.iter().fold(self, |Checksum(one, two), pair| {
            let one = one.wrapping_add(word(pair, 0)).wrapping_add(two);
            Checksum(one, two.wrapping_add(word(pair, 4)).wrapping_add(one))
        })
    }
}

/// The header of a log, which begins a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// How the checksums of this run take words.
    pub order: ByteOrder,
    /// Bytes of a page: a power of two from 512 to 65536.
    pub page_size: u32,
    /// Counts checkpoints, but each connection by itself: says nothing about the order of runs.
    pub sequence: u32,
    /// The salts of the frames of this run.
    pub salts: Salts,
    /// The checksum that the first frame carries on.
    pub checksum: Checksum,
}

impl Header {
    /// Parses a header; `None` if these bytes are none, or only part of one.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Option<Header> {
        let order = match word(bytes, 0) {
            MAGIC => ByteOrder::Little,
            magic if magic == MAGIC + 1 => ByteOrder::Big,
            _ => return None,
        };
        let page_size = word(bytes, 8);
        let checksum = Checksum(word(bytes, 24), word(bytes, 28));
        let valid = word(bytes, 4) == VERSION
            && page_size.is_power_of_two()
            && (512..=65_536).contains(&page_size)
            && Checksum::ZERO.over(&bytes[..24], order) == checksum;
        let salts = Salts(word(bytes, 16), word(bytes, 20));
        valid.then_some(Header { order, page_size, sequence: word(bytes, 12), salts, checksum })
    }

    /// Whether this is what SQLite writes over a log with `salts` when it restarts it in place.
    pub fn succeeds(&self, salts: Salts) -> bool {
        self.salts.0 == salts.0.wrapping_add(1)
    }
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// The number of the page in the frame; the first is 1.
    pub page: u32,
    /// The pages the database has from here on if a transaction ends with this frame, else 0.
    pub page_count: u32,
    /// The salts of the run in which the frame was written.
    pub salts: Salts,
    /// The running checksum up to and with this frame.
    pub checksum: Checksum,
}

impl FrameHeader {
    /// Takes the header apart; whether it is valid only the checksum tells.
    pub fn parse(bytes: &[u8; FRAME_HEADER_BYTES]) -> FrameHeader {
        FrameHeader {
            page: word(bytes, 0),
            page_count: word(bytes, 4),
            salts: Salts(word(bytes, 8), word(bytes, 12)),
            checksum: Checksum(word(bytes, 16), word(bytes, 20)),
        }
    }
}

/// The running checksum up to and with `frame` (header and page), if it was `before` until there.
pub fn frame_checksum(before: Checksum, frame: &[u8], order: ByteOrder) -> Checksum {
    before.over(&frame[..8], order).over(&frame[FRAME_HEADER_BYTES..], order)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
