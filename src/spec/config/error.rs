//! What is wrong with a configuration: where, what, what was expected, what was perhaps meant.
//!
//! Owns the sentence that an operator reads, and the bound on how many are read at once. Positions are byte offsets
//! until the end, where they become lines and columns. Every text that came from outside is escaped before it gets here.

use std::fmt;

/// At most this many errors of one configuration are reported at once.
pub const CONFIG_ERRORS_MAX: usize = 20;

/// One thing that is wrong with a configuration. Its `Display` is one sentence on one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The line in the file, from 1; `None` for the environment and the command line.
    pub line: Option<usize>,
    /// The character in the line, from 1.
    pub column: Option<usize>,
    /// Which key, such as `pool.web.memory`, or which variable or option.
    pub key_path: String,
    /// What was found, or what is wrong.
    pub what: String,
    /// What was expected instead; may be empty.
    pub expected: String,
    /// What was perhaps meant.
    pub suggestion: Option<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.key_path.is_empty() {
            write!(f, "{}: ", self.key_path)?;
        }
        f.write_str(&self.what)?;
        if !self.expected.is_empty() {
            write!(f, "; expected {}", self.expected)?;
        }
        match &self.suggestion {
            Some(suggestion) => write!(f, "; did you mean {suggestion:?}?"),
            None => Ok(()),
        }
    }
}

/// All that is wrong with a configuration, at least one error, in the order of the file. Displays one error a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors {
    errors: Vec<ConfigError>,
    omitted: usize,
}

impl ConfigErrors {
    /// The errors, at least one and at most [`CONFIG_ERRORS_MAX`].
    #[must_use]
    pub fn errors(&self) -> &[ConfigError] {
        &self.errors
    }

    /// How many more were found and left out; there may be yet more behind them.
    #[must_use]
    pub const fn omitted(&self) -> usize {
        self.omitted
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.errors.iter().enumerate() {
            write!(f, "{}{error}", if at == 0 { "" } else { "\n" })?;
        }
        if self.omitted > 0 {
            write!(f, "\nand {} more", self.omitted)?;
        }
        Ok(())
    }
}

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Dotted path of the key, or name of the variable or option.
    pub(super) path: String,
    /// Byte offset in the file.
    pub(super) offset: Option<usize>,
}

impl Place {
    /// A place that is in no file.
    pub(super) fn outside(path: &str) -> Self {
        Self { path: path.to_owned(), offset: None }
    }

    /// The place of `key` in the table at this place, in the same line.
    pub(super) fn key(&self, key: &str) -> Self {
        let bare = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        let plain = !key.is_empty() && key.bytes().all(bare);
        let shown: String = key.chars().take(80).collect();
        let shown = if plain { shown } else { format!("{shown:?}") };
        let path = if self.path.is_empty() { shown } else { format!("{}.{shown}", self.path) };
        Self { path, offset: self.offset }
    }

    /// The place of an item of the list at this place.
    pub(super) fn item(&self, index: usize) -> Self {
        Self { path: format!("{}[{index}]", self.path), offset: self.offset }
    }

    pub(super) const fn at(mut self, offset: usize) -> Self {
        self.offset = Some(offset);
        self
    }

    /// Something is wrong here. `expected` may be empty.
    pub(super) fn fault(&self, what: impl Into<String>, expected: impl Into<String>) -> Fault {
        Fault { place: self.clone(), what: what.into(), expected: expected.into(), suggestion: None }
    }
}

/// One error before its position is counted in lines.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub(super) place: Place,
    pub(super) what: String,
    pub(super) expected: String,
    pub(super) suggestion: Option<String>,
}

impl Fault {
    pub(super) fn suggest(mut self, suggestion: Option<impl Into<String>>) -> Self {
        self.suggestion = suggestion.map(Into::into);
        self
    }
}

/// The errors found so far: keeps the first ones and counts the rest.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults {
    kept: Vec<Fault>,
    omitted: usize,
}

impl Faults {
    pub(super) fn push(&mut self, fault: Fault) {
        if self.is_full() {
            self.omitted = self.omitted.saturating_add(1);
        } else {
            self.kept.push(fault);
        }
    }

    pub(super) fn append(&mut self, other: Self) {
        self.omitted = self.omitted.saturating_add(other.omitted);
        other.kept.into_iter().for_each(|fault| self.push(fault));
    }

    /// Notes what went wrong, if anything, and gives the value on.
    pub(super) fn note<T, E: Into<Self>>(&mut self, outcome: Result<T, E>) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(faults) => {
                self.append(faults.into());
                None
            }
        }
    }

    /// Whether further ones are only counted; whoever walks over many things may stop then.
    pub(super) fn is_full(&self) -> bool {
        self.kept.len() >= CONFIG_ERRORS_MAX
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Gives `value` on if nothing was wrong.
    pub(super) fn or<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }

    /// Counts positions in the lines of `text`, sorts by them; environment and command line come first.
    pub(super) fn into_errors(mut self, text: &str) -> ConfigErrors {
        self.kept.sort_by_key(|fault| fault.place.offset);
        let errors = self.kept.into_iter().map(|fault| {
            let (line, column) = fault.place.offset.map(|offset| position(text, offset)).unzip();
            ConfigError {
                line,
                column,
                key_path: fault.place.path,
                what: fault.what,
                expected: fault.expected,
                suggestion: fault.suggestion,
            }
        });
        ConfigErrors { errors: errors.collect(), omitted: self.omitted }
    }
}

impl From<Fault> for Faults {
    fn from(fault: Fault) -> Self {
        Self { kept: vec![fault], omitted: 0 }
    }
}

/// Line and column of a byte offset, both from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
    (line, before.get(line_start..).unwrap_or_default().chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters_from_one() {
        assert_eq!(position("", 0), (1, 1));
        assert_eq!(position("ab\ncd", 4), (2, 2));
        assert_eq!(position("ä = 1", 3), (1, 3));
        assert_eq!(position("ab", 99), (1, 3));
    }

    #[test]
    fn many_errors_are_counted_and_few_are_kept() {
        let mut faults = Faults::default();
        (0..50).rev().for_each(|at| faults.push(Place::outside("x").at(at).fault("wrong", "")));
        let errors = faults.into_errors(&"\n".repeat(50));
        assert_eq!((errors.errors().len(), errors.omitted()), (CONFIG_ERRORS_MAX, 30));
        assert!(errors.errors().is_sorted_by_key(|error| error.line));
        assert!(errors.to_string().ends_with("\nand 30 more"));
    }

    #[test]
    fn strange_keys_are_escaped() {
        assert_eq!(Place::outside("pool").key("a\n\u{1b}").path, r#"pool."a\n\u{1b}""#);
        assert_eq!(Place::outside("pool").key("").path, r#"pool."""#);
        assert_eq!(Place::outside("").key("web").item(2).path, "web[2]");
    }
}
