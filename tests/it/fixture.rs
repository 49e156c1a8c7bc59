//! One real daemon for one test: started, asked, stopped, and proved to have left nothing behind.
//!
//! Owns a directory, an instance name that nobody else has, the daemon and the child that follows its events. A test calls
//! `Daemon::start`, then `cli` and the `wait_*` methods; dropping the value is the last assertion of the test.

#![expect(clippy::disallowed_types, reason = "the test starts the program itself, as an operator's shell does")]
#![expect(clippy::disallowed_methods, reason = "deadlines of tests run on the real clock")]

use std::ffi::OsString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

use crate::leftovers;
use crate::needs::cgroup_mount;

/// How long a daemon may take to say `READY=1` and how long to end. Generous: the guests are emulated.
pub(crate) const LIFE_DEADLINE: Duration = Duration::from_secs(60);
/// How long a test waits for an event.
pub(crate) const EVENT_DEADLINE: Duration = Duration::from_secs(60);
/// A state is looked at again at the latest after this, should its event have come before the subscription.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

static INSTANCES: AtomicU32 = AtomicU32::new(0);

/// What a run of the program printed and returned.
#[derive(Debug)]
pub(crate) struct Output {
    /// Its exit code; 128 + the signal that ended it.
    pub(crate) status: i32,
    /// Its standard output.
    pub(crate) stdout: String,
    /// Its standard error.
    pub(crate) stderr: String,
}

impl Output {
    /// The standard output as one JSON value.
    ///
    /// # Panics
    /// If the program failed or printed something else.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.status, 0, "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("not JSON: {error}: {self:?}"))
    }
}

/// The program under test: in a guest it lies elsewhere than where cargo built it.
fn program() -> OsString {
    std::env::var_os("HALSUP_TEST_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_halsup").into())
}

/// `halsup`, with none of the caller's environment but what every program needs.
fn command() -> Command {
    command_of(program())
}

fn command_of(program: OsString) -> Command {
    let mut command = Command::new(program);
    let kept = ["PATH", "LANG", "RUST_BACKTRACE"];
    command.env_clear().envs(kept.iter().filter_map(|name| Some((name, std::env::var_os(name)?)))).stdin(Stdio::null());
    command
}

/// Runs `halsup` with these arguments to its end.
pub(crate) fn halsup(arguments: &[&str]) -> Output {
    run(command().args(arguments))
}

