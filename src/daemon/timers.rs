//! The daemon's own deadlines, beside the engine's: retries of what the kernel was not ready for, and limits on peers.

use std::collections::BTreeMap;

use crate::engine::Time;
use crate::spec::{Generation, WorkerId};

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timer {
    /// Try once more to remove an ended worker's cgroup.
    RemoveCgroup(WorkerId, Generation),
    /// Try a spawn once more.
    Spawn(WorkerId, Generation, u32),
    /// Ask a worker once more whether it is ready.
    ReadyProbe(WorkerId, Generation),
    /// A probe has had its time, by the probe's place and number.
    ProbeTimeout(u32, u64),
    /// A client has begun a message and not finished it, by its place and number.
    ClientTimeout(u32, u64),
    /// A viewer has held a terminal back for a while, by the terminal's number.
    TerminalHeld(u64),
    /// Viewers of a terminal that ended have had their time.
    TerminalEnded(u64),
    /// Watch once more for limits that a worker runs into.
    WatchLimits(WorkerId, Generation),
    /// Look for files that make workers ready without a watch.
    LookForFiles,
    /// Tell the service manager that the loop turns.
    Watchdog,
    /// Tell the service manager what it did not take.
    Notify,
    /// Look at an upgrade again, or end its trial.
    Upgrade,
    /// An archive has had its time, by the number of its import.
    Import(u64),
    /// The pull of an image has had its time.
    Pull(u64),
    /// Write down what could not be written.
    WriteState,
    /// Write files that tell of workers and sessions.
    SessionFiles,
    /// Make what a claim will need.
    Foresee,
    /// Remove once more what could not be removed.
    Chores,
    /// Ask once more how a worker ended that is not this daemon's child.
    LookAtExit(WorkerId, Generation),
    /// Send it the descriptors that it did not take.
    FdStore,
    /// Look whether a worker stands still by now.
    LookAtFreeze(WorkerId, Generation),
    /// Memory was taken from a frozen worker for long enough.
    Reclaim,
    /// A job has had its time, by its number.
    Job(u64),
    /// Look at a hold of volumes, by its client's number.
    Hold(u64),
    /// Look whether it is time to type a task's prompt, by the task's number.
    TaskPrompt(u64),
    /// Accept connections again after descriptors ran out.
    ResumeAccept,
}

/// Deadlines in order.
#[derive(Debug, Default)]
pub(super) struct Timers {
    due: BTreeMap<(Time, u64), Timer>,
    sequence: u64,
}

impl Timers {
    /// Sets a timer. It is not cancelled: what it is for is looked up when it is due, by number or generation.
    pub(super) fn set(&mut self, at: Time, timer: Timer) {
        self.sequence = self.sequence.wrapping_add(1);
        self.due.insert((at, self.sequence), timer);
    }

    /// The earliest deadline.
    pub(super) fn next(&self) -> Option<Time> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    /// Takes one that is due by `now`.
    pub(super) fn pop(&mut self, now: Time) -> Option<Timer> {
        let entry = self.due.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }
}
