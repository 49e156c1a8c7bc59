//! One real daemon for one test: started, asked, checked, stopped, and proved to have left nothing behind.
//!
//! Owns a `Place`, the daemon and the child that follows its events. A test calls `Daemon::start`, then `cli` and the
//! `wait_*` methods; dropping the value is the last assertion of the test.

#![expect(clippy::disallowed_methods, reason = "deadlines of tests run on the real clock")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

use crate::checker::{self, Violation};
use crate::place::{Output, Place, code};

/// How long a daemon may take to say `READY=1` and how long to end. Generous: the guests are emulated.
pub(crate) const LIFE_DEADLINE: Duration = Duration::from_secs(60);
/// How long a test waits for an event.
pub(crate) const EVENT_DEADLINE: Duration = Duration::from_secs(60);
/// A state is looked at again at the latest after this, should its event have come before the subscription.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// The lines of a `halsup` that runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Following {
    child: Child,
    stdout: ChildStdout,
    unread: Vec<u8>,
}

impl Following {
    /// Runs `halsup` with these arguments.
    pub(crate) fn start(place: &Place, arguments: &[&str]) -> Self {
        let mut child = place.command(arguments).stdout(Stdio::piped()).spawn().expect("run halsup");
        let stdout = child.stdout.take().expect("stdout is piped");
        Self { child, stdout, unread: Vec::new() }
    }

    /// The next line.
    ///
    /// # Panics
    /// If none comes within [`EVENT_DEADLINE`].
    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        self.next(Instant::now() + EVENT_DEADLINE).unwrap_or_else(|| panic!("no further line"))
    }

    /// The next line, or `None` at the deadline and at the end of the stream.
    fn next(&mut self, deadline: Instant) -> Option<String> {
        loop {
            if let Some(end) = self.unread.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Some(String::from_utf8(line).expect("halsup prints UTF-8").trim_end_matches('\n').to_owned());
            }
            ready([self.stdout.as_fd()], deadline)?;
            let mut buffer = [0; 4096];
            match self.stdout.read(&mut buffer).expect("read its output") {
                0 => return None,
                count => self.unread.extend_from_slice(&buffer[..count]),
            }
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.child.kill().expect("end it");
        self.child.wait().expect("reap it");
    }
}

/// Waits until one of `fds` is readable or at its end; its index, or `None` at the deadline.
/// Whether the process that a pidfd names ends within this time.
pub(crate) fn ended_within(pidfd: BorrowedFd<'_>, time: Duration) -> bool {
    ready([pidfd], Instant::now() + time).is_some()
}

