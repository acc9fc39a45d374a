//! A run of deltas becomes one: the newest version of each page, in one pass over all of them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{Read, Write};

use super::decode::{Decoder, Step};
use super::encode::Encoder;
use super::header::{Header, PutId, Trailer};
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::Span;

/// What a merge wrote.
#[derive(Debug)]
pub struct Merged<W> {
    /// Where the merged delta leads.
    pub header: Header,
    /// What stands behind its pages.
    pub trailer: Trailer,
    /// Where it was written.
    pub to: W,
}

/// Merges deltas that follow one another, oldest first, into one; `level` is zstd's.
///
/// Every page that one of them holds is in it, unless the database is too short for it at the end, and with
/// the content of the newest. One that does not follow the one before, or that is not what was stored, is
/// [`ErrorKind::Corrupt`]; then what was written lacks its end and is no delta. Memory: one block of each,
/// 256 KiB, and what zstd needs.
pub fn merge<R: Read, W: Write>(
    mut run: Vec<Decoder<R>>,
    put_id: PutId,
    level: i32,
    to: W,
) -> Result<Merged<W>> {
    let header = merged_header(&run, put_id)?;
    let mut encoder = Encoder::new(to, &header, level)?;
    let shortest_after = shortest_after(&run);
    // The least number first, and of one number the newest delta.
    let mut next = BinaryHeap::new();
    let advance = |next: &mut BinaryHeap<_>, delta: &mut Decoder<R>, age: usize| -> Result<()> {
        if let Step::Page(number) = delta.advance()? {
            next.push((Reverse(number), age));
        }
        Ok(())
    };
    for (age, delta) in run.iter_mut().enumerate() {
        advance(&mut next, delta, age)?;
    }
    let mut last = 0;
    while let Some((Reverse(number), age)) = next.pop() {
        if number != last && number <= header.pages_after {
            if number > shortest_after[age] {
                let span = run[age].header().span;
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!(
                        "a page went with the end of the database and came back without content: page=`{number}` after span=`{span}`"
                    ),
                ));
            }
            encoder.page(number, run[age].page())?;
        }
        last = number;
        advance(&mut next, &mut run[age], age)?;
    }
    let mut trailer = None;
    for delta in &mut run {
        let Step::End(ended) = delta.advance()? else { unreachable!("it ended before") };
        follows(trailer.replace(ended), delta.header())?;
    }
    let checksum_after = trailer.expect("a run is not empty").checksum_after;
    let (trailer, to) = encoder.finish(checksum_after)?;
    Ok(Merged { header, trailer, to })
}

/// What stands before the pages of all of them as one. Checks what headers say of one another.
fn merged_header<R: Read>(run: &[Decoder<R>], put_id: PutId) -> Result<Header> {
    let headers = || run.iter().map(Decoder::header);
    let (Some(first), Some(last)) = (headers().next(), headers().last()) else {
        return Err(Error::new(ErrorKind::Internal, "merge no deltas"));
    };
    for (one, other) in headers().zip(headers().skip(1)) {
        let checks = [
            (one.database_id == other.database_id, "they belong to different histories"),
            (one.page_size == other.page_size, "their pages have different sizes"),
            (one.span.to() == other.span.from(), "there is a gap between them, or they overlap"),
            (one.epoch <= other.epoch, "the later one is of an older epoch"),
        ];
        if let Some((_, why)) = checks.into_iter().find(|(holds, _)| !holds) {
            return Err(not_adjacent(one.span.to(), other, why));
        }
    }
    let span = Span::new(first.span.from(), last.span.to())?;
    Ok(Header {
        put_id,
        span,
        first_commit: first.first_commit,
        checksum_before: first.checksum_before,
        ..last.clone()
    })
}

/// For each delta of a run, the least size of the database in those after it: a page beyond that was gone.
fn shortest_after<R: Read>(run: &[Decoder<R>]) -> Vec<u32> {
    let mut shortest = u32::MAX;
    let mut found: Vec<u32> = Vec::with_capacity(run.len());
    for delta in run.iter().rev() {
        found.push(shortest);
        shortest = shortest.min(delta.header().pages_after);
    }
    found.reverse();
    found
}

fn follows(before: Option<Trailer>, header: &Header) -> Result<()> {
    match before.is_none_or(|before| before.checksum_after == header.checksum_before) {
        true => Ok(()),
        false => Err(not_adjacent(header.span.from(), header, "their checksums differ")),
    }
}

fn not_adjacent(position: u64, later: &Header, why: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("deltas do not follow one another: {why}: position=`{position}` span=`{}`", later.span),
    )
}

#[cfg(test)]
mod tests;
