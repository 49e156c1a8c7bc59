//! Going on as another build of the program, in the same process: `halsup daemon reexec`.
//!
//! First the new program is tried beside this one: it gets copies of everything, prepares itself as it would, changes
//! nothing and says that it could. Then this process becomes it. Workers notice nothing: their inits watch this process,
//! which goes on, and hold what the new program fetches from them as it would after a crash. What inits do not hold (locks,
//! sockets, clients) stays open across execve(2). Until its first turn is over the new program goes back to the old one
//! if it fails, crashes or hangs. Called by `control` (an order), `event_loop` (after each turn) and `launch` (the new one).

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mio::{Interest, Token};
use serde::{Deserialize, Serialize};

use super::birth::chain;
use super::clock;
use super::pool::listen_text;
use super::sources::Source;
use super::state::Daemon;
use super::timers::Timer;
use crate::engine::Time;
use crate::host::handover::{self, HANDED_VARIABLE, Handed, HandoverError, Program, TRIAL_VARIABLE, set_inherited};
use crate::host::helper::{Ended, Helper};
use crate::protocol::control::{DaemonState, Error as Refusal, UpgradeReply};
use crate::protocol::varlink::Reply;
use crate::spec::{Listen, PoolSpec};

/// The layout of the hand-over. A program that knows another one fails its trial.
const FORMAT: u32 = 1;
/// How long the trial may take, and then the new program until its first turn is over.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a trial prints when it could take over, before its version.
const TRIAL_PASSED: &str = "halsup could take over: ";
/// Pause before it is looked again whether a worker is still between clone and exec.
const PAUSE: Duration = Duration::from_millis(1);

/// What the new program is told. Numbers are of descriptors.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Message {
    format: u32,
    /// Version of the program before.
    from: String,
    /// When nobody was there to answer any more, on the monotonic clock.
    since: u64,
    /// When the daemon first started, in milliseconds since 1970.
    started_msec: u64,
    /// The path of the program to become.
    binary: String,
    /// The configuration in force, for the program that is come back to: the file may be what the new one failed at.
    config: String,
    arguments: Vec<String>,
    /// Of the state and the runtime directory.
    locks: [RawFd; 2],
    cgroup_lock: RawFd,
    listener: RawFd,
    /// Pool, address, descriptor.
    pool_listeners: Vec<(String, String, RawFd)>,
    clients: Vec<RawFd>,
    /// Which of them asked for the upgrade.
    asked: Option<RawFd>,
    /// The program before, to go back to.
    old: RawFd,
    /// Where it is written why.
    verdict: RawFd,
}

/// What a program before this one has handed over; opaque to the command line.
#[derive(Debug)]
pub struct Handover {
    handed: Handed,
    message: Message,
    is_trial: bool,
    verdict: Option<String>,
    /// Copies for this process.
    pub(super) locks: Option<[OwnedFd; 2]>,
    pub(super) cgroup_lock: Option<OwnedFd>,
    pub(super) listener: Option<OwnedFd>,
    pool_listeners: Vec<(String, String, OwnedFd)>,
    pub(super) clients: Vec<(OwnedFd, bool)>,
}

impl Handover {
    /// Takes what was handed over, if this process was another program before (or tries to follow one), and prepares the
    /// way back. To be called before anything else is opened.
    ///
    /// # Errors
    /// A sentence: what was handed over cannot be used.
    pub fn take() -> Result<Option<Self>, String> {
        let Some(mut handed) = Handed::take().map_err(|error| chain(&error))? else { return Ok(None) };
        let message: Message =
            serde_json::from_slice(&handed.bytes).map_err(|error| format!("read what was handed over: {error}"))?;
        if message.format != FORMAT {
            return Err(format!("what was handed over has layout {}, and this program knows {FORMAT}", message.format));
        }
        let is_trial = std::env::var_os(TRIAL_VARIABLE).is_some();
        let taken = Self::copies(&mut handed, &message).map_err(|error| chain(&error))?;
        let (locks, cgroup_lock, listener, pool_listeners, clients, verdict) = taken;
        let mut this = Self {
            handed,
            message,
            is_trial,
            verdict,
            locks: Some(locks),
            cgroup_lock: Some(cgroup_lock),
            listener: Some(listener),
            pool_listeners,
            clients,
        };
        this.arm().map_err(|error| chain(&error))?;
        Ok(Some(this))
    }

