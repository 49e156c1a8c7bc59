//! Signals to the daemon, as readiness of a descriptor, and what they mean.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use mio::Interest;
use rustix::process::Signal;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR2};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use super::sources::{Source, Sources};
use super::state::Daemon;
use crate::engine::Input;
use crate::host::spawn::{peek_ended, reap_orphan};
use crate::protocol::control::DaemonState;
use crate::spec::WorkerId;

/// The signals that are listened to. As PID 1 of a container this process would not even notice the others; SIGPWR is how some
/// container managers ask for the end.
const WANTED: [i32; 7] = [SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGCHLD, SIGUSR2, Signal::POWER.as_raw()];
/// Ended children that one turn looks at.
const CHILDREN_A_TURN: usize = 256;

/// Where signals arrive.
#[derive(Debug)]
pub(super) struct Signals {
    delivery: SignalDelivery<UnixStream, SignalOnly>,
    token: mio::Token,
}

impl Signals {
    /// Begins to listen. To be called before whatever takes time at the start: what PID 1 does not listen to is lost, and then
    /// whoever asked it to end waits until they kill it.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn listen(sources: &mut Sources) -> std::io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        let delivery = SignalDelivery::with_pipe(read, write, SignalOnly, WANTED)?;
        let token = sources.add(delivery.get_read().as_fd(), Source::Signals, Interest::READABLE)?;
        Ok(Self { delivery, token })
    }
}

impl Daemon {
    /// Does what the signals that arrived ask for.
    pub(super) fn on_signals(&mut self) {
        let arrived: Vec<i32> = self.signals.delivery.pending().collect();
        for signal in arrived {
            match signal {
                SIGHUP => self.reload_by_signal(),
                SIGCHLD => {}
                SIGUSR2 => self.leave(),
                _ => self.shutdown_by_signal(signal),
            }
        }
        self.reap_orphans();
    }

    /// The first one asks everything to end within the configured time, the next one ends it.
    fn shutdown_by_signal(&mut self, signal: i32) {
        let again = self.state == DaemonState::Stopping;
        let timeout = if again { Duration::ZERO } else { self.spec.shutdown_timeout };
        tracing::info!(target: "pool", signal, timeout_ms = timeout.as_millis(), "shutting down");
        self.begin_shutdown(timeout);
    }

    /// Ends the daemon alone: its workers go on for the next one. A shutdown that has begun is not taken back by it.
    pub(super) fn leave(&mut self) {
        if self.state == DaemonState::Stopping {
            return;
        }
        if self.reaps {
            tracing::warn!(target: "pool", "workers cannot outlive PID 1 of their container: they are ended too");
            return self.begin_shutdown(self.spec.shutdown_timeout);
        }
        tracing::info!(target: "pool", workers = self.live.len(), "leaving the workers to the next daemon");
        self.state = DaemonState::Stopping;
        self.manager.stopping();
        self.leaves = true;
        self.finished = true;
    }

    /// Has every worker end.
    pub(super) fn begin_shutdown(&mut self, timeout: Duration) {
        self.state = DaemonState::Stopping;
        self.break_holds("the daemon ends");
        self.manager.stopping();
        self.catch_up_with_manager();
        // Whoever starts the daemon anew after it was killed in the middle of this wants everything to run again.
        self.persist.keep_ending();
        self.inputs.push(Input::ShutdownRequested(timeout));
    }

    /// Reaps what this process was given as PID 1 or as a subreaper; its own children it waits for by pidfd.
    pub(super) fn reap_orphans(&mut self) {
        if !self.reaps && !self.strays {
            return;
        }
        // Made once for all of a turn's: thousands of orphans times thousands of workers would be felt.
        let mut inits: Option<BTreeMap<i32, WorkerId>> = None;
        for _ in 0..CHILDREN_A_TURN {
            let Ok(Some(pid)) = peek_ended() else { return };
            if let Some(import) = self.import_of(pid) {
                self.on_import_end(import);
                continue;
            }
            if let Some(pull) = self.pull_of(pid) {
                self.on_pull_end(pull);
                continue;
            }
            if self.is_trial(pid) {
                self.on_trial();
                continue;
            }
            if let Some(number) = self.job_of(pid) {
                self.on_job(number);
                continue;
            }
            if self.on_freezer_child(pid) {
                continue;
            }
            let inits = inits.get_or_insert_with(|| {
                let living = self.live.iter().filter(|(_, live)| live.process.is_some());
                living.map(|(worker, live)| (live.init_pid, *worker)).collect()
            });
            match inits.remove(&pid) {
                Some(worker) => self.on_exit(worker),
                None => super::log::best_effort(reap_orphan(pid), "nobody else waits for an orphan"),
            }
        }
        // One signal may stand for thousands of them.
        self.sources.again(self.signals.token);
    }
}
