//! The tokens that are valid now: one, or two while callers change from one to the other.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use secrecy::{ExposeSecret, SecretString};

use crate::config::{self, read_tokens};
use crate::disk::blocking;
use crate::error::Result;
use crate::random;
use crate::snapshot::Digest;

/// How often the file is read at most, however often somebody presents a token.
const REREAD_PAUSE: Duration = Duration::from_secs(1);

/// The valid tokens, and the file they come from if they come from one.
pub(super) struct Tokens {
    /// Drawn anew at every start.
    key: [u8; 16],
    file: Option<PathBuf>,
    state: Mutex<State>,
}

struct State {
    digests: Vec<Digest>,
    read_at: Instant,
    /// Whether the log says already that the file cannot be used.
    is_stale: bool,
}

impl Tokens {
    pub(super) fn new(http: &config::Http) -> Result<Tokens> {
        let key = random::u128()?.to_le_bytes();
        let digests = digests(&key, &http.tokens);
        let state = State { digests, read_at: Instant::now(), is_stale: false };
        Ok(Tokens { key, file: http.token_file.clone(), state: Mutex::new(state) })
    }

    /// Whether any token would be accepted.
    pub(super) fn exist(&self) -> bool {
        !self.state().digests.is_empty()
    }

    /// Whether `presented` is one of them.
    ///
    /// Digests under a key that nobody outside knows are compared, not tokens, and always with all of
    /// them: how long that takes says nothing about how much of a guess was right.
    pub(super) fn contain(&self, presented: &[u8]) -> bool {
        let presented = keyed(&self.key, presented);
        self.state().digests.iter().fold(false, |found, digest| found | (*digest == presented))
    }

    /// Reads the file again, unless that was a moment ago. What cannot be read changes nothing, for a file that is
    /// being replaced is empty for a moment; it is said in the log once.
    pub(super) async fn refresh(&self) {
        let Some(file) = self.file.clone() else { return };
        {
            let mut state = self.state();
            if state.read_at.elapsed() < REREAD_PAUSE {
                return;
            }
            // Now, so that others who ask meanwhile do not read it too.
            state.read_at = Instant::now();
        }
        let read = blocking("read the token file", move || read_tokens(&file)).await;
        let mut state = self.state();
        match read {
            Ok(tokens) => {
                let digests = digests(&self.key, &tokens);
                if digests != state.digests {
                    tracing::info!(valid = digests.len(), "the HTTP tokens have changed");
                }
                *state = State { digests, is_stale: false, read_at: state.read_at };
            }
            Err(error) => {
                if !std::mem::replace(&mut state.is_stale, true) {
                    tracing::warn!("the HTTP tokens stay those read last: {}", error.chain());
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn digests(key: &[u8; 16], tokens: &[SecretString]) -> Vec<Digest> {
    tokens.iter().map(|token| keyed(key, token.expose_secret().as_bytes())).collect()
}

fn keyed(key: &[u8], text: &[u8]) -> Digest {
    Digest::of(&[key, text].concat())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    const OLD: &str = "0123456789abcdef";
    const NEW: &str = "fedcba9876543210";

    /// The tokens of `file`, read long ago.
    fn of(file: &Path) -> Tokens {
        let tokens = read_tokens(file).expect("tokens");
        let http = config::Http {
            addr: None,
            tokens,
            token_file: Some(file.to_owned()),
            connections_max: 1,
            allowed_hosts: Vec::new(),
        };
        Tokens::new(&http).expect("random bits")
    }

    /// What is valid of the old and the new one, after the pause is over.
    async fn valid(tokens: &Tokens) -> (bool, bool) {
        tokens.state().read_at -= REREAD_PAUSE;
        tokens.refresh().await;
        (tokens.contain(OLD.as_bytes()), tokens.contain(NEW.as_bytes()))
    }

    #[tokio::test]
    async fn a_rotation_locks_nobody_out_and_needs_no_restart() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), OLD).expect("writes");
        let tokens = of(file.path());
        assert_eq!(valid(&tokens).await, (true, false));
        fs::write(file.path(), format!("{NEW}\n{OLD}\n")).expect("writes");
        assert_eq!(valid(&tokens).await, (true, true));
        fs::write(file.path(), NEW).expect("writes");
        assert_eq!(valid(&tokens).await, (false, true));
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_used_changes_nothing() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), OLD).expect("writes");
        let tokens = of(file.path());
        for content in ["", "\n", "short", &format!("{OLD} {NEW} {OLD}"), &NEW.repeat(1 << 17)] {
            fs::write(file.path(), content).expect("writes");
            assert_eq!(valid(&tokens).await, (true, false), "{content:.20}");
        }
        fs::remove_file(file.path()).expect("removes");
        assert_eq!(valid(&tokens).await, (true, false));
        fs::write(file.path(), NEW).expect("writes");
        assert_eq!(valid(&tokens).await, (false, true), "it comes back");
    }

    #[tokio::test]
    async fn the_file_is_read_once_a_second_at_most() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), OLD).expect("writes");
        let tokens = of(file.path());
        fs::write(file.path(), NEW).expect("writes");
        tokens.state().read_at = Instant::now();
        tokens.refresh().await;
        assert!(tokens.contain(OLD.as_bytes()) && !tokens.contain(NEW.as_bytes()));
    }
}
