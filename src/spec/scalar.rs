//! The small grammars of configuration and command line: sizes, processors, durations, ports.
//!
//! Every function here decides one thing, whether a text is a value, with checked arithmetic: a value that does not fit
//! is an error and never another value (HARDENING B7). Nothing falls through to a default. `config` calls in here for
//! files, environment and options alike; the command line may for its own options.

use std::time::Duration;

/// The longest text that a scalar may be, in bytes; longer ones are refused unread.
const SCALAR_BYTES_MAX: usize = 64;

/// A text that is not a value of its grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{shown:?} is not valid; expected {expected}")]
pub struct ScalarError {
    /// The text, cut to a printable length.
    pub shown: String,
    /// What was expected instead.
    pub expected: &'static str,
}

impl ScalarError {
    pub(super) fn new(text: &str, expected: &'static str) -> Self {
        Self { shown: text.chars().take(SCALAR_BYTES_MAX).collect(), expected }
    }
}

/// Whether `text` is one of the words that mean "no limit".
#[must_use]
pub fn is_unlimited(text: &str) -> bool {
    matches!(text, "max" | "unlimited")
}

/// A decimal number of at least one digit, without sign, space or separator. `None` if it is not, or beyond `u64`.
pub(super) fn parse_digits(text: &str) -> Option<u64> {
    if text.is_empty() || text.len() > SCALAR_BYTES_MAX || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// Reads a size in bytes: a whole number and optionally a unit `k m g t` in either case, which may be followed by `b` or
/// `ib`. All units are powers of 1,024, as Docker and the kernel's cgroup files count. At most `i64::MAX`.
///
/// # Errors
/// Anything else, and what does not fit.
pub fn parse_bytes(text: &str) -> Result<u64, ScalarError> {
    const EXPECTED: &str = "a size such as 4g, 512M, 64KiB or a number of bytes";
    let refuse = || ScalarError::new(text, EXPECTED);
    if text.len() > SCALAR_BYTES_MAX {
        return Err(refuse());
    }
    let digits_end = text.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let shift: u32 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(refuse()),
    };
    parse_digits(digits)
        .and_then(|number| number.checked_mul(1 << shift))
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or_else(refuse)
}

