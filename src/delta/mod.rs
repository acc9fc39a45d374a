//! What a delta is: the pages that lead a database from one position of its history to a later one, how
//! they are stored, merged and applied, and which of them lead where. No I/O here.

pub mod ageing;
mod apply;
mod chain;
mod checksum;
mod decode;
mod encode;
#[cfg(test)]
pub(crate) mod fixture;
mod header;
mod layout;
mod merge;
mod page;
mod table;

pub use apply::{Applier, PageStore};
pub use chain::{Gap, Listed, Moments, Target, Window, gaps, plan, reachable, windows};
pub use checksum::DatabaseChecksum;
pub use decode::{Decoder, Step};
pub use encode::Encoder;
pub use header::{Header, PutId, Trailer};
pub use merge::{Merged, merge};
pub use page::{PageHash, PageSize};
pub use table::PageTable;
