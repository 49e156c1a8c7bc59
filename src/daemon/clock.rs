//! The only place of the daemon that reads a clock: the monotonic one for every decision, the wall clock for people.

#![expect(clippy::disallowed_methods, reason = "this is the place that the lint sends everybody to")]

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

use crate::engine::Time;

/// The monotonic clock. Stands still while the machine is suspended.
pub(super) fn now() -> Time {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = time.tv_sec.cast_unsigned().saturating_mul(1_000_000_000);
    Time(seconds.saturating_add(time.tv_nsec.cast_unsigned()))
}

/// The wall clock, which may jump: never decide by it.
pub(super) fn wall() -> SystemTime {
    SystemTime::now()
}

/// From one point of the monotonic clock to a later one; zero if it is not later.
pub(super) const fn since(earlier: Time, later: Time) -> Duration {
    Duration::from_nanos(later.0.saturating_sub(earlier.0))
}

/// A point of the monotonic clock after another.
pub(super) fn after(start: Time, delay: Duration) -> Time {
    Time(start.0.saturating_add(u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX)))
}

/// A wall time as RFC 3339 in UTC, to the millisecond.
pub(super) fn rfc3339(wall: SystemTime) -> String {
    humantime::format_rfc3339_millis(wall).to_string()
}

/// A wall time in milliseconds since 1970.
pub(super) fn msec(wall: SystemTime) -> u64 {
    let since = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The wall time in microseconds since 1970.
pub(super) fn unix_usec() -> u64 {
    let since = wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Undoes [`msec`].
pub(super) fn from_msec(msec: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(msec)).unwrap_or(SystemTime::UNIX_EPOCH)
}
