//! Where deltas lead: spans of positions, and the levels they are merged into.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::error::{Error, ErrorKind, Result};

/// From one position of a history to a later one; a position is the number of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    from: u64,
    to: u64,
}

impl Span {
    /// A span that leads forward; any other is [`ErrorKind::Corrupt`].
    pub fn new(from: u64, to: u64) -> Result<Span> {
        match from < to {
            true => Ok(Span { from, to }),
            false => {
                Err(Error::new(ErrorKind::Corrupt, format!("a delta leads forward: from=`{from}` to=`{to}`")))
            }
        }
    }

    /// The position it starts at.
    pub fn from(self) -> u64 {
        self.from
    }

    /// The position it leads to.
    pub fn to(self) -> u64 {
        self.to
    }

    pub(super) fn parse(text: &str) -> Option<Span> {
        let (from, to) = text.split_once('-')?;
        let number = |digits: &str| u64::from_str_radix(digits, 16).ok();
        Span::new(number(from)?, number(to)?).ok()
    }
}

impl fmt::Display for Span {
    /// As it stands in keys: both positions in 16 hex digits, so that they sort.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:016x}", self.from, self.to)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How often a delta was merged: 0 as capture wrote it, up to [`Level::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Level(u8);

impl Level {
    /// What capture writes.
    pub const CAPTURED: Level = Level(0);

    /// What is merged, the least first.
    pub const MERGED: [Level; 2] = [Level(1), Level(2)];

    /// The most merged.
    pub const MAX: Level = Level::MERGED[1];

    /// The level of that number, if there is one.
    pub fn new(number: u8) -> Option<Level> {
        (number <= Level::MAX.0).then_some(Level(number))
    }

    /// Its number.
    pub fn number(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