fn run(command: &mut Command) -> Output {
    use std::os::unix::process::ExitStatusExt as _;
    let output = command.output().unwrap_or_else(|error| panic!("run {command:?}: {error}"));
    let text = |bytes| String::from_utf8(bytes).expect("halsup prints UTF-8");
    Output {
        status: output.status.code().or_else(|| output.status.signal().map(|signal| 128 + signal)).expect("it ended"),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// Lines of JSON from `halsup events -f --json`, from the daemon's start on.
struct Events {
    child: Child,
    stdout: ChildStdout,
    unread: Vec<u8>,
}

impl Events {
    fn follow(config: &Path) -> Self {
        let mut child = command()
            .args([
                "--config".as_ref(),
                config.as_os_str(),
                "events".as_ref(),
                "-f".as_ref(),
                "-n".as_ref(),
                "1000".as_ref(),
                "--json".as_ref(),
            ])
            .stdout(Stdio::piped())
            .spawn()
            .expect("run halsup events");
        let stdout = child.stdout.take().expect("stdout is piped");
        Self { child, stdout, unread: Vec::new() }
    }

    /// The next event, or `None` at the deadline and at the end of the stream.
    fn next(&mut self, deadline: Instant) -> Option<Value> {
        loop {
            if let Some(end) = self.unread.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("an event is a line of JSON"));
            }
            ready([self.stdout.as_fd()], deadline)?;
            let mut buffer = [0; 4096];
            match self.stdout.read(&mut buffer).expect("read events") {
                0 => return None,
                count => self.unread.extend_from_slice(&buffer[..count]),
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.child.kill().expect("end halsup events");
        self.child.wait().expect("reap halsup events");
    }
}

/// Waits until one of `fds` is readable or at its end; its index, or `None` at the deadline.
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

/// A directory for a daemon.
pub(crate) fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("halsup-test-").tempdir().expect("make a directory")
}

/// Starts `halsup daemon run` on the configuration in `dir`; its process, and where it says that it is ready.
fn launch(dir: &Path, wrapper: &[&str]) -> (Child, UnixDatagram) {
    let notify = UnixDatagram::bind(dir.join("notify")).expect("bind the notify socket");
    let stderr = fs::File::create(dir.join("stderr")).expect("make the log");
    let mut command = match wrapper {
        [] => command(),
        [first, rest @ ..] => {
            let mut wrapped = command_of(first.into());
            wrapped.args(rest).arg(program());
            wrapped
        }
    };
    let child = command
        .args(["daemon".as_ref(), "run".as_ref(), "--config".as_ref(), dir.join("config.toml").as_os_str()])
        .env("NOTIFY_SOCKET", dir.join("notify"))
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .expect("start the daemon");
    (child, notify)
}

/// A running `halsup daemon run`.
pub(crate) struct Daemon {
    dir: tempfile::TempDir,
    instance: String,
    child: Child,
    pidfd: OwnedFd,
    events: Option<Events>,
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
        Self::start_under(&[], config)
    }

    /// As [`Daemon::start`], with the program behind the words of `wrapper`, as in `env NAME=value halsup daemon run`.
    #[track_caller]
    pub(crate) fn start_under(wrapper: &[&str], config: &str) -> Self {
        Self::try_start(directory(), wrapper, config).unwrap_or_else(|refusal| panic!("{refusal}"))
    }

    /// As [`Daemon::start_under`], in a directory that may hold something already; the error is what the daemon said
    /// before it ended by itself.
    #[track_caller]
    pub(crate) fn try_start(dir: tempfile::TempDir, wrapper: &[&str], config: &str) -> Result<Self, String> {
        let instance = format!("t{}-{}", std::process::id(), INSTANCES.fetch_add(1, Ordering::Relaxed));
        let path = |name: &str| dir.path().join(name);
        let head = format!(
            "[daemon]\ninstance = {instance:?}\nruntime_dir = {:?}\nstate_dir = {:?}\n",
            path("run"),
            path("state")
        );
        fs::write(path("config.toml"), head + config).expect("write the configuration");
        let (child, notify) = launch(dir.path(), wrapper);
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).expect("open its pidfd");
        let mut daemon = Self { dir, instance, child, pidfd, events: None };
        daemon.await_ready(&notify)?;
        daemon.events = Some(Events::follow(&daemon.path("config.toml")));
        Ok(daemon)
    }

    /// Starts the daemon anew with the same configuration, after it has ended; how it had ended.
    #[track_caller]
    pub(crate) fn start_again(&mut self) -> ExitStatus {
        assert!(ready([self.pidfd.as_fd()], Instant::now() + LIFE_DEADLINE).is_some(), "the daemon still runs");
        let ended = self.child.wait().expect("reap the daemon");
        self.events = None;
        fs::remove_file(self.path("notify")).expect("remove the notify socket");
        let notify;
        (self.child, notify) = launch(self.dir.path(), &[]);
        self.pidfd = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).expect("open its pidfd");
        self.await_ready(&notify).unwrap_or_else(|refusal| panic!("{refusal}"));
        self.events = Some(Events::follow(&self.path("config.toml")));
        ended
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
        self.dir.path().join(name)
    }

    /// The instance's name, which is also the name of its cgroup.
    pub(crate) fn instance(&self) -> &str {
        &self.instance
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
        run(command().arg("--config").arg(self.path("config.toml")).args(arguments))
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
        while let Some(event) = events.next(deadline) {
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
        use std::os::unix::process::ExitStatusExt as _;
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
        Ok(status.code().or_else(|| status.signal().map(|signal| 128 + signal)).expect("it ended"))
    }

    /// Everything that the daemon left behind, one line each.
    fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        if let Some(base) = self.cgroup() {
            leftovers::list_cgroups(&base, &mut left);
        }
        left.extend(self.mounts().into_iter().map(|path| format!("mount on {path}")));
        let work = self.path("run").join("work");
        let inside = if work.is_symlink() { Vec::new() } else { leftovers::entries(&work) };
        left.extend(inside.into_iter().map(|path| format!("work directory {}", path.display())));
        left
    }

    /// The instance's cgroup, wherever in the hierarchy the daemon put it.
    pub(crate) fn cgroup(&self) -> Option<PathBuf> {
        leftovers::find_dir(&cgroup_mount()?, &self.instance)
    }

    /// Where something is mounted below the test's directory, the last mount first.
    fn mounts(&self) -> Vec<String> {
        let own = self.dir.path().to_str().expect("the directory's name is ASCII");
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read /proc/self/mountinfo");
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        points.filter(|point| point.starts_with(own)).rev().map(str::to_owned).collect()
    }

    /// Removes what was left, so that one failed test does not spoil the next.
    fn sweep(&mut self) {
        if let Some(base) = self.cgroup() {
            leftovers::sweep_cgroups(&base);
        }
        for point in self.mounts() {
            if let Err(error) = unmount(&point, UnmountFlags::DETACH) {
                // Removing the directory would remove what is mounted in it.
                self.dir.disable_cleanup(true);
                complain(&format!("{point} stays mounted: {error}\n"));
            }
        }
    }
}

/// Writes to standard error past libtest, which swallows what passing tests print.
pub(crate) fn complain(text: &str) {
    std::io::stderr().write_all(text.as_bytes()).expect("write to stderr");
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let mut trouble: Vec<String> = self.end().err().into_iter().collect();
        trouble.extend(self.leftovers());
        if trouble.is_empty() {
            return;
        }
        let report = format!("{} left behind:\n{}\n{}", self.instance, trouble.join("\n"), self.stderr());
        self.sweep();
        if std::thread::panicking() {
            complain(&report);
        } else {
            panic!("{report}");
        }
    }
}
