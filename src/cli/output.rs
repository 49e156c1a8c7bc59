//! The only place that writes to stdout and stderr.
//!
//! Text that came from workers or callers is escaped before it gets here (`table`, the verbs) or here (errors), so that
//! nothing they wrote can drive the operator's terminal.

use std::io::{IsTerminal as _, Write as _};

use serde::Serialize;

use super::error::Error;
use crate::protocol::escape;

/// How answers are printed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    json: bool,
}

impl Output {
    /// As JSON, or as text.
    pub(super) const fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether JSON was asked for.
    pub(super) const fn is_json(self) -> bool {
        self.json
    }

    /// Prints an answer: as one line of JSON, or as the text that `render` makes of it.
    pub(super) fn answer<T: Serialize>(self, answer: &T, render: impl FnOnce(&T) -> String) -> Result<(), Error> {
        if self.json { self.json_line(answer) } else { self.text(&render(answer)) }
    }

    /// Prints one line of JSON, without a raw character that could drive a terminal.
    pub(super) fn json_line<T: Serialize>(self, value: &T) -> Result<(), Error> {
        let line = serde_json::to_string(value).map_err(|error| Error::Output { source: error.into() })?;
        self.text(&escape::json(&line))
    }

    /// Prints text that is safe to look at; a missing line end is added.
    pub(super) fn text(self, text: &str) -> Result<(), Error> {
        if text.is_empty() {
            return Ok(());
        }
        let end = if text.ends_with('\n') { "" } else { "\n" };
        self.bytes(format!("{text}{end}").as_bytes())
    }

    /// Prints bytes as they are: generated files alone.
    pub(super) fn bytes(self, bytes: &[u8]) -> Result<(), Error> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(Error::output)
    }
}

/// Whether somebody looks at stdout.
pub(super) fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Prints an error, once, to stderr.
pub(super) fn complain(error: &Error) {
    if matches!(error, Error::Config { .. }) {
        error.sentence().lines().for_each(complain_text);
    } else if !matches!(error, Error::OutputClosed) {
        complain_text(&escape::text(&error.sentence()));
    }
}

/// Prints a sentence that is not the program's answer to stderr.
pub(super) fn complain_text(text: &str) {
    let safe: Vec<_> = text.lines().map(escape::line).collect();
    // Where stderr is gone, nobody is left to be told.
    writeln!(std::io::stderr().lock(), "halsup: {}", safe.join("\n")).unwrap_or_default();
}
