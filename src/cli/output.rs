//! What commands print: results on standard output, errors and progress on standard error.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::json;

use crate::config::Effective;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::source::{OnProgress, Progress};

/// How results are printed.
pub struct Output {
    json: bool,
}

impl Output {
    /// As JSON, or as text for people.
    pub fn new(json: bool) -> Self {
        Output { json }
    }

    /// Prints a result: `value` as JSON, or `text`.
    pub fn result(&self, value: &impl Serialize, text: impl Display) -> Result<()> {
        let out = match self.json {
            true => serde_json::to_string_pretty(value)
                .context(ErrorKind::Internal, || "write JSON".to_owned())?,
            false => text.to_string(),
        };
        match writeln!(io::stdout(), "{}", out.trim_end()) {
            // Whoever read us has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written.context(ErrorKind::Internal, || "write to standard output".to_owned()),
        }
    }

    /// Prints the configuration in force.
    pub fn effective(&self, effective: &Effective) -> Result<u8> {
        self.result(effective, effective.render_text()).map(|()| 0)
    }

    /// Prints an error: one line that begins with "lifeboat:", or a JSON object.
    pub fn error(&self, error: &Error) {
        let line = match self.json {
            true => json!({"error": {"kind": error.kind().name(), "message": error.chain()}}).to_string(),
            false => format!("lifeboat: {}", error.chain()),
        };
        // There is nowhere left to say that standard error is gone.
        let _ = writeln!(io::stderr(), "{line}");
    }

    /// A progress bar on a terminal; nothing elsewhere.
    pub fn progress(&self, what: &'static str) -> OnProgress {
        if self.json || !io::stderr().is_terminal() {
            return Arc::new(|_| {});
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = "{msg} {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(what);
        Arc::new(move |Progress { done, total }| {
            bar.set_length(total);
            bar.set_position(done);
            if done == total {
                bar.finish_and_clear();
            }
        })
    }
}