    #[expect(clippy::type_complexity, reason = "the pieces of the value that its only caller puts together")]
    fn copies(
        handed: &mut Handed,
        message: &Message,
    ) -> Result<
        ([OwnedFd; 2], OwnedFd, OwnedFd, Vec<(String, String, OwnedFd)>, Vec<(OwnedFd, bool)>, Option<String>),
        HandoverError,
    > {
        let [state, runtime] = message.locks;
        let locks = [handed.copy(state)?, handed.copy(runtime)?];
        let (cgroup_lock, listener) = (handed.copy(message.cgroup_lock)?, handed.copy(message.listener)?);
        let mut pool_listeners = Vec::new();
        for (pool, address, fd) in &message.pool_listeners {
            pool_listeners.push((pool.clone(), address.clone(), handed.copy(*fd)?));
        }
        let mut clients = Vec::new();
        for fd in &message.clients {
            clients.push((handed.copy(*fd)?, message.asked == Some(*fd)));
        }
        let verdict = handover::read_verdict(handed.copy(message.verdict)?.as_fd())?;
        Ok((locks, cgroup_lock, listener, pool_listeners, clients, verdict))
    }

    /// A program that was come back to does not go anywhere else.
    fn arm(&mut self) -> Result<(), HandoverError> {
        if self.is_trial {
            return Ok(());
        }
        let patience = if self.verdict.is_none() { Some(PATIENCE) } else { None };
        let (argv, envp) = command(&self.message.arguments, self.handed.memfd_number());
        self.handed.arm((self.message.old, self.message.verdict), &argv, &envp, patience)
    }

    /// Whether this process only tries.
    pub(super) const fn is_trial(&self) -> bool {
        self.is_trial
    }

    /// The descriptors that stay open, the copies among them.
    pub(super) fn numbers(&self) -> impl Iterator<Item = RawFd> {
        let single = self.locks.iter().flatten().chain(&self.cgroup_lock).chain(&self.listener);
        let several = self.pool_listeners.iter().map(|(_, _, fd)| fd).chain(self.clients.iter().map(|(fd, _)| fd));
        single.chain(several).map(AsRawFd::as_raw_fd).chain(self.handed.numbers())
    }

    /// The listeners of a pool.
    pub(super) fn listeners(&self, spec: &PoolSpec) -> Vec<(Listen, OwnedFd)> {
        let of_pool = |address: &str| {
            let known =
                self.pool_listeners.iter().find(|(pool, known, _)| pool == spec.name.as_str() && known == address);
            known.and_then(|(_, _, fd)| fd.try_clone().ok())
        };
        spec.listen.iter().filter_map(|listen| Some((listen.clone(), of_pool(&listen_text(listen))?))).collect()
    }

    /// The configuration that was in force, if this is a program that was come back to.
    #[must_use]
    pub fn config(&self) -> Option<&str> {
        self.verdict.as_ref().map(|_| self.message.config.as_str())
    }

    /// When the daemon first started.
    pub(super) fn started(&self) -> std::time::SystemTime {
        clock::from_msec(self.message.started_msec)
    }

    /// Goes back to the program before, if there is one and this one has not been healthy yet. A trial only ends.
    pub fn fall_back(reason: &str) {
        handover::fall_back(reason);
    }

    /// Says that the trial is passed.
    pub(super) fn pass_trial() -> std::io::Result<()> {
        use std::io::Write as _;
        writeln!(std::io::stdout(), "{TRIAL_PASSED}{}", env!("CARGO_PKG_VERSION"))
    }
}

/// Arguments and environment of a program that takes over.
fn command(arguments: &[String], memfd: RawFd) -> (Vec<CString>, Vec<CString>) {
    let own = std::env::vars_os().filter(|(name, _)| name != HANDED_VARIABLE && name != TRIAL_VARIABLE);
    let own = own.map(|(name, value)| {
        let mut pair = name;
        pair.push("=");
        pair.push(value);
        pair
    });
    let named = std::ffi::OsString::from(format!("{HANDED_VARIABLE}={memfd}"));
    (handover::c_strings(arguments), handover::c_strings(own.chain([named])))
}

/// An upgrade under way.
#[derive(Debug)]
pub(super) struct Upgrade {
    /// Place and number of the client that asked.
    asked: (u32, u64),
    program: Program,
    stage: Stage,
    armed: bool,
}

#[derive(Debug)]
enum Stage {
    /// No trial yet: a worker is between clone and exec.
    Wanted,
    Trial {
        helper: Helper,
        token: Token,
        deadline: Time,
    },
    /// The trial is passed.
    Passed,
}

