//! The beat for the service manager's watchdog: only at the end of a turn, and only if what the loop lives by is in order.
//!
//! A loop that hangs does not get here. One that turns may still be deaf, or blind to its deadlines: then it says nothing, and
//! the manager ends it and starts another. `launch` sets the first timer, `event_loop` calls [`Daemon::beat`].

use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::clock;
use super::state::Daemon;
use super::timers::Timer;
use crate::engine::Time;

/// What is remembered from one beat to the next.
#[derive(Debug, Default)]
pub(super) struct Watchdog {
    /// The timer has come in this turn.
    pub(super) due: bool,
    /// Somebody waited to be accepted at the last beat, and how many had been accepted until then.
    waiting_since: Option<u64>,
}

impl Watchdog {
    /// Whether whoever waits to be accepted is heard: nobody waits from one beat to the next while nobody is accepted.
    fn hears(&mut self, waits: bool, accepted: u64) -> bool {
        let stands_still = waits && self.waiting_since == Some(accepted);
        self.waiting_since = waits.then_some(accepted);
        !stands_still
    }
}

/// Whether a deadline that the turn should have met was not missed by as much as `most`.
fn is_met(deadline: Option<Time>, now: Time, most: Duration) -> bool {
    deadline.is_none_or(|due| clock::since(due, now) < most)
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).is_ok_and(|count| count > 0)
}

impl Daemon {
    /// Has the watchdog's timer set, if there is a watchdog.
    pub(super) fn set_watchdog(&mut self) {
        if let Some(interval) = self.manager.watchdog_interval() {
            self.timers.set(clock::after(self.now, interval), Timer::Watchdog);
        }
    }

    /// Tells the service manager that all is well, if it is time and all is.
    pub(super) fn beat(&mut self) {
        if !std::mem::take(&mut self.watchdog.due) {
            return;
        }
        if self.is_well() {
            self.manager.watchdog();
        }
        self.set_watchdog();
    }

    fn is_well(&mut self) -> bool {
        let most = self.manager.watchdog_interval().unwrap_or(Duration::MAX);
        let waits = match &self.control.listener {
            Some(listener) if !self.control.paused => is_readable(std::os::fd::AsFd::as_fd(&listener.fd)),
            Some(_) | None => false,
        };
        let hears = self.watchdog.hears(waits, self.control.accepted);
        let timers = is_met(self.timers.next(), self.now, most);
        let engine = is_met(self.engine.next_deadline(), self.now, most);
        if !(hears && timers && engine) {
            tracing::error!(target: "pool", hears, timers, engine, "the loop is out of order: the watchdog is not fed");
        }
        hears && timers && engine
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_from_beat_to_beat_is_not_heard() {
        let mut watchdog = Watchdog::default();
        assert!(watchdog.hears(false, 0) && watchdog.hears(true, 0), "somebody has just come");
        assert!(watchdog.hears(true, 1), "somebody else has");
        assert!(!watchdog.hears(true, 1) && !watchdog.hears(true, 1), "nobody is accepted");
        assert!(watchdog.hears(true, 2) && watchdog.hears(false, 2) && watchdog.hears(true, 2));
    }

    #[test]
    fn a_deadline_that_is_long_past_was_missed() {
        let most = Duration::from_nanos(5);
        assert!(is_met(None, Time(100), most) && is_met(Some(Time(101)), Time(100), most));
        assert!(is_met(Some(Time(96)), Time(100), most), "the next turn meets it");
        assert!(!is_met(Some(Time(95)), Time(100), most));
    }

    #[test]
    fn a_listener_that_somebody_waits_at_is_readable() {
        use std::os::fd::AsFd as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(!is_readable(listener.as_fd()));
        let _client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert!(is_readable(listener.as_fd()));
        drop(listener.accept().unwrap());
        assert!(!is_readable(listener.as_fd()));
    }
}
