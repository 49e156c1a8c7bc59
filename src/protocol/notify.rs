//! What a worker says over its `NOTIFY_SOCKET`: the datagrams of sd_notify(3).
//!
//! [`parse`] is total: whatever arrives, it returns what it understood and counts the rest. A worker can thus send
//! junk for ever without ever losing, or closing, its way to be heard (HARDENING M1).

use std::time::Duration;

use super::escape;

/// The longest datagram that is read, in bytes; a longer one is ignored whole.
pub const DATAGRAM_BYTES_MAX: usize = 4_096;

/// How much of a `STATUS=` is kept, in characters.
pub const STATUS_CHARS_MAX: usize = 256;

/// The longest time that a worker may ask for; more is taken as this.
pub const DURATION_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);

/// What `WATCHDOG=` said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watchdog {
    /// `1`: a beat.
    Beat,
    /// `trigger`: the worker says that it is broken.
    Trigger,
}

/// What one datagram said; everything it did not say is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notification {
    /// `READY=1`.
    pub ready: bool,
    /// `RELOADING=1`.
    pub reloading: bool,
    /// `STOPPING=1`.
    pub stopping: bool,
    /// `STATUS=`, at most [`STATUS_CHARS_MAX`]; not escaped for a terminal.
    pub status: Option<String>,
    /// `ERRNO=`, 1..=4095.
    pub errno: Option<i32>,
    /// `WATCHDOG=`.
    pub watchdog: Option<Watchdog>,
    /// `WATCHDOG_USEC=`: the longest time between two beats from now on; never zero.
    pub watchdog_interval: Option<Duration>,
    /// `EXTEND_TIMEOUT_USEC=`: this long may the start or the stop still take.
    pub extend_timeout: Option<Duration>,
    /// `MONOTONIC_USEC=`: when `RELOADING=1` was said, on CLOCK_MONOTONIC.
    pub monotonic: Option<Duration>,
    /// Lines that are known and mean nothing here: `MAINPID`, `BUSERROR`, `FDSTORE` and their like.
    pub unused_lines: u32,
    /// Lines that no one could mean; a whole datagram that was ignored counts as one.
    pub junk_lines: u32,
}

/// Reads one datagram. A later line overrides an earlier one of the same key.
#[must_use]
pub fn parse(datagram: &[u8]) -> Notification {
    let mut said = Notification::default();
    // Programs in C like to send the NUL of their string along.
    let text = datagram.strip_suffix(b"\0").unwrap_or(datagram);
    if text.is_empty() || text.len() > DATAGRAM_BYTES_MAX || text.contains(&0) {
        said.junk_lines = 1;
        return said;
    }
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    for line in text.split(|byte| *byte == b'\n') {
        match read_line(line, &mut said) {
            Line::Used => {}
            Line::Unused => said.unused_lines += 1,
            Line::Junk => said.junk_lines += 1,
        }
    }
    said
}

enum Line {
    Used,
    Unused,
    Junk,
}

fn read_line(line: &[u8], said: &mut Notification) -> Line {
    let mut halves = line.splitn(2, |byte| *byte == b'=');
    let (Some(key), Some(value)) = (halves.next(), halves.next()) else {
        return Line::Junk;
    };
    match (key, value) {
        (b"READY", b"1") => said.ready = true,
        (b"RELOADING", b"1") => said.reloading = true,
        (b"STOPPING", b"1") => said.stopping = true,
        (b"WATCHDOG", b"1") => said.watchdog = Some(Watchdog::Beat),
        (b"WATCHDOG", b"trigger") => said.watchdog = Some(Watchdog::Trigger),
        (b"STATUS", _) => said.status = Some(escape::bytes(value).chars().take(STATUS_CHARS_MAX).collect()),
        (b"ERRNO", _) => match number(value) {
            Some(errno @ 1..=4_095) => said.errno = i32::try_from(errno).ok(),
            Some(_) | None => return Line::Junk,
        },
        (b"WATCHDOG_USEC", _) => match number(value) {
            Some(0) | None => return Line::Junk,
            Some(usec) => said.watchdog_interval = Some(duration(usec)),
        },
        (b"EXTEND_TIMEOUT_USEC", _) => match number(value) {
            Some(usec) => said.extend_timeout = Some(duration(usec)),
            None => return Line::Junk,
        },
        (b"MONOTONIC_USEC", _) => match number(value) {
            Some(usec) => said.monotonic = Some(Duration::from_micros(usec)),
            None => return Line::Junk,
        },
        // What systemd knows and halsup decides itself (its pid is known by pidfd), and whatever comes after it: a
        // program may say `X_ANYTHING=` to whoever listens.
        (key, _) if is_key(key) && !is_flag(key) => return Line::Unused,
        _ => return Line::Junk,
    }
    Line::Used
}

fn is_key(key: &[u8]) -> bool {
    !key.is_empty() && key.iter().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b'_')
}

/// Keys whose every meaningful value has an arm of its own.
fn is_flag(key: &[u8]) -> bool {
    [&b"READY"[..], b"RELOADING", b"STOPPING", b"WATCHDOG"].contains(&key)
}