impl Daemon {
    /// An order to go on as another program; answered by that, or by [`Daemon::refuse_upgrade`].
    pub(super) fn begin_upgrade(&mut self, asked: (u32, u64), binary: Option<&str>) -> Result<(), String> {
        if self.state == DaemonState::Stopping {
            return Err("the daemon is shutting down".to_owned());
        }
        if self.upgrade.is_some() || self.handover.is_some() {
            return Err("an upgrade is under way".to_owned());
        }
        self.break_holds("the daemon is upgraded");
        if self.config_path.is_none() {
            return Err("there is no configuration file: pools came from the command line".to_owned());
        }
        let path = binary.map(PathBuf::from).or_else(handover::installed_path);
        let path = path.ok_or("the path of the running program is not known")?;
        let program = Program::open(&path).map_err(|error| chain(&error))?;
        self.upgrade = Some(Upgrade { asked, program, stage: Stage::Wanted, armed: false });
        Ok(())
    }

    /// Takes an upgrade a step further, at the end of a turn.
    pub(super) fn go_on_with_upgrade(&mut self) {
        let Some(upgrade) = &self.upgrade else { return };
        let stops = self.state == DaemonState::Stopping;
        let ready = match &upgrade.stage {
            Stage::Trial { helper, .. } if stops => {
                // Nothing may run on that this daemon has started.
                return super::log::best_effort(helper.kill(), "it has ended by itself");
            }
            Stage::Trial { .. } => return,
            // A child between clone and exec may share this process's descriptors: nothing may be inheritable meanwhile.
            Stage::Wanted | Stage::Passed => self.live.values().all(|live| live.birth.is_none()),
        };
        if stops {
            return self.refuse_upgrade("the daemon is shutting down");
        }
        if !ready {
            return self.look_again();
        }
        let outcome = match upgrade.stage {
            Stage::Wanted => self.begin_trial(),
            Stage::Passed => self.hand_over(),
            Stage::Trial { .. } => Ok(()),
        };
        if let Err(error) = outcome {
            self.refuse_upgrade(&chain(&error));
        }
    }

    fn look_again(&mut self) {
        if let Some(upgrade) = self.upgrade.as_mut().filter(|upgrade| !upgrade.armed) {
            upgrade.armed = true;
            self.timers.set(clock::after(self.now, PAUSE), Timer::Upgrade);
        }
    }

    /// A timer of an upgrade has come.
    pub(super) fn on_upgrade_timer(&mut self) {
        let Some(upgrade) = &mut self.upgrade else { return };
        upgrade.armed = false;
        if let Stage::Trial { helper, deadline, .. } = &upgrade.stage
            && *deadline <= self.now
        {
            super::log::best_effort(helper.kill(), "it has just ended");
        }
    }

    fn arguments(&self) -> Vec<String> {
        let config = self.config_path.as_deref().map_or_else(String::new, |path| path.display().to_string());
        ["halsup", "daemon", "run", "--config", &config].map(str::to_owned).to_vec()
    }

