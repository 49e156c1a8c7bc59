//! The end of a generation: last words, status, evidence, emptiness, removal.

use std::os::fd::AsFd;
use std::time::Duration;

use mio::Interest;

use super::birth::{chain, errno_of, is_shortage, release, start_failure};
use super::clock;
use super::live::{Evidence, Live, Phase};
use super::reports::Budget;
use super::sources::Source;
use super::state::{Chore, Daemon, Freed, Place};
use super::timers::Timer;
use crate::engine::{Ended, Input};
use crate::host::cgroup::{CgroupError, Removal};
use crate::host::logfile::Stream;
use crate::host::spawn::{Gone, Status, Waited, exit_info, has_ended, step_failed, try_wait};
use crate::host::workdir;
use crate::protocol::attach;
use crate::protocol::control::Cause;
use crate::protocol::init::{Entry, Report, how, kind};
use crate::spec::{Generation, WorkerId};

/// Entries of ended workers' trees that one turn removes.
const ENTRIES_A_TURN: usize = 256;
/// How often the kernel is asked how a process ended that somebody else reaps; the pauses double, to a tenth of a second in
/// all.
const EXIT_LOOKS_MAX: u32 = 6;
/// Pause before a tree is removed for which the host had no room, such as no descriptor.
const CHORE_PAUSE: Duration = Duration::from_millis(200);
/// How often: for a minute.
const CHORE_TRIES_MAX: u32 = 300;

impl Daemon {
    /// A worker's first process has ended, and with it its pid namespace.
    pub(super) fn on_exit(&mut self, worker: WorkerId) {
        let Some(live) = self.live.get(&worker) else { return };
        let Some(process) = &live.process else { return };
        let waited = match try_wait(&process.fd) {
            Ok(Some(waited)) => Some(waited),
            // Edges come early or twice; there will be another.
            Ok(None) => return,
            Err(error) if live.adopted && error.raw_os_error() == Some(rustix::io::Errno::CHILD.raw_os_error()) => {
                if !has_ended(&process.fd) {
                    return;
                }
                match self.end_of_stranger(worker) {
                    Some(waited) => waited,
                    None => return,
                }
            }
            // Reaped by somebody else, which only a tracer of this daemon can do: its end is true, its status is lost.
            Err(error) => {
                tracing::warn!(target: "worker", %error, "wait for {}", self.worker_name(worker));
                None
            }
        };
        self.hear_last_words(worker);
        let Some(live) = self.live.get_mut(&worker) else { return };
        live.waited = waited;
        if live.main_exit.is_none()
            && let Some(place) = live.chore.ledger_at
        {
            // Its report was lost on the way: what it wrote down before it said so is not.
            live.main_exit = self.shared.ledger.entry(place, live.generation.0).as_ref().and_then(report_of);
        }
        if let Some(process) = live.process.take() {
            process.close(&mut self.sources);
        }
        let was_running = live.phase == Phase::Running;
        live.phase = Phase::Ended;
        live.was_up = was_running;
        if !was_running && live.start_failure.is_none() {
            let error = live.birth.as_ref().map_or(crate::host::spawn::SpawnError::Killed, step_failed);
            live.start_failure = Some(start_failure("spawn", &error));
        }
        release(&mut self.shared.stacks, live.birth.take(), Gone::Waited);
        let generation = live.generation;
        self.look_at_limits(worker);
        let (evidence, ended) = self.evidence_of(worker);
        self.evidence.insert((worker, generation), evidence);
        self.end_terminals(worker, told_to_viewers(ended));
        self.end_programs(worker);
        self.end_probes(worker);
        self.end_leases(worker);
        self.end_ready_file(worker);
        self.tell_claim_of_end(worker);
        if was_running {
            self.inputs.push(Input::Exited(worker, generation, ended));
        }
        self.forget_pidfd(generation);
        self.empty(worker, generation);
    }

    /// Whoever has just claimed it, and has not been answered, hears that it ended instead.
    fn tell_claim_of_end(&mut self, worker: WorkerId) {
        let failure = self.live.get(&worker).and_then(|live| live.start_failure.as_ref());
        let cause = failure.map_or_else(|| "its worker has just ended".to_owned(), |failure| failure.text.clone());
        self.claim_failed(worker, &cause);
    }