/// Writes a size so that [`parse_bytes`] reads the same number back: `4g`, `64k`, `1000`.
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    for (shift, unit) in [(40, "t"), (30, "g"), (20, "m"), (10, "k")] {
        if bytes != 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// Reads a number of processors, `2` or `0.5` with at most three decimals, into thousandths of one.
///
/// # Errors
/// Anything else, less than 0.01 (the least that `cpu.max` can hold), more than 1,024.
pub fn parse_cpus(text: &str) -> Result<u64, ScalarError> {
    const EXPECTED: &str = "a number of processors from 0.01 to 1024, such as 2 or 0.5";
    let refuse = || ScalarError::new(text, EXPECTED);
    let (whole, fraction) = match text.split_once('.') {
        None => (text, 0),
        Some((whole, decimals)) => {
            let scale = match decimals.len() {
                1 => 100,
                2 => 10,
                3 => 1,
                _ => return Err(refuse()),
            };
            (whole, parse_digits(decimals).ok_or_else(refuse)? * scale)
        }
    };
    parse_digits(whole)
        .and_then(|whole| whole.checked_mul(1000))
        .and_then(|millis| millis.checked_add(fraction))
        .filter(|millis| (10..=1_024_000).contains(millis))
        .ok_or_else(refuse)
}

/// Writes thousandths of a processor so that [`parse_cpus`] reads the same back: `2`, `0.5`, `1.125`.
#[must_use]
pub fn format_cpus(millis: u64) -> String {
    let (whole, rest) = (millis / 1000, millis % 1000);
    if rest == 0 { whole.to_string() } else { format!("{whole}.{rest:03}").trim_end_matches('0').to_owned() }
}

/// Reads a duration with units: `30s`, `500ms`, `1h 30m`; `0` alone needs none.
///
/// # Errors
/// Anything else, spaces within a number, and what does not fit.
pub fn parse_duration(text: &str) -> Result<Duration, ScalarError> {
    const EXPECTED: &str = "a duration with a unit, such as 30s or 500ms";
    let refuse = || ScalarError::new(text, EXPECTED);
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b' ';
    let bytes = text.as_bytes();
    // humantime reads `1 0s` as ten seconds: a space may only stand between a unit and a number.
    let split_number = bytes.windows(2).any(|pair| matches!(pair, [b'0'..=b'9' | b'.', b' '] | [b' ', b' ' | b'.']));
    if bytes.len() > SCALAR_BYTES_MAX || !bytes.iter().copied().all(allowed) || split_number || text.trim() != text {
        return Err(refuse());
    }
    humantime::parse_duration(text).ok().ok_or_else(refuse)
}

/// Writes a duration so that [`parse_duration`] reads the same back.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// Reads a TCP port, 1..=65,535.
///
/// # Errors
/// Anything else.
pub fn parse_port(text: &str) -> Result<u16, ScalarError> {
    parse_digits(text)
        .and_then(|number| u16::try_from(number).ok())
        .filter(|port| *port != 0)
        .ok_or_else(|| ScalarError::new(text, "a port from 1 to 65535"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let table: &[(&str, Option<u64>)] = &[
            ("0", Some(0)),
            ("1024", Some(1024)),
            ("1b", Some(1)),
            ("64KiB", Some(65536)),
            ("64kb", Some(65536)),
            ("64k", Some(65536)),
            ("512M", Some(512 << 20)),
            ("4g", Some(4 << 30)),
            ("4GB", Some(4 << 30)),
            ("2tib", Some(2 << 40)),
            ("9223372036854775807", Some(9_223_372_036_854_775_807)),
            ("9223372036854775808", None),
            ("8388607t", Some(8_388_607 << 40)),
            ("8388608t", None),
            ("18446744073709551616", None),
            ("18014398509481984k", None),
            ("17179869184g", None),
            ("17179869185g", None),
            ("", None),
            ("g", None),
            ("-1", None),
            ("+1", None),
            (" 1", None),
            ("1 ", None),
            ("1 g", None),
            ("1.5g", None),
            ("1e3", None),
            ("0x10", None),
            ("1_000", None),
            ("1p", None),
            ("1gg", None),
            ("1i", None),
            ("max", None),
            ("unlimited", None),
            ("\u{661}g", None),
            ("1\u{212a}", None),
            ("1\0", None),
            (&"1".repeat(65), None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_bytes(text).ok(), *expected, "{text:?}");
        }
    }

    #[test]
    fn processors() {
        let table: &[(&str, Option<u64>)] = &[
            ("2", Some(2000)),
            ("0.5", Some(500)),
            ("1.5", Some(1500)),
            ("0.01", Some(10)),
            ("0.125", Some(125)),
            ("00.5", Some(500)),
            ("1024", Some(1_024_000)),
            ("1024.001", None),
            ("0.009", None),
            ("0", None),
            ("0.0", None),
            ("0.0001", None),
            (".5", None),
            ("1.", None),
            ("1.5.5", None),
            ("-1", None),
            ("+1", None),
            ("1e1", None),
            ("1,5", None),
            ("inf", None),
            ("nan", None),
            ("", None),
            ("18446744073709551", None),
            ("18446744073709551615", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_cpus(text).ok(), *expected, "{text:?}");
        }
    }

    #[test]
    fn durations() {
        let table: &[(&str, Option<u64>)] = &[
            ("30s", Some(30_000)),
            ("500ms", Some(500)),
            ("1.5s", Some(1500)),
            ("1h 30m", Some(5_400_000)),
            ("1h30m", Some(5_400_000)),
            ("2min", Some(120_000)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("30", None),
            ("1 0s", None),
            ("1 s", None),
            ("1h  1m", None),
            (" 1s", None),
            ("1s ", None),
            ("-1s", None),
            ("s", None),
            ("", None),
            ("1 .5s", None),
            ("99999999999999999999s", None),
            ("18446744073709551615y", None),
            ("forever", None),
            ("1\u{b5}s", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_duration(text).ok(), expected.map(Duration::from_millis), "{text:?}");
        }
    }

    #[test]
    fn ports() {
        for (text, expected) in [("1", Some(1)), ("65535", Some(65535)), ("0", None), ("65536", None), ("-1", None)] {
            assert_eq!(parse_port(text).ok(), expected, "{text:?}");
        }
    }

    /// A sequence with full period that needs no other crate: every run draws the same texts.
    struct Draw(u64);

    impl Draw {
        fn next(&mut self, below: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % below
        }

        fn text(&mut self) -> String {
            const ALPHABET: &[u8] = b"0123456789012345678901234567890123456789.-+ kKmMgGtTbBiIsxe_,";
            let length = self.next(24);
            let pick = |draw: &mut Self| {
                let at = usize::try_from(draw.next(u64::try_from(ALPHABET.len()).unwrap())).unwrap();
                char::from(ALPHABET[at])
            };
            (0..length).map(|_| pick(self)).collect()
        }
    }

    /// What a size means, computed apart from the parser, in numbers too wide to wrap.
    fn size_by_hand(text: &str) -> Option<u128> {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        let rest = text[digits.len()..].to_lowercase();
        let unit = rest.strip_suffix("ib").or_else(|| rest.strip_suffix('b')).unwrap_or(&rest);
        let power = match unit {
            "" if rest != "ib" => 0,
            "k" => 1,
            "m" => 2,
            "g" => 3,
            "t" => 4,
            _ => return None,
        };
        digits.parse::<u128>().ok()?.checked_mul(1024u128.pow(power)).filter(|n| *n < 1 << 63)
    }

    #[test]
    fn a_million_texts_mean_what_they_say_or_nothing() {
        let mut draw = Draw(1);
        let mut sizes = 0;
        for _ in 0..1_000_000 {
            let text = draw.text();
            let read = parse_bytes(&text).ok();
            assert_eq!(read.map(u128::from), size_by_hand(&text), "{text:?}");
            if let Some(bytes) = read {
                sizes += 1;
                assert_eq!(parse_bytes(&format_bytes(bytes)), Ok(bytes));
            }
            if let Ok(millis) = parse_cpus(&text) {
                assert_eq!(parse_cpus(&format_cpus(millis)), Ok(millis), "{text:?}");
                assert!((10..=1_024_000).contains(&millis));
            }
            if let Ok(duration) = parse_duration(&text) {
                assert_eq!(parse_duration(&format_duration(duration)), Ok(duration), "{text:?}");
            }
        }
        assert!(sizes > 10_000, "the texts hardly ever are sizes: {sizes}");
    }
}
