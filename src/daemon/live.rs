//! One generation of a worker while anything of it exists: its process, sockets, cgroup, directory.

use std::os::fd::{AsFd, OwnedFd};
use std::time::SystemTime;

use mio::Token;

use super::environment::Told;
use super::requests::Lines;
use super::sources::Sources;
use super::state::Chore;
use crate::host::cgroup::{Enforcement, WorkerCgroup};
use crate::host::late_binding::OwnerMap;
use crate::host::spawn::Birth;
use crate::host::spawn::Waited;
use crate::protocol::control::{Cause, StartFailure};
use crate::protocol::init::Report;
use crate::spec::{Generation, PoolId};

/// A registered descriptor.
#[derive(Debug)]
pub(super) struct Watched {
    /// The descriptor.
    pub(super) fd: OwnedFd,
    /// Its place among the sources.
    pub(super) token: Token,
}

impl Watched {
    /// Deregisters and closes it.
    pub(super) fn close(self, sources: &mut Sources) {
        sources.remove(self.token, self.fd.as_fd());
    }
}

/// How far a generation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Cloned; its program does not run yet.
    Starting,
    /// Its program runs.
    Running,
    /// Its processes have ended; its cgroup may still hold something.
    Ended,
}

/// What a worker's word of readiness has come to, which it says but once: it stays in the socket until it has been written
/// down, so that a daemon that is killed in between leaves it to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadyWord {
    /// Not said yet.
    Unheard,
    /// Heard, and still the next in the socket.
    Heard,
    /// Taken out of the socket.
    Taken,
}

/// One generation of a worker.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) pool: PoolId,
    pub(super) generation: Generation,
    pub(super) phase: Phase,
    /// Whether it was running when it ended.
    pub(super) was_up: bool,
    /// The pidfd of its first process, until it was waited for.
    pub(super) process: Option<Watched>,
    /// Pid of its first process, for people.
    pub(super) init_pid: i32,
    /// What its first process still reads of the daemon's memory.
    pub(super) birth: Option<Birth>,
    /// Its init's socket.
    pub(super) init: Option<Watched>,
    /// The pidfd of its program.
    pub(super) main: Option<OwnedFd>,
    /// The start image of a program that a claim has started: its environment is there and nowhere else.
    pub(super) claim: Option<OwnedFd>,
    /// For the owner of its next project.
    pub(super) owner_map: Option<OwnerMap>,
    /// The host's pid of its program, for people.
    pub(super) main_pid: Option<u32>,
    /// Numbers of the terminals of its programs.
    pub(super) terminals: Vec<u64>,
    pub(super) stdout: Option<Watched>,
    pub(super) stderr: Option<Watched>,
    pub(super) notify: Option<Watched>,
    pub(super) channel: Option<Watched>,
    pub(super) cgroup: WorkerCgroup,
    /// Watch on `cgroup.events`, only while it is waited for emptiness.
    pub(super) cgroup_events: Option<Token>,
    /// How often its removal was tried.
    pub(super) removals: u32,
    pub(super) enforcement: Enforcement,
    /// Whether another daemon has started it, so that it is not this one's child.
    pub(super) adopted: bool,
    /// How often it was asked how it ended, of a kernel that says so once it was reaped.
    pub(super) exit_looks: u32,
    /// Name of its directory below the work directories.
    pub(super) work_name: String,
    /// What is removed when it has ended.
    pub(super) chore: Chore,
    pub(super) uid: u32,
    /// The ports that it was told.
    pub(super) told: Told,
    pub(super) started: SystemTime,
    /// `STATUS=` of its last notification.
    pub(super) status_text: Option<String>,
    /// Datagrams and lines that meant nothing.
    pub(super) junk: u64,
    /// How its main process ended, by its init.
    pub(super) main_exit: Option<Report>,
    /// How many processes its main process left behind.
    pub(super) leftover: Option<u64>,
    /// How its first process ended.
    pub(super) waited: Option<Waited>,
    pub(super) start_failure: Option<StartFailure>,
    /// Number of the next ping.
    pub(super) next_ping: u64,
    /// When it last answered a health check, or beat.
    pub(super) last_health: Option<SystemTime>,
    /// What its word of readiness has come to.
    pub(super) ready_word: ReadyWord,
    /// Connections of its leases.
    pub(super) leases: Lines,
}

/// What is known of a generation before it lives.
#[derive(Debug)]
pub(super) struct Particulars {
    pub(super) pool: PoolId,
    pub(super) generation: Generation,
    pub(super) enforcement: Enforcement,
    pub(super) chore: Chore,
    pub(super) uid: u32,
    pub(super) told: Told,
    pub(super) work_name: String,
    pub(super) started: SystemTime,
}

impl Live {
    /// A generation that was just cloned (`birth` is what it still reads) or found, and is not listened to yet.
    pub(super) fn new(birth: Option<Birth>, init_pid: i32, cgroup: WorkerCgroup, known: Particulars) -> Self {
        let adopted = birth.is_none();
        Self {
            pool: known.pool,
            generation: known.generation,
            phase: Phase::Starting,
            was_up: false,
            process: None,
            init_pid,
            birth,
            init: None,
            main: None,
            claim: None,
            owner_map: None,
            main_pid: None,
            terminals: Vec::new(),
            stdout: None,
            stderr: None,
            notify: None,
            channel: None,
            cgroup,
            cgroup_events: None,
            removals: 0,
            enforcement: known.enforcement,
            adopted,
            exit_looks: 0,
            chore: known.chore,
            work_name: known.work_name,
            uid: known.uid,
            told: known.told,
            started: known.started,
            status_text: None,
            junk: 0,
            main_exit: None,
            leftover: None,
            waited: None,
            start_failure: None,
            next_ping: 0,
            last_health: None,
            ready_word: ReadyWord::Unheard,
            leases: Lines::default(),
        }
    }
}

/// What is kept of a generation for its death certificate.
#[derive(Debug, Clone, Default)]
pub(super) struct Evidence {
    pub(super) status: Option<Cause>,
    pub(super) start_failure: Option<StartFailure>,
    pub(super) started: Option<SystemTime>,
    pub(super) pid: Option<u32>,
    pub(super) user_usec: Option<u64>,
    pub(super) system_usec: Option<u64>,
    pub(super) max_rss_bytes: Option<u64>,
    pub(super) memory_peak_bytes: Option<u64>,
    pub(super) oom_kills: Option<u64>,
    pub(super) leftover: Option<u64>,
    pub(super) last_output: String,
    /// What is not known of its end, and why.
    pub(super) note: Option<String>,
}