    /// How a worker ended that another daemon started, so that somebody else waits for it: its init has said so, or the
    /// kernel knows once that somebody has reaped it. `None` if that may still come; then a timer asks again.
    fn end_of_stranger(&mut self, worker: WorkerId) -> Option<Option<Waited>> {
        self.hear_last_words(worker);
        let live = self.live.get_mut(&worker)?;
        if live.main_exit.is_some() || live.start_failure.is_some() {
            return Some(None);
        }
        let process = live.process.as_ref()?;
        if let Some(status) = exit_info(&process.fd) {
            return Some(Some(Waited { status, user_usec: 0, system_usec: 0, max_rss_kib: 0 }));
        }
        if live.exit_looks >= EXIT_LOOKS_MAX {
            return Some(None);
        }
        live.exit_looks += 1;
        let (generation, pause) = (live.generation, Duration::from_millis(1 << live.exit_looks));
        self.timers.set(clock::after(self.now, pause), Timer::LookAtExit(worker, generation));
        None
    }

    /// Reads all that a dead worker has left in its sockets and pipes, before its end is recorded.
    fn hear_last_words(&mut self, worker: WorkerId) {
        let tokens = self.live.get(&worker).map(|live| {
            [&live.init, &live.notify, &live.channel, &live.stdout, &live.stderr]
                .map(|watched| watched.as_ref().map(|watched| watched.token))
        });
        let [init, notify, channel, stdout, stderr] = tokens.unwrap_or_default();
        if let Some(token) = init {
            self.on_init(worker, token, Budget::Rest);
        }
        if let Some(token) = notify {
            self.on_notify(worker, token, Budget::Rest);
        }
        if let Some(token) = channel {
            self.on_channel(worker, token, Budget::Rest);
        }
        if let Some(token) = stdout {
            self.on_output(worker, Stream::Stdout, token, Budget::Rest);
        }
        if let Some(token) = stderr {
            self.on_output(worker, Stream::Stderr, token, Budget::Rest);
        }
        self.drain_terminals(worker);
        let Some(live) = self.live.get_mut(&worker) else { return };
        let rest = [&mut live.init, &mut live.notify, &mut live.channel, &mut live.stdout, &mut live.stderr];
        for watched in rest.into_iter().filter_map(Option::take) {
            watched.close(&mut self.sources);
        }
    }

    fn evidence_of(&mut self, worker: WorkerId) -> (Evidence, Ended) {
        let Some(live) = self.live.get(&worker) else { return (Evidence::default(), Ended::Unknown) };
        let memory = live.cgroup.memory_events().ok().flatten();
        let oom_kills = memory.map(|events| events.oom_kill);
        let ended = ended(live, oom_kills);
        let stats = live.cgroup.stats().ok();
        let peak = stats.and_then(|stats| stats.memory_peak_bytes);
        let mut last_output = String::new();
        // Closed with the generation: who is stopped holds no descriptors, and who starts anew does so by its latest spec.
        if let Some(mut log) = self.logs.remove(&worker) {
            log.flush(clock::wall());
            last_output = String::from_utf8_lossy(&log.tail()).into_owned();
        }
        // What the init could not report, because it was killed first, the cgroup has counted; the init's own usage says
        // nothing of its program's.
        let report = live.main_exit;
        let counted = stats.map(|stats| (stats.cpu.user_us, stats.cpu.system_us));
        let usage = report.map(|report| (report.c, report.d)).or(counted);
        let evidence = Evidence {
            status: (live.phase == Phase::Ended && live.start_failure.is_none()).then(|| cause_of(ended)),
            start_failure: live.start_failure.clone(),
            started: Some(live.started),
            pid: live.main_pid,
            user_usec: usage.map(|usage| usage.0),
            system_usec: usage.map(|usage| usage.1),
            max_rss_bytes: report.map(|report| report.e.saturating_mul(1024)),
            memory_peak_bytes: peak,
            oom_kills,
            leftover: live.leftover,
            last_output,
            note: (ended == Ended::Unknown && live.adopted).then(|| {
                "its init was killed; it was started by an earlier daemon, and this kernel tells only a parent how a process ended".to_owned()
            }),
        };
        (evidence, ended)
    }

