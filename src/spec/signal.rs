//! Signals by name and number.
//!
//! The numbers are those of x86-64 and arm64 Linux, which `sys` is built for. Says nothing of what a signal does.

use super::scalar::{ScalarError, parse_digits};

/// Names by number, from 1.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];
/// Other names in use for some of them.
const ALIASES: [(&str, i32); 4] = [("IOT", 6), ("CLD", 17), ("POLL", 29), ("UNUSED", 31)];
/// The first real-time signal that programs may use, and the last.
const REALTIME: std::ops::RangeInclusive<i32> = 34..=64;

/// Reads a signal: a name with or without `SIG` in either case, `RTMIN+N`, or a number 1..=64.
///
/// # Errors
/// Anything else.
pub fn parse_signal(text: &str) -> Result<i32, ScalarError> {
    let refuse = || ScalarError::new(text, "a signal such as SIGTERM, or a number from 1 to 64");
    if text.len() > 16 {
        return Err(refuse());
    }
    if let Some(number) = parse_digits(text) {
        return i32::try_from(number).ok().filter(|n| (1..=64).contains(n)).ok_or_else(refuse);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        let offset = match rest.strip_prefix('+') {
            Some(digits) => parse_digits(digits).ok_or_else(refuse)?,
            None if rest.is_empty() => 0,
            None => return Err(refuse()),
        };
        let number = i32::try_from(offset).ok().and_then(|offset| REALTIME.start().checked_add(offset));
        return number.filter(|n| REALTIME.contains(n)).ok_or_else(refuse);
    }
    let by_name = (1..).zip(NAMES).map(|(number, name)| (name, number)).chain(ALIASES);
    by_name.into_iter().find(|(known, _)| *known == name).map(|(_, number)| number).ok_or_else(refuse)
}

/// Writes a signal as people know it: `SIGTERM`, `SIGRTMIN+3`, or the bare number if it has no name.
#[must_use]
pub fn format_signal(number: i32) -> String {
    let name = number.checked_sub(1).and_then(|at| usize::try_from(at).ok()).and_then(|at| NAMES.get(at));
    match name {
        Some(name) => format!("SIG{name}"),
        None if number == *REALTIME.start() => "SIGRTMIN".to_owned(),
        None if REALTIME.contains(&number) => format!("SIGRTMIN+{}", number - REALTIME.start()),
        None => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, expected) in [
            ("SIGTERM", Some(15)),
            ("TERM", Some(15)),
            ("term", Some(15)),
            ("sigkill", Some(9)),
            ("HUP", Some(1)),
            ("SIGUSR1", Some(10)),
            ("SIGSYS", Some(31)),
            ("SIGIOT", Some(6)),
            ("RTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMIN+30", Some(64)),
            ("RTMIN+31", None),
            ("RTMIN-1", None),
            ("RTMIN+", None),
            ("1", Some(1)),
            ("64", Some(64)),
            ("0", None),
            ("65", None),
            ("-9", None),
            ("+9", None),
            ("SIG", None),
            ("", None),
            ("SIGSIGTERM", None),
            ("TERM ", None),
            ("9999999999999999", None),
        ] {
            assert_eq!(parse_signal(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn every_signal_is_read_as_it_is_written() {
        for number in 1..=64 {
            assert_eq!(parse_signal(&format_signal(number)), Ok(number));
        }
    }

    #[test]
    fn the_table_agrees_with_the_kernel() {
        for signal in nix::sys::signal::Signal::iterator() {
            assert_eq!(parse_signal(signal.as_str()).ok(), Some(signal as i32), "{signal}");
        }
    }
}