fn ready<const N: usize>(fds: [BorrowedFd<'_>; N], deadline: Instant) -> Option<usize> {
    ready_for(PollFlags::IN, fds, deadline)
}

pub(crate) fn ready_for<const N: usize>(what: PollFlags, fds: [BorrowedFd<'_>; N], deadline: Instant) -> Option<usize> {
    let mut polled = fds.each_ref().map(|fd| PollFd::new(fd, what));
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).expect("a deadline of a test is near");
        match poll(&mut polled, Some(&timeout)) {
            Ok(0) => return None,
            Ok(_) => return polled.iter().position(|one| !one.revents().is_empty()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}

/// How the events of a daemon are followed, from its start on.
const FOLLOW: [&str; 5] = ["events", "-f", "-n", "1000", "--json"];

/// Starts `halsup daemon run`: its process, and where it says that it is ready.
fn begin(place: &Place, wrapper: &[&str]) -> (Child, OwnedFd, UnixDatagram) {
    let notify = UnixDatagram::bind(place.path("notify")).expect("bind the notify socket");
    let stderr = fs::File::create(place.path("stderr")).expect("make the log");
    let child = place
        .command_under(wrapper, &["daemon", "run"])
        .env("NOTIFY_SOCKET", place.path("notify"))
        .env("CANARY", place.secret())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .expect("start the daemon");
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).expect("open its pidfd");
    (child, pidfd, notify)
}

/// A running `halsup daemon run`.
pub(crate) struct Daemon {
    child: Child,
    pidfd: OwnedFd,
    events: Option<Following>,
    place: Place,
}

impl Daemon {
    /// Starts a daemon and waits until it is ready.
    ///
    /// `config` is a configuration file without the head of its `[daemon]` table: keys before its first table are the
    /// daemon's, as in `"shutdown_timeout = '5s'\n[pool.web]\n…"`.
    ///
    /// # Panics
    /// If the daemon ends or is not ready in time; its standard error is shown.
    #[track_caller]
    pub(crate) fn start(config: &str) -> Self {
        Self::start_in(Place::new(config))
    }

    /// Starts a daemon with the configuration of `place` and waits until it is ready.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[track_caller]
    pub(crate) fn start_in(place: Place) -> Self {
        Self::launch(place, &[]).unwrap_or_else(|refusal| panic!("{refusal}"))
    }

    /// As [`Self::start`], with the program behind the words of `wrapper`, as in `env NAME=value halsup daemon run`.
    #[track_caller]
    pub(crate) fn start_under(wrapper: &[&str], config: &str) -> Self {
        Self::launch(Place::new(config), wrapper).unwrap_or_else(|refusal| panic!("{refusal}"))
    }

    /// As [`Self::start_under`], in a directory that may hold something already; the error is what the daemon said before
    /// it ended by itself.
    #[track_caller]
    pub(crate) fn try_start(dir: tempfile::TempDir, wrapper: &[&str], config: &str) -> Result<Self, String> {
        Self::launch(Place::in_directory(dir, config), wrapper)
    }

    #[track_caller]
    fn launch(place: Place, wrapper: &[&str]) -> Result<Self, String> {
        let (child, pidfd, notify) = begin(&place, wrapper);
        let mut daemon = Self { child, pidfd, events: None, place };
        daemon.await_ready(&notify)?;
        daemon.events = Some(Following::start(&daemon.place, &FOLLOW));
        Ok(daemon)
    }

    /// Starts the daemon anew with the same configuration, after it has ended; how it had ended.
    #[track_caller]
    pub(crate) fn start_again(&mut self) -> ExitStatus {
        self.start_again_under(&[])
    }

    /// The same behind the words of `wrapper`.
    #[track_caller]
    pub(crate) fn start_again_under(&mut self, wrapper: &[&str]) -> ExitStatus {
        self.try_start_again(wrapper).unwrap_or_else(|refusal| panic!("{refusal}"))
    }

    /// As [`Self::start_again_under`]; the error is what the daemon said before it ended by itself. It can then be started
    /// once more.
    #[track_caller]
    pub(crate) fn try_start_again(&mut self, wrapper: &[&str]) -> Result<ExitStatus, String> {
        assert!(ended_within(self.pidfd.as_fd(), LIFE_DEADLINE), "the daemon still runs");
        let ended = self.child.wait().expect("reap the daemon");
        self.events = None;
        fs::remove_file(self.path("notify")).expect("remove the notify socket");
        let notify;
        (self.child, self.pidfd, notify) = begin(&self.place, wrapper);
        self.await_ready(&notify)?;
        self.events = Some(Following::start(&self.place, &FOLLOW));
        Ok(ended)
    }

    #[track_caller]
    fn await_ready(&mut self, notify: &UnixDatagram) -> Result<(), String> {
        let deadline = Instant::now() + LIFE_DEADLINE;
        let mut buffer = [0; 4096];
        loop {
            match ready([notify.as_fd(), self.pidfd.as_fd()], deadline) {
                Some(0) => {
                    let count = notify.recv(&mut buffer).expect("read the notify socket");
                    if buffer[..count].split(|&byte| byte == b'\n').any(|line| line == b"READY=1") {
                        return Ok(());
                    }
                }
                Some(_) => {
                    let status = self.child.wait().expect("reap the daemon");
                    return Err(format!("the daemon ended before it was ready: {status}\n{}", self.stderr()));
                }
                None => panic!("the daemon was not ready after {LIFE_DEADLINE:?}\n{}", self.stderr()),
            }
        }
    }

    /// A path in the test's own directory, which holds `run`, `state`, `config.toml` and `stderr`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.place.path(name)
    }

    /// Writes its configuration anew, for a reload or the next start.
    pub(crate) fn configure(&self, config: &str) {
        self.place.configure(config);
    }

    /// The instance's name, which is also the name of its cgroup.
    pub(crate) fn instance(&self) -> &str {
        self.place.instance()
    }

    /// The daemon's process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the daemon has written to its standard error.
    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path("stderr")).expect("read the log")).into_owned()
    }

    /// Runs `halsup` with these arguments against this daemon.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Output {
        self.place.cli(arguments)
    }

    /// Waits for the first event since the last wait that `wanted` accepts.
    ///
    /// # Panics
    /// At [`EVENT_DEADLINE`]; the events that came instead are shown.
    #[track_caller]
    pub(crate) fn wait_event(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + EVENT_DEADLINE;
        let mut others = Vec::new();
        let events = self.events.as_mut().expect("the daemon runs");
        while let Some(line) = events.next(deadline) {
            let event: Value = serde_json::from_str(&line).expect("an event is a line of JSON");
            if wanted(&event) {
                return event;
            }
            others.push(event.to_string());
        }
        panic!("no such event; these came:\n{}\n{}", others.join("\n"), self.stderr());
    }

    /// Waits until `reached` gives a value, looking anew after each event.
    ///
    /// # Panics
    /// At [`EVENT_DEADLINE`], naming `what`.
    #[track_caller]
    pub(crate) fn wait_until<T>(&mut self, what: &str, reached: impl Fn(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + EVENT_DEADLINE;
        loop {
            if let Some(value) = reached(self) {
                return value;
            }
            let now = Instant::now();
            assert!(now < deadline, "{what}: not after {EVENT_DEADLINE:?}\n{}", self.stderr());
            self.events.as_mut().expect("the daemon runs").next(deadline.min(now + LOOK_AGAIN));
        }
    }

    /// Stops the daemon with SIGTERM and returns its exit code (128 + signal), leaving the proof to the drop.
    ///
    /// # Panics
    /// If it does not end in time; it is then killed.
    #[track_caller]
    pub(crate) fn stop(&mut self) -> i32 {
        self.end().unwrap_or_else(|trouble| panic!("{trouble}\n{}", self.stderr()))
    }

    fn end(&mut self) -> Result<i32, String> {
        self.events = None;
        if self.child.try_wait().expect("look at the daemon").is_none() {
            pidfd_send_signal(&self.pidfd, Signal::TERM).expect("send SIGTERM to the daemon");
        }
        let in_time = ready([self.pidfd.as_fd()], Instant::now() + LIFE_DEADLINE).is_some();
        if !in_time {
            self.child.kill().expect("kill the daemon");
        }
        let status = self.child.wait().expect("reap the daemon");
        if !in_time {
            return Err(format!("the daemon did not end within {LIFE_DEADLINE:?} of SIGTERM"));
        }
        Ok(code(status))
    }

    /// What the checker finds wrong with the daemon, as long as it runs and its test has not failed already.
    fn look_over(&mut self) -> Vec<Violation> {
        let runs = self.child.try_wait().expect("look at the daemon").is_none();
        if runs && !std::thread::panicking() { checker::running(&self.place.checked()) } else { Vec::new() }
    }

    /// The instance's cgroup, wherever in the hierarchy the daemon put it.
    pub(crate) fn cgroup(&self) -> Option<PathBuf> {
        self.place.cgroup()
    }

    /// Where the daemon lives.
    pub(crate) const fn place(&self) -> &Place {
        &self.place
    }
}

/// Writes to standard error past libtest, which swallows what passing tests print.
pub(crate) fn complain(text: &str) {
    std::io::stderr().write_all(text.as_bytes()).expect("write to stderr");
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let wrong = self.look_over();
        // That nothing is left is then proved by the drop of the place.
        let ended = self.end();
        if wrong.is_empty() && ended.is_ok() {
            return;
        }
        let trouble = ended.err().unwrap_or_default();
        let report = format!("{}: {trouble}\n{}{}", self.instance(), checker::lines(&wrong), self.stderr());
        if std::thread::panicking() {
            complain(&report);
        } else {
            panic!("{report}");
        }
    }
}