    /// Empties and removes an ended worker's cgroup, now if that is possible, else at its next event.
    pub(super) fn empty(&mut self, worker: WorkerId, generation: Generation) {
        let Some(live) = self.live_mut(worker, generation) else { return };
        if live.phase != Phase::Ended {
            return;
        }
        match live.cgroup.populated() {
            Ok(true) => {
                // Somebody from outside the worker's pid namespace is in it; nothing of its own can be.
                super::log::best_effort(live.cgroup.kill(), "tried again at the cgroup's next event");
                self.watch_cgroup(worker, generation);
                self.try_later(worker, generation);
            }
            Ok(false) => self.remove_cgroup(worker, generation),
            Err(error) => {
                let first = live.removals == 0;
                self.complain_of_cgroup("look into", worker, first, &error);
                self.try_later(worker, generation);
            }
        }
    }

    fn watch_cgroup(&mut self, worker: WorkerId, generation: Generation) {
        let Some(live) = self.live.get_mut(&worker).filter(|live| live.generation == generation) else { return };
        if live.cgroup_events.is_some() {
            return;
        }
        let watched = live
            .cgroup
            .events_fd()
            .map_err(|error| std::io::Error::other(error.to_string()))
            .and_then(|fd| self.sources.add(fd, Source::Cgroup(worker), Interest::PRIORITY));
        match watched {
            Ok(token) => live.cgroup_events = Some(token),
            Err(error) => tracing::debug!(target: "worker", %error, "watch a cgroup: the timer looks after it instead"),
        }
    }

    fn remove_cgroup(&mut self, worker: WorkerId, generation: Generation) {
        let Some(live) = self.live.get_mut(&worker).filter(|live| live.generation == generation) else { return };
        match live.cgroup.remove() {
            Ok(Removal::Removed) => {}
            Ok(Removal::Busy) => return self.try_later(worker, generation),
            Err(error) => {
                let first = live.removals == 0;
                self.complain_of_cgroup("remove", worker, first, &error);
                return self.try_later(worker, generation);
            }
        }
        let Some(mut live) = self.live.remove(&worker) else { return };
        if let (Some(token), Ok(fd)) = (live.cgroup_events.take(), live.cgroup.events_fd()) {
            self.sources.remove(token, fd.as_fd());
        }
        self.chores.push_back(live.chore);
        // A claim's program may have failed to start in a worker that was up.
        let failed = self.evidence.get(&(worker, generation)).is_some_and(|known| known.start_failure.is_some());
        self.inputs.push(match live.was_up || !failed {
            true => Input::Emptied(worker, generation),
            false => Input::SpawnFailed(worker, generation),
        });
    }

    /// Says once what is in the way of a cgroup's end; it is tried again for as long as it takes.
    fn complain_of_cgroup(&self, what: &str, worker: WorkerId, first: bool, error: &CgroupError) {
        if first {
            tracing::warn!(target: "worker", "{what} the cgroup of {}: {}", self.worker_name(worker), chain(error));
        }
    }

    /// The kernel lets go of a cgroup a moment after its last process; then, twice that, up to a second.
    fn try_later(&mut self, worker: WorkerId, generation: Generation) {
        let now = self.now;
        let Some(live) = self.live_mut(worker, generation) else { return };
        let delay = Duration::from_millis(1 << live.removals.min(10));
        live.removals = live.removals.saturating_add(1);
        self.timers.set(clock::after(now, delay), Timer::RemoveCgroup(worker, generation));
    }

