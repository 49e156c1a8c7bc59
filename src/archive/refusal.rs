//! Why an archive is not taken, as one sentence. Never more than a line of an archive's own words, escaped.

use std::io;

/// The longest piece of a name that is shown, in bytes.
const SHOWN_BYTES_MAX: usize = 120;

/// Why an archive is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It breaks a rule of its format, or one of ours.
    #[error("{rule}")]
    Form {
        /// Which.
        rule: &'static str,
    },
    /// An entry breaks a rule.
    #[error("entry {entry}: {rule}")]
    Entry {
        /// Which entry.
        entry: String,
        /// Which rule.
        rule: &'static str,
    },
    /// A part of a bundle breaks a rule.
    #[error("{part}: {rule}")]
    Part {
        /// Which part.
        part: String,
        /// Which rule.
        rule: &'static str,
    },
    /// A part of a bundle is not what its digest says.
    #[error("{part} has digest {found}: it is damaged, or not what it says it is")]
    Digest {
        /// The digest that it should have.
        part: String,
        /// The one that it has.
        found: String,
    },
    /// It is larger than it may be.
    #[error("more than {most} {what}")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// The limit.
        most: u64,
    },
    /// The disk has no room for it.
    #[error("the disk has only {available} bytes left, of which {reserved} are kept free: make room and try again")]
    NoRoom {
        /// What is free.
        available: u64,
        /// What stays free.
        reserved: u64,
    },
    /// It cannot be read.
    #[error("read the archive")]
    Read(#[source] io::Error),
    /// An entry cannot be put on the disk.
    #[error("{operation} {entry}")]
    Write {
        /// What was being done.
        operation: &'static str,
        /// To what.
        entry: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl Refusal {
    pub(super) const fn form(rule: &'static str) -> Self {
        Self::Form { rule }
    }

    pub(super) fn entry(path: &[u8], rule: &'static str) -> Self {
        Self::Entry { entry: shown(path), rule }
    }

    pub(super) fn part(part: &str, rule: &'static str) -> Self {
        Self::Part { part: shown(part.as_bytes()), rule }
    }

    /// What reading ended with: a refusal that passed through a reader, or the reader's own failure.
    pub(super) fn of_read(error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(refusal) => refusal,
            Err(error) => Self::Read(error),
        }
    }

    /// Itself on its way through a reader.
    pub(super) fn into_io(self) -> io::Error {
        io::Error::other(self)
    }
}

/// For what the kernel refuses about an entry.
pub(super) fn writing<E: Into<io::Error>>(operation: &'static str, path: &[u8]) -> impl FnOnce(E) -> Refusal + use<E> {
    let entry = shown(path);
    move |source| Refusal::Write { operation, entry, source: source.into() }
}

/// A name of an archive's, safe to look at.
pub(super) fn shown(name: &[u8]) -> String {
    if name.is_empty() {
        return "/".to_owned();
    }
    let cut = name.get(..SHOWN_BYTES_MAX).unwrap_or(name);
    let dots = if cut.len() < name.len() { "…" } else { "" };
    format!("{}{dots}", cut.escape_ascii())
}
