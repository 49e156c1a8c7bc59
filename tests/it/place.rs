//! Where one test happens: a directory, a configuration and an instance name that nobody else has; and runs of the program
//! there, to their end.
//!
//! Dropping a `Place` has `checker` prove that nothing is left of the instance: no process, cgroup, mount, socket, directory,
//! and that nothing else was touched. The fixture's `Daemon` lives in one; a test of a daemon that has to refuse to start uses it directly.

#![expect(clippy::disallowed_types, reason = "the test starts the program itself, as an operator's shell does")]
#![expect(clippy::disallowed_methods, reason = "deadlines of tests run on the real clock")]

use std::ffi::OsString;
use std::fs;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use rustix::event::PollFlags;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::Value;

use crate::checker::canary::Canary;
use crate::checker::host::{self, Host};
use crate::checker::secrets::Secrets;
use crate::checker::{self, Findings, Instance, Violation, cgroups, files};
use crate::fixture::{LIFE_DEADLINE, complain, ready_for};
use crate::leftovers;

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
pub(crate) fn program() -> OsString {
    std::env::var_os("HALSUP_TEST_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_halsup").into())
}

/// `halsup`, with none of the caller's environment but what every program needs.
pub(crate) fn command() -> Command {
    command_of(program())
}

pub(crate) fn command_of(program: OsString) -> Command {
    let mut command = Command::new(program);
    let kept = ["PATH", "LANG", "RUST_BACKTRACE"];
    command.env_clear().envs(kept.iter().filter_map(|name| Some((name, std::env::var_os(name)?)))).stdin(Stdio::null());
    command
}

/// Runs `halsup` with these arguments to its end.
pub(crate) fn halsup(arguments: &[&str]) -> Output {
    run(command().args(arguments))
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("run {command:?}: {error}"));
    let text = |bytes| String::from_utf8(bytes).expect("halsup prints UTF-8");
    Output { status: code(output.status), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// The exit code, or 128 + the signal that ended it.
pub(crate) fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).expect("it ended")
}

/// A directory that is removed with its value.
pub(crate) fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("halsup-test-").tempdir().expect("make a directory")
}

/// A test's own directory, with a configuration in it.
#[derive(Debug)]
pub(crate) struct Place {
    dir: tempfile::TempDir,
    instance: String,
    /// The host as it was before.
    host: Host,
    /// What lay in the daemon's directories before.
    known: Vec<PathBuf>,
}

/// A process beside every daemon of these tests.
fn bystander() -> &'static Canary {
    static CANARY: OnceLock<Canary> = OnceLock::new();
    CANARY.get_or_init(|| Canary::start(None))
}

impl Place {
    /// Makes the directory and writes `config.toml`: `config` under the head of its `[daemon]` table.
    pub(crate) fn new(config: &str) -> Self {
        Self::in_directory(directory(), config)
    }

    /// As [`Self::new`], in a directory that may hold something already.
    pub(crate) fn in_directory(dir: tempfile::TempDir, config: &str) -> Self {
        let instance = format!("t{}-{}", std::process::id(), INSTANCES.fetch_add(1, Ordering::Relaxed));
        bystander();
        let host = Host::look(&host::canaries(&dir.path().join("host")));
        let run = ["run", "run/work", "run/notify"];
        let state = ["state", "state/overlay", "state/volumes", "state/logs", "state/logs/workers"];
        let places = run.iter().chain(&state);
        let known = places.flat_map(|name| files::entries(&dir.path().join(name))).collect();
        let place = Self { dir, instance, host, known };
        place.configure(config);
        place
    }

    /// Writes the configuration anew.
    pub(crate) fn configure(&self, config: &str) {
        let (run, state) = (self.path("run"), self.path("state"));
        let head = format!("[daemon]\ninstance = {:?}\nruntime_dir = {run:?}\nstate_dir = {state:?}\n", self.instance);
        fs::write(self.path("config.toml"), head + config).expect("write the configuration");
    }

