//! What the binary formats here share: fields in a row, and a SHA-256 at the end of all.

use std::io::{self, Read, Write};

use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{Digest, Hasher};

/// Fields of fixed sizes, taken from the front. Whoever takes more than there is has made a mistake.
pub(super) struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    pub(super) fn next<const BYTES: usize>(&mut self) -> [u8; BYTES] {
        let (field, rest) = self.0.split_first_chunk().expect("the fields of a header fill it");
        self.0 = rest;
        *field
    }
}

/// The error of something stored that cannot be what was written.
pub(super) fn damaged(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{what} is damaged: {why}"))
}

/// A stream whose last 32 bytes are the SHA-256 of all before them.
pub(super) struct Sealed<S> {
    stream: S,
    hasher: Hasher,
}

impl<S> Sealed<S> {
    pub(super) fn new(stream: S) -> Self {
        Sealed { stream, hasher: Hasher::default() }
    }
}

impl<W: Write> Sealed<W> {
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.stream.write_all(bytes).map_err(|cause| failed("write", cause))
    }

    /// Ends it; gives the stream back.
    pub(super) fn seal(mut self) -> Result<W> {
        let digest = self.hasher.finish();
        self.stream.write_all(digest.bytes()).map_err(|cause| failed("write", cause))?;
        Ok(self.stream)
    }
}

impl<R: Read> Sealed<R> {
    /// Fills `bytes`; `what` is named in the error.
    pub(super) fn take(&mut self, bytes: &mut [u8], what: impl std::fmt::Display) -> Result<()> {
        self.fill(bytes, what)?;
        self.hasher.update(bytes);
        Ok(())
    }

    /// Reads the digest, compares it with what was taken, and looks that nothing follows.
    pub(super) fn check_seal(&mut self, what: impl std::fmt::Display + Copy) -> Result<()> {
        let mut digest = [0; 32];
        self.fill(&mut digest, what)?;
        if Digest::from(digest) != self.hasher.clone().finish() {
            return Err(damaged(what, "its digest is another"));
        }
        match self.stream.read_exact(&mut [0]) {
            Err(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            Err(cause) => Err(failed("read", cause)),
            Ok(()) => Err(damaged(what, "something follows its end")),
        }
    }

    fn fill(&mut self, bytes: &mut [u8], what: impl std::fmt::Display) -> Result<()> {
        self.stream.read_exact(bytes).map_err(|cause| match cause.kind() {
            io::ErrorKind::UnexpectedEof => damaged(what, "it is truncated"),
            _ => failed("read", cause),
        })
    }
}

/// The error of the stream below. If one of ours came through it, it keeps its kind: whose turn it is to act.
fn failed(verb: &str, cause: io::Error) -> Error {
    let ours = cause.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let kind = ours.map_or(ErrorKind::Internal, Error::kind);
    Error::new(kind, format!("{verb} pages in their stored form")).because(cause)
}
