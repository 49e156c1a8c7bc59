//! Names and identities: what an operator writes and what the program counts with.
//!
//! One validator for every entrance (configuration, command line, control socket, state files), because a name becomes
//! a path component and a cgroup directory (HARDENING B3).

use std::fmt;
use std::sync::Arc;

/// The longest name, in bytes: it must fit a cgroup directory with a prefix and a number behind it.
pub const NAME_BYTES_MAX: usize = 63;

/// A name was not of the one grammar that names have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("name {shown:?} is not valid; expected {expected}")]
pub struct NameError {
    /// The name, cut to a printable length.
    pub shown: String,
    /// What was expected instead.
    pub expected: &'static str,
}

fn check(name: &str) -> Result<(), NameError> {
    let refuse = |expected| Err(NameError { shown: name.chars().take(80).collect(), expected });
    if name.is_empty() {
        return refuse("at least one character");
    }
    if name.len() > NAME_BYTES_MAX {
        return refuse("at most 63 characters");
    }
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    if !bytes.first().copied().is_some_and(inner) {
        return refuse("a lower-case letter or a digit first");
    }
    if !bytes.iter().copied().all(|b| inner(b) || b == b'-') {
        return refuse("only lower-case letters, digits and '-'");
    }
    Ok(())
}

/// The name of a pool or service: `[a-z0-9][a-z0-9-]{0,62}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolName(Arc<str>);

impl PoolName {
    /// Checks `name` against the grammar.
    ///
    /// # Errors
    /// [`NameError`] says what was expected.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        if name == "all" {
            return Err(NameError { shown: name.to_owned(), expected: "another name: `all` means every pool" });
        }
        check(name).map(|()| Self(Arc::from(name)))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The name of one halsup on this host; two instances never touch each other. Same grammar as a pool's name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceName(Arc<str>);

impl InstanceName {
    /// Checks `name` against the grammar.
    ///
    /// # Errors
    /// [`NameError`] says what was expected.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        check(name).map(|()| Self(Arc::from(name)))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for InstanceName {
    fn default() -> Self {
        Self(Arc::from("default"))
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The name of a volume. Same grammar as a pool's name; it is also the name of a directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeName(Arc<str>);

impl VolumeName {
    /// Checks `name` against the grammar.
    ///
    /// # Errors
    /// [`NameError`] says what was expected.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        check(name).map(|()| Self(Arc::from(name)))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A pool as the running program counts it; never reused within one daemon's life, so late news cannot meet a namesake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(pub u32);

/// A place in a pool that holds at most one worker at a time; shown as `web.3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId {
    /// The pool.
    pub pool: PoolId,
    /// The place in it, from 0.
    pub slot: u32,
}

/// One spawn attempt. Counts up over the life of a daemon, across all workers; every fact about a child carries it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_grammar() {
        for good in ["a", "web", "web-1", "0", &"x".repeat(63)] {
            assert!(PoolName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "Web", "a.b", "a/b", "..", "a\n", "a\u{1b}", "ä", "cgroup.procs", "all", &"x".repeat(64)]
        {
            assert!(PoolName::parse(bad).is_err(), "{bad:?}");
        }
    }
}