    /// A path in the directory, which holds `run`, `state`, `config.toml` and `stderr`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The instance's name, which is also the name of its cgroup.
    pub(crate) fn instance(&self) -> &str {
        &self.instance
    }

    /// `halsup --config …` with these arguments.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.command_under(&[], arguments)
    }

    /// The same behind the words of `wrapper`, as in `env NAME=value halsup …`.
    pub(crate) fn command_under(&self, wrapper: &[&str], arguments: &[&str]) -> Command {
        let mut command = match wrapper {
            [] => command(),
            [first, rest @ ..] => {
                let mut wrapped = command_of(first.into());
                wrapped.args(rest).arg(program());
                wrapped
            }
        };
        command.arg("--config").arg(self.path("config.toml")).args(arguments);
        command
    }

    /// Runs `halsup` with these arguments and this configuration to its end.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Output {
        run(&mut self.command(arguments))
    }

    /// Runs a program that has to end by itself.
    ///
    /// # Panics
    /// If it has not after [`LIFE_DEADLINE`]; it is then killed.
    #[track_caller]
    pub(crate) fn run_bounded(&self, command: &mut Command) -> Output {
        // Files, not pipes: what it writes cannot hold it up, nor can a child of it hold us.
        let write = |name: &str| fs::File::create(self.path(name)).expect("make a file");
        let read = |name: &str| fs::read_to_string(self.path(name)).expect("read a file");
        command.stdout(write("out.stdout")).stderr(write("out.stderr"));
        let mut child = command.spawn().unwrap_or_else(|error| panic!("run {command:?}: {error}"));
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).expect("open its pidfd");
        let in_time = ready_for(PollFlags::IN, [pidfd.as_fd()], Instant::now() + LIFE_DEADLINE).is_some();
        if !in_time {
            child.kill().expect("kill it");
        }
        let status = child.wait().expect("reap it");
        let output = Output { status: code(status), stdout: read("out.stdout"), stderr: read("out.stderr") };
        assert!(in_time, "{command:?} did not end within {LIFE_DEADLINE:?}: {output:?}");
        output
    }

    /// The instance as the checker knows it.
    pub(crate) fn checked(&self) -> Instance {
        Instance {
            name: self.instance.clone(),
            dir: self.dir.path().to_owned(),
            runtime_dir: self.path("run"),
            state_dir: self.path("state"),
            known: self.known.clone(),
            secrets: Secrets { daemon: Some(self.secret()), pools: Vec::new() },
        }
    }

    /// A word that its daemon has in the environment and that nobody else may ever see.
    pub(crate) fn secret(&self) -> String {
        format!("canary-of-{}-{}", self.instance, self.dir.path().file_name().unwrap_or_default().to_string_lossy())
    }

    /// Everything of the instance that is left, and whatever it has done to what is not its own.
    fn leftovers(&self) -> Vec<Violation> {
        let mut found = Findings(checker::stopped(&self.checked()));
        self.host.untouched(&mut found);
        bystander().untouched(&mut found);
        found.0
    }

    /// The instance's cgroup, wherever in the hierarchy the daemon put it.
    pub(crate) fn cgroup(&self) -> Option<PathBuf> {
        cgroups::base(&self.instance)
    }

    /// Removes what was left, so that one failed test does not spoil the next.
    fn sweep(&mut self) {
        if let Some(base) = self.cgroup() {
            leftovers::sweep_cgroups(&base);
        }
        for point in files::mounts(self.dir.path()) {
            if let Err(error) = unmount(&point, UnmountFlags::DETACH) {
                // Removing the directory would remove what is mounted in it.
                self.dir.disable_cleanup(true);
                complain(&format!("{} stays mounted: {error}\n", point.display()));
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let left = self.leftovers();
        if left.is_empty() {
            return;
        }
        let stderr = fs::read(self.path("stderr")).unwrap_or_default();
        let stderr = String::from_utf8_lossy(&stderr);
        let report = format!("{} left behind:\n{}{stderr}", self.instance, checker::lines(&left));
        self.sweep();
        if std::thread::panicking() {
            complain(&report);
        } else {
            panic!("{report}");
        }
    }
}