    /// All descriptors that the new program gets beside its clients.
    fn handed_descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let pools = self.pools.values().flat_map(|pool| &pool.prepared.listeners).map(|(_, fd)| fd.as_fd());
        let locks = self.shared.locks.iter().map(AsFd::as_fd);
        let listener = self.control.listener().into_iter();
        locks.chain(self.cgroup_lock.iter().map(AsFd::as_fd)).chain(listener).chain(pools).collect()
    }

    fn message(&self, program: &Path, old: &OwnedFd, verdict: &OwnedFd) -> Option<Message> {
        let [state, runtime] = &self.shared.locks;
        let listeners = self.pools.values().flat_map(|pool| {
            let name = pool.spec.name.to_string();
            pool.prepared.listeners.iter().map(move |(listen, fd)| (name.clone(), listen_text(listen), fd.as_raw_fd()))
        });
        Some(Message {
            format: FORMAT,
            from: env!("CARGO_PKG_VERSION").to_owned(),
            since: clock::now().0,
            started_msec: clock::msec(self.started_wall),
            binary: program.display().to_string(),
            config: self.config_text.clone(),
            arguments: self.arguments(),
            locks: [state.as_raw_fd(), runtime.as_raw_fd()],
            cgroup_lock: self.cgroup_lock.as_ref()?.as_raw_fd(),
            listener: self.control.listener()?.as_raw_fd(),
            pool_listeners: listeners.collect(),
            clients: Vec::new(),
            asked: None,
            old: old.as_raw_fd(),
            verdict: verdict.as_raw_fd(),
        })
    }

    fn begin_trial(&mut self) -> Result<(), HandoverError> {
        let failed = |operation| move |source| HandoverError::Step { operation, source };
        let Some(upgrade) = &self.upgrade else { return Ok(()) };
        let (old, verdict) = (running()?, handover::verdict()?);
        let message = self.message(upgrade.program.path(), &old, &verdict);
        let text = message.as_ref().map(serde_json::to_vec).transpose();
        let memfd =
            handover::write(&text.map_err(|error| failed("write the hand-over")(error.into()))?.unwrap_or_default())?;
        // By its descriptor: what is tried is what is become, whatever its path leads to meanwhile.
        let program = upgrade.program.file();
        let path = PathBuf::from(format!("/proc/self/fd/{}", program.as_raw_fd()));
        let own = [memfd.as_fd(), old.as_fd(), verdict.as_fd(), program];
        let fds: Vec<_> = self.handed_descriptors().into_iter().chain(own).collect();
        let arguments = self.arguments();
        let arguments: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
        let number = memfd.as_raw_fd().to_string();
        let variables = [(HANDED_VARIABLE, number.as_str()), (TRIAL_VARIABLE, "1")];
        let run = || Helper::run(&path, &arguments, &variables).map_err(failed("run the program"));
        let helper = with_inherited(&fds, run)?;
        let token = match self.sources.add(helper.pidfd().as_fd(), Source::Trial, Interest::READABLE) {
            Ok(token) => token,
            Err(error) => {
                super::log::best_effort(helper.kill(), "it has ended by itself");
                // Its end is heard like that of any other child that nobody knows.
                self.strays = true;
                return Err(failed("watch the program")(error));
            }
        };
        let deadline = clock::after(self.now, PATIENCE);
        self.timers.set(deadline, Timer::Upgrade);
        tracing::info!(target: "pool", "trying {}", upgrade.program.path().display());
        if let Some(upgrade) = &mut self.upgrade {
            upgrade.stage = Stage::Trial { helper, token, deadline };
        }
        Ok(())
    }

    /// The trial has ended.
    pub(super) fn on_trial(&mut self) {
        let Some(Upgrade { stage: Stage::Trial { helper, token, .. }, .. }) = &self.upgrade else { return };
        let ended = match helper.ended() {
            Ok(None) => return,
            Ok(Some(ended)) => Some(ended),
            Err(error) => {
                tracing::warn!(target: "pool", %error, "wait for the trial of an upgrade");
                None
            }
        };
        self.sources.remove(*token, helper.pidfd().as_fd());
        match ended.as_ref().map_or(Err("nobody knows how its trial ended".to_owned()), judge) {
            Ok(()) => {
                if let Some(upgrade) = &mut self.upgrade {
                    upgrade.stage = Stage::Passed;
                }
            }
            Err(reason) => self.refuse_upgrade(&reason),
        }
    }

    /// Whether this is the trial's pid, for whoever reaps everything.
    pub(super) fn is_trial(&self, pid: i32) -> bool {
        let Some(Upgrade { stage: Stage::Trial { helper, .. }, .. }) = &self.upgrade else { return false };
        crate::host::spawn::pid_of(helper.pidfd()).is_some_and(|own| i64::from(own) == i64::from(pid))
    }

    /// Becomes the new program; returns only if that failed.
    fn hand_over(&mut self) -> Result<(), HandoverError> {
        let failed = |operation| move |source| HandoverError::Step { operation, source };
        let Some(asked) = self.upgrade.as_ref().map(|upgrade| upgrade.asked) else { return Ok(()) };
        // A reader would be a child that the new program knows nothing of.
        self.end_pulls();
        self.end_imports("the daemon is being upgraded: import it again");
        self.dismiss_clients(asked);
        self.write_down();
        for log in self.logs.values_mut() {
            log.flush(clock::wall());
        }
        let Some(upgrade) = &self.upgrade else { return Ok(()) };
        let (old, verdict) = (running()?, handover::verdict()?);
        let Some(mut message) = self.message(upgrade.program.path(), &old, &verdict) else { return Ok(()) };
        let clients = self.control.idle_sockets(asked);
        message.asked = clients.iter().find(|(_, is_asking)| *is_asking).map(|(fd, _)| fd.as_raw_fd());
        message.clients = clients.iter().map(|(fd, _)| fd.as_raw_fd()).collect();
        let text = serde_json::to_vec(&message).map_err(|error| failed("write the hand-over")(error.into()))?;
        let memfd = handover::write(&text)?;
        let mut fds = self.handed_descriptors();
        // A script's interpreter opens it again by its number.
        fds.extend([&memfd, &old, &verdict].map(AsFd::as_fd).into_iter().chain([upgrade.program.file()]));
        fds.extend(clients.iter().map(|(fd, _)| *fd));
        let (argv, envp) = command(&message.arguments, memfd.as_raw_fd());
        tracing::info!(target: "pool", workers = self.live.len(), "becoming {}", upgrade.program.path().display());
        with_inherited(&fds, || Err(upgrade.program.become_it(&argv, &envp)))
    }

    /// Answers whoever waits for something that the new program does not know of.
    fn dismiss_clients(&mut self, asked: (u32, u64)) {
        self.leave_requests();
        let cause = "the daemon is being upgraded; what was ordered goes on";
        let last = Refusal::Failed { operation: "wait".into(), object: "the workers".into(), cause: cause.into() };
        self.control.dismiss(asked, &last.to_reply(), self.now);
        self.flush_clients();
    }

    /// The upgrade came to nothing.
    pub(super) fn refuse_upgrade(&mut self, reason: &str) {
        let Some(upgrade) = self.upgrade.take() else { return };
        let object = upgrade.program.path().display().to_string();
        tracing::error!(target: "pool", "upgrade to {object}: {reason}");
        let refusal = Refusal::Failed { operation: "upgrade to".into(), object, cause: reason.into() };
        self.control.answer_waiting(upgrade.asked, &refusal.to_reply(), self.now);
    }

    /// The first turn is over: this program is what the daemon is from now on, and says so to who asked.
    pub(super) fn confirm_handover(&mut self) {
        let Some(handover) = self.handover.take() else { return };
        let Handover { handed, message, verdict, .. } = handover;
        super::log::best_effort(
            handed.confirm(),
            "a handler that is left over is never called by a process that is well",
        );
        let away_usec = clock::since(Time(message.since), clock::now()).as_micros();
        let reply = match verdict {
            None => Reply::last(&UpgradeReply {
                from: message.from.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                away_usec: u64::try_from(away_usec).unwrap_or(u64::MAX),
                workers: u32::try_from(self.live.len()).unwrap_or(u32::MAX),
            }),
            Some(cause) => {
                tracing::error!(target: "pool", "went back from {}: {cause}", message.binary);
                Refusal::Failed { operation: "upgrade to".into(), object: message.binary, cause }.to_reply()
            }
        };
        tracing::info!(target: "pool", from = message.from, workers = self.live.len(), away_usec, "goes on as {}", env!("CARGO_PKG_VERSION"));
        if let Some(asked) = self.asked_for_upgrade.take() {
            self.control.answer_waiting(asked, &reply, self.now);
        }
        self.flush_clients();
    }
}

