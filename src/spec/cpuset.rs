//! Sets of processors as the kernel's `cpuset.cpus` writes them.
//!
//! Owns the grammar in both directions; whether a processor exists is for `host` to find out.

use std::fmt;

use super::Cpuset;
use super::scalar::{ScalarError, parse_digits};

/// One more than the highest processor that a set can name.
const PROCESSORS_MAX: usize = 1024;
/// The most ranges that a set may be written as.
const RANGES_MAX: usize = 64;

impl Cpuset {
    /// Reads a list such as `0-1,4`: processors 0..=1023, at most 64 ranges, at least one processor.
    ///
    /// # Errors
    /// Anything else, ranges that run backwards among it.
    pub fn parse(text: &str) -> Result<Self, ScalarError> {
        let refuse = || ScalarError::new(text, "processors from 0 to 1023, such as 0-1,4");
        // 64 ranges of two four-digit numbers, with separators.
        if text.len() > RANGES_MAX * 10 || text.split(',').count() > RANGES_MAX {
            return Err(refuse());
        }
        let processor = |digits: &str| {
            parse_digits(digits)
                .and_then(|n| usize::try_from(n).ok())
                .filter(|n| *n < PROCESSORS_MAX)
                .ok_or_else(refuse)
        };
        let mut set = Self { bits: [0; PROCESSORS_MAX / 64] };
        for range in text.split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (processor(first)?, processor(last)?);
            if first > last {
                return Err(refuse());
            }
            for n in first..=last {
                if let Some(word) = set.bits.get_mut(n / 64) {
                    *word |= 1 << (n % 64);
                }
            }
        }
        Ok(set)
    }

    /// Whether processor `n` is in the set.
    #[must_use]
    pub fn contains(&self, n: usize) -> bool {
        self.bits.get(n / 64).is_some_and(|word| word & (1 << (n % 64)) != 0)
    }
}

/// The shortest list that [`Cpuset::parse`] and the kernel read as this set.
impl fmt::Display for Cpuset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        let mut next = 0;
        while let Some(first) = (next..PROCESSORS_MAX).find(|n| self.contains(*n)) {
            let end = (first..PROCESSORS_MAX).find(|n| !self.contains(*n)).unwrap_or(PROCESSORS_MAX);
            if end - first == 1 {
                write!(f, "{separator}{first}")?;
            } else {
                write!(f, "{separator}{first}-{}", end - 1)?;
            }
            separator = ",";
            next = end;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written() {
        for (text, shortest) in [
            ("0", "0"),
            ("0-1,4", "0-1,4"),
            ("4,0,1", "0-1,4"),
            ("0-1023", "0-1023"),
            ("63,64", "63-64"),
            ("1023", "1023"),
            ("5-5", "5"),
            ("0-3,2-5", "0-5"),
        ] {
            assert_eq!(Cpuset::parse(text).unwrap().to_string(), shortest, "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let many = vec!["0"; RANGES_MAX + 1].join(",");
        for text in [
            "",
            ",",
            "0,",
            "-1",
            "1-",
            "4-1",
            "1024",
            "0-1024",
            "a",
            "0 1",
            " 0",
            "0-1-2",
            "+1",
            "max",
            "18446744073709551616",
            &many,
        ] {
            assert!(Cpuset::parse(text).is_err(), "{text:?}");
        }
        assert!(Cpuset::parse(&vec!["0"; RANGES_MAX].join(",")).is_ok());
    }
}