/// Decimal digits alone: no sign, no space.
fn number(value: &[u8]) -> Option<u64> {
    if !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn duration(usec: u64) -> Duration {
    Duration::from_micros(usec).min(DURATION_MAX)
}

#[cfg(test)]
mod tests {
    use super::super::seeded::Seeded;
    use super::*;

    fn said(change: impl FnOnce(&mut Notification)) -> Notification {
        let mut said = Notification::default();
        change(&mut said);
        said
    }

    #[test]
    fn each_line_says_its_thing() {
        let table: &[(&[u8], Notification)] = &[
            (b"READY=1", said(|n| n.ready = true)),
            (b"READY=1\n", said(|n| n.ready = true)),
            (b"READY=1\0", said(|n| n.ready = true)),
            (b"READY=0", said(|n| n.junk_lines = 1)),
            (
                b"RELOADING=1\nMONOTONIC_USEC=5",
                said(|n| {
                    n.reloading = true;
                    n.monotonic = Some(Duration::from_micros(5));
                }),
            ),
            (b"STOPPING=1", said(|n| n.stopping = true)),
            (b"STATUS=at work: a=b", said(|n| n.status = Some("at work: a=b".into()))),
            (b"STATUS=", said(|n| n.status = Some(String::new()))),
            (b"STATUS=\xff\x1b", said(|n| n.status = Some("\\xff\u{1b}".into()))),
            (b"STATUS=a\nSTATUS=b", said(|n| n.status = Some("b".into()))),
            (b"ERRNO=2", said(|n| n.errno = Some(2))),
            (b"ERRNO=0", said(|n| n.junk_lines = 1)),
            (b"ERRNO=99999", said(|n| n.junk_lines = 1)),
            (b"WATCHDOG=1", said(|n| n.watchdog = Some(Watchdog::Beat))),
            (b"WATCHDOG=trigger", said(|n| n.watchdog = Some(Watchdog::Trigger))),
            (b"WATCHDOG=2", said(|n| n.junk_lines = 1)),
            (b"WATCHDOG_USEC=1500000", said(|n| n.watchdog_interval = Some(Duration::from_millis(1_500)))),
            (b"WATCHDOG_USEC=0", said(|n| n.junk_lines = 1)),
            (b"WATCHDOG_USEC=-1", said(|n| n.junk_lines = 1)),
            (b"WATCHDOG_USEC=+1", said(|n| n.junk_lines = 1)),
            (b"WATCHDOG_USEC=", said(|n| n.junk_lines = 1)),
            (b"WATCHDOG_USEC=18446744073709551616", said(|n| n.junk_lines = 1)),
            (b"WATCHDOG_USEC=18446744073709551615", said(|n| n.watchdog_interval = Some(DURATION_MAX))),
            (b"EXTEND_TIMEOUT_USEC=30000000", said(|n| n.extend_timeout = Some(Duration::from_secs(30)))),
            (b"MAINPID=1\nBUSERROR=x\nFDSTORE=1\nFDNAME=a\nX_OWN=1", said(|n| n.unused_lines = 5)),
            (
                b"READY=1\n\nWATCHDOG=1",
                said(|n| {
                    n.ready = true;
                    n.watchdog = Some(Watchdog::Beat);
                    n.junk_lines = 1;
                }),
            ),
            (b"", said(|n| n.junk_lines = 1)),
            (b"\0", said(|n| n.junk_lines = 1)),
            (b"READY=1\0WATCHDOG=1", said(|n| n.junk_lines = 1)),
            (b"ready=1", said(|n| n.junk_lines = 1)),
            (b"=1", said(|n| n.junk_lines = 1)),
            (b"junk", said(|n| n.junk_lines = 1)),
        ];
        for (datagram, expected) in table {
            assert_eq!(&parse(datagram), expected, "{:?}", String::from_utf8_lossy(datagram));
        }
    }

    #[test]
    fn long_status_is_cut_and_long_datagrams_are_ignored() {
        let long = |chars: usize| format!("STATUS={}", "ä".repeat(chars)).into_bytes();
        assert_eq!(parse(&long(1_000)).status.unwrap().chars().count(), STATUS_CHARS_MAX);
        let exactly = [b"STATUS=".to_vec(), vec![b'x'; DATAGRAM_BYTES_MAX - 7]].concat();
        assert!(parse(&exactly).status.is_some());
        assert_eq!(parse(&[exactly, b"x".to_vec()].concat()), said(|n| n.junk_lines = 1));
    }

    #[test]
    fn no_datagram_makes_it_panic_or_count_wrong() {
        let pieces: &[&[u8]] = &[
            b"READY=1",
            b"\n",
            b"=",
            b"STATUS=",
            b"WATCHDOG_USEC=",
            b"99999999999999999999",
            b"ERRNO=",
            b"\0",
            b"\xff",
        ];
        for seed in 0..5_000 {
            let datagram = Seeded::new(seed).bytes(300, pieces);
            let said = parse(&datagram);
            let lines = u32::try_from(datagram.split(|byte| *byte == b'\n').count()).unwrap();
            assert!(said.junk_lines + said.unused_lines <= lines);
            assert!(said.status.is_none_or(|status| status.chars().count() <= STATUS_CHARS_MAX));
        }
    }
}