/// What a trial's end says.
fn judge(ended: &Ended) -> Result<(), String> {
    let passed = ended.stdout.lines().any(|line| line.starts_with(TRIAL_PASSED));
    let last = ended.stderr.lines().last().or(ended.stdout.lines().last()).unwrap_or("it said nothing").trim();
    match (ended.code, passed) {
        (Some(0), true) => Ok(()),
        (Some(0), false) => Err("its trial failed: it is no halsup that can take over".to_owned()),
        (Some(code), _) => Err(format!("its trial ended with status {code}: {last}")),
        (None, _) => {
            Err(format!("its trial was killed: it crashed, or took longer than {} s: {last}", PATIENCE.as_secs()))
        }
    }
}

fn running() -> Result<OwnedFd, HandoverError> {
    let program = Program::running()?;
    program
        .file()
        .try_clone_to_owned()
        .map_err(|source| HandoverError::Step { operation: "open the running program", source })
}

/// Runs something while these descriptors are inheritable.
fn with_inherited<T>(
    fds: &[BorrowedFd<'_>],
    what: impl FnOnce() -> Result<T, HandoverError>,
) -> Result<T, HandoverError> {
    let operation = "hand the descriptors over";
    let set = fds.iter().try_for_each(|fd| set_inherited(*fd, true));
    let outcome = set.map_err(|source| HandoverError::Step { operation, source }).and_then(|()| what());
    for fd in fds {
        super::log::best_effort(set_inherited(*fd, false), "it is open, and a flag can be set");
    }
    outcome
}
