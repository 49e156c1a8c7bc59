//! Which files a pool's `link` patterns name, and under which names they appear in a worker's directory.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use glob::MatchOptions;

use super::WorkDirError;

/// At most this many files are linked into one directory.
pub(super) const ENTRIES_MAX: usize = 10_000;

/// As in a shell: `*` matches neither a `/` nor a leading dot.
const OPTIONS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// One file to appear in a worker's directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkEntry {
    name: OsString,
    source: PathBuf,
}

impl LinkEntry {
    /// Its name in the directory: the last part of its source.
    #[must_use]
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    /// What it leads to, absolute.
    #[must_use]
    pub fn source(&self) -> &Path {
        &self.source
    }
}

/// Finds what `patterns` match now, sorted by name. One file named by two patterns is there once.
///
/// # Errors
/// When a pattern is malformed, relative, walks trees (`**`) or matches nothing; when two different files share a name;
/// when there are more than 10,000.
pub fn expand_links(patterns: &[String]) -> Result<Vec<LinkEntry>, WorkDirError> {
    let mut found: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for pattern in patterns {
        let refuse = |expected| Err(WorkDirError::Pattern { pattern: pattern.clone(), expected });
        if !pattern.starts_with('/') {
            return refuse("expected an absolute path");
        }
        if pattern.contains("**") {
            return refuse("`**` would walk whole trees; name the directory");
        }
        let Ok(paths) = glob::glob_with(pattern, OPTIONS) else {
            return refuse("not a valid pattern");
        };
        let mut any = false;
        for path in paths {
            let source =
                path.map_err(|error| WorkDirError::Expand { pattern: pattern.clone(), source: error.into() })?;
            any = true;
            insert(&mut found, pattern, source)?;
        }
        if !any {
            return Err(WorkDirError::NoMatch { pattern: pattern.clone() });
        }
    }
    Ok(found.into_iter().map(|(name, source)| LinkEntry { name, source }).collect())
}

fn insert(found: &mut BTreeMap<OsString, PathBuf>, pattern: &str, source: PathBuf) -> Result<(), WorkDirError> {
    let Some(name) = source.file_name().map(OsStr::to_owned) else {
        return Err(WorkDirError::Pattern { pattern: pattern.to_owned(), expected: "expected a file name at the end" });
    };
    match found.get(&name) {
        Some(first) if *first == source => return Ok(()),
        Some(first) => return Err(WorkDirError::SameName { first: first.clone(), second: source }),
        None => {}
    }
    if found.len() == ENTRIES_MAX {
        return Err(WorkDirError::TooMany);
    }
    found.insert(name, source);
    Ok(())
}