    /// Removes a piece of what ended workers have left in the file system; whether there is more.
    pub(super) fn do_chores(&mut self) -> bool {
        let Some(mut chore) = self.chores.pop_front() else { return false };
        if let Some(cgroup) = &chore.cgroup {
            match cgroup.remove() {
                Ok(Removal::Removed) => chore.cgroup = None,
                Ok(Removal::Busy) => return self.put_off(chore, "it is busy"),
                Err(error) => return self.put_off(chore, &chain(&error)),
            }
        }
        if let Some((place, name)) = chore.trees.last() {
            let parent = match place {
                Place::Work => self.shared.work_dirs.as_fd(),
                Place::Notify => self.shared.notify_dirs.as_fd(),
                Place::Overlay => self.shared.overlay_dirs.as_fd(),
                Place::Image => self.images.store.unfinished(),
            };
            match workdir::remove_bounded(parent, name, ENTRIES_A_TURN) {
                Ok(workdir::Removal::Done) => {
                    chore.trees.pop();
                }
                Ok(workdir::Removal::MoreWork) => {}
                Err(error) if chore.tries < CHORE_TRIES_MAX && errno_of(&error).is_some_and(is_shortage) => {
                    return self.put_off(chore, &chain(&error));
                }
                Err(error) => {
                    tracing::warn!(target: "worker", "remove {name}: {}", chain(&error));
                    // What cannot be removed keeps its identity, so that nobody else comes to own it; the next start of
                    // the daemon tries again.
                    chore.trees.pop();
                    chore.frees = None;
                }
            }
        }
        if chore.trees.is_empty()
            && let Some(place) = chore.ledger_at
        {
            self.shared.ledger.give_back(place);
        }
        match (chore.trees.is_empty(), chore.frees) {
            (true, Some(Freed::Id(number))) => self.shared.ids.give_back(number),
            (true, Some(Freed::Range(number))) => self.shared.ranges.give_back(number),
            (true, None) => {}
            (false, _) => self.chores.push_back(chore),
        }
        !self.chores.is_empty()
    }

    /// Leaves for a while what cannot be removed now; whether there is more to do.
    fn put_off(&mut self, mut chore: Chore, reason: &str) -> bool {
        tracing::debug!(target: "worker", "remove what is left of a worker: {reason}; trying again");
        chore.tries += 1;
        if chore.tries > CHORE_TRIES_MAX {
            tracing::warn!(target: "worker", "remove the cgroup of a worker: {reason}; the next start tries again");
            chore.cgroup = None;
        }
        if self.late_chores.is_empty() {
            self.timers.set(clock::after(self.now, CHORE_PAUSE), Timer::Chores);
        }
        self.late_chores.push_back(chore);
        !self.chores.is_empty()
    }
}

/// An entry of the exit ledger as its init would have reported it.
fn report_of(entry: &Entry) -> Option<Report> {
    let a = match entry.how {
        how::EXITED => 0,
        how::SIGNALLED => 1,
        _ => return None,
    };
    let (b, c, d, e) = (entry.value, entry.user_usec, entry.system_usec, entry.max_rss_kib);
    Some(Report { kind: kind::MAIN_EXITED, a, b, c, d, e })
}

/// How the main process ended: by its init's report, else by the init's own end.
fn ended(live: &Live, oom_kills: Option<u64>) -> Ended {
    let status = match (live.main_exit, live.waited.map(|waited| waited.status)) {
        (Some(Report { a: 0, b, .. }), _) => return Ended::Exited(i32::try_from(b).unwrap_or(-1)),
        (Some(Report { b, .. }), _) => Some(i32::try_from(b).unwrap_or(0)),
        // The init itself was killed, and the kernel killed the rest.
        (None, Some(Status::Signalled(signal))) => Some(signal),
        // It ended without a report, which it only does when its report could not be sent.
        (None, Some(Status::Exited(_)) | None) => None,
    };
    match status {
        Some(9) if oom_kills.is_some_and(|kills| kills > 0) => Ended::OutOfMemory,
        Some(signal) => Ended::Signalled(signal),
        None => Ended::Unknown,
    }
}

/// The same for whoever looked at its terminal.
fn told_to_viewers(ended: Ended) -> attach::Ended {
    match ended {
        Ended::Exited(code) => u8::try_from(code & 0xff).map_or(attach::Ended::Unknown, attach::Ended::Exited),
        Ended::Signalled(signal) => u8::try_from(signal).map_or(attach::Ended::Unknown, attach::Ended::Signalled),
        Ended::OutOfMemory => attach::Ended::Signalled(9),
        Ended::Unknown => attach::Ended::Unknown,
    }
}

/// The same in the words of a certificate.
pub(super) const fn cause_of(ended: Ended) -> Cause {
    match ended {
        Ended::Exited(code) => Cause::Exited(code),
        Ended::Signalled(signal) => Cause::Signal(signal),
        Ended::OutOfMemory => Cause::Oom,
        Ended::Unknown => Cause::Unknown,
    }
}
