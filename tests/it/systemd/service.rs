//! The installed units under test, one test at a time: installed, started, asked, stopped, and proved to have left nothing.

#![expect(clippy::disallowed_types, reason = "the test runs systemctl, as an operator does")]
#![expect(clippy::disallowed_methods, reason = "deadlines of tests run on the real clock")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::{Value, json};

use crate::fixture::{EVENT_DEADLINE, complain, ended_within};
use crate::leftovers;
use crate::place::{Output, halsup, program, run};

/// There is one halsup.service on a machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const UNITS: &str = "/etc/systemd/system";
const PROGRAM: &str = "/usr/local/bin/halsup";
const CONFIG: &str = "/etc/halsup/halsup.toml";
const RUNTIME_DIR: &str = "/run/halsup";
const STATE_DIR: &str = "/var/lib/halsup";
/// The control socket.
pub(super) const SOCKET: &str = "/run/halsup/control.sock";
/// Where the shipped units are.
pub(super) fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name)
}
/// The units of halsup.
pub(super) const NAMES: [&str; 3] = ["halsup.service", "halsup.socket", "halsup-workers.service"];

/// Runs a program to its end.
pub(super) fn tool(program: &str, arguments: &[&str]) -> Output {
    run(Command::new(program).args(arguments))
}

/// Runs systemctl, which has to succeed, and gives what it printed.
#[track_caller]
pub(super) fn systemctl(arguments: &[&str]) -> String {
    let output = tool("systemctl", arguments);
    assert_eq!(output.status, 0, "systemctl {arguments:?}: {output:?}\n{}", journal());
    output.stdout.trim_end().to_owned()
}

/// One property of a unit.
#[track_caller]
pub(super) fn property(unit: &str, name: &str) -> String {
    systemctl(&["show", "--value", "--property", name, unit])
}

/// What the units have logged since they were installed last.
pub(super) fn journal() -> String {
    let units = NAMES.map(|name| format!("--unit={name}"));
    let mut arguments = vec!["--no-pager", "--output=short-monotonic", "--boot", "--lines=200"];
    arguments.extend(units.iter().map(String::as_str));
    tool("journalctl", &arguments).stdout
}

/// Asks until `reached` gives a value; each question is a process of its own, which is pause enough.
#[track_caller]
pub(super) fn wait_until<T>(what: &str, reached: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + EVENT_DEADLINE;
    loop {
        if let Some(value) = reached() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not after {EVENT_DEADLINE:?}\n{}", journal());
    }
}

/// The installed service.
pub(super) struct Service {
    _alone: MutexGuard<'static, ()>,
}

impl Service {
    /// Installs the units as README.md says, with this configuration and these lines of drop-ins by unit, and starts nothing.
    #[track_caller]
    pub(super) fn install(config: &str, drop_ins: &[(&str, &str)]) -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        if !Path::new(PROGRAM).exists() {
            fs::create_dir_all("/usr/local/bin").expect("make a directory");
            fs::copy(program(), PROGRAM).expect("install the program");
        }
        for name in NAMES {
            fs::copy(shipped(name), Path::new(UNITS).join(name)).expect("install a unit");
        }
        fs::create_dir_all("/etc/halsup").expect("make a directory");
        if Path::new(STATE_DIR).exists() {
            // Nothing is left to do in it for a daemon that was stopped; certificates of another test would be told in this one.
            fs::remove_dir_all(STATE_DIR).expect("remove what is known of other tests");
        }
        let service = Self { _alone: alone };
        service.configure(config);
        for (unit, lines) in drop_ins {
            let dir = drop_in_dir(unit);
            fs::create_dir_all(&dir).expect("make a directory");
            fs::write(dir.join("test.conf"), lines).expect("write a drop-in");
        }
        systemctl(&["daemon-reload"]);
        service
    }

    /// Installs and starts.
    #[track_caller]
    pub(super) fn start(config: &str) -> Self {
        Self::start_with(config, &[])
    }

    /// Installs with drop-ins, and starts.
    #[track_caller]
    pub(super) fn start_with(config: &str, drop_ins: &[(&str, &str)]) -> Self {
        let service = Self::install(config, drop_ins);
        systemctl(&["start", "halsup"]);
        service
    }

    /// Writes the configuration.
    pub(super) fn configure(&self, config: &str) {
        fs::write(CONFIG, config).expect("write the configuration");
    }

    /// The daemon's process.
    #[track_caller]
    pub(super) fn daemon(&self) -> Process {
        Process::open(&property("halsup", "MainPID"))
    }

    /// Waits until all workers are ready, and gives them, by name.
    #[track_caller]
    pub(super) fn ready_workers(&self) -> Vec<Value> {
        let started = halsup(&["start", "all"]);
        assert_eq!(started.status, 0, "{started:?}\n{}", journal());
        self.workers()
    }

    /// What `halsup ps` says of the workers.
    #[track_caller]
    pub(super) fn workers(&self) -> Vec<Value> {
        halsup(&["ps", "--json"]).json()["workers"].as_array().cloned().expect("a list")
    }

    /// The pids of the workers' programs, in the order of their names.
    #[track_caller]
    pub(super) fn pids(&self) -> Vec<i64> {
        let pid =
            |worker: &Value| worker["pid"].as_i64().unwrap_or_else(|| panic!("no pid in {worker}\n{}", journal()));
        self.workers().iter().map(pid).collect()
    }

    /// Stops it and proves that nothing is left: no process, cgroup, mount, work directory, socket, descriptor.
    #[track_caller]
    pub(super) fn stop(&self) {
        systemctl(&["stop", "halsup"]);
        // The other two units end by themselves, a moment later.
        for unit in NAMES {
            wait_until(&format!("the end of {unit}"), || {
                Some(property(unit, "ActiveState")).filter(|state| matches!(state.as_str(), "inactive" | "failed"))
            });
        }
        let left = leftovers_of_units();
        assert!(left.is_empty(), "left behind: {left:#?}\n{}", journal());
    }
}

fn drop_in_dir(unit: &str) -> PathBuf {
    Path::new(UNITS).join(format!("{unit}.d"))
}

/// What is left of the units that have ended.
fn leftovers_of_units() -> Vec<String> {
    let mut left = Vec::new();
    for unit in NAMES {
        let cgroup = Path::new("/sys/fs/cgroup/system.slice").join(unit);
        if cgroup.exists() {
            left.push(format!("cgroup {}", cgroup.display()));
            leftovers::list_cgroups(&cgroup, &mut left);
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read /proc/self/mountinfo");
    left.extend(mounts.lines().filter(|line| line.contains("halsup")).map(|line| format!("mount {line}")));
    for dir in ["work", "notify"] {
        let entries = crate::checker::files::entries(&Path::new(RUNTIME_DIR).join(dir));
        left.extend(entries.into_iter().map(|path| path.display().to_string()));
    }
    if Path::new(SOCKET).exists() {
        left.push(SOCKET.to_owned());
    }
    let stored = property("halsup", "NFileDescriptorStore");
    if stored != "0" {
        left.push(format!("{stored} descriptors in the store"));
    }
    left
}

impl Drop for Service {
    fn drop(&mut self) {
        // For the next test, whatever became of this one.
        let mut commands = vec![vec!["kill", "--kill-whom=main", "--signal=CONT", "halsup.service"]];
        commands.extend(NAMES.map(|unit| vec!["stop", unit]));
        commands.extend(NAMES.map(|unit| vec!["reset-failed", unit]));
        if std::thread::panicking() {
            complain(&journal());
        } else {
            self.stop();
        }
        for command in commands {
            tool("systemctl", &command);
        }
        for unit in NAMES {
            if drop_in_dir(unit).exists() {
                fs::remove_dir_all(drop_in_dir(unit)).expect("remove the drop-ins");
            }
        }
    }
}

/// A process, named so that a later one with its pid is not meant.
pub(super) struct Process {
    pub(super) pid: String,
    pidfd: OwnedFd,
}

impl Process {
    /// By its pid, while it lives.
    #[track_caller]
    pub(super) fn open(pid: &str) -> Self {
        let named =
            pid.parse().ok().and_then(Pid::from_raw).unwrap_or_else(|| panic!("no pid: {pid:?}\n{}", journal()));
        let pidfd = pidfd_open(named, PidfdFlags::empty()).unwrap_or_else(|error| panic!("pid {pid}: {error}"));
        Self { pid: pid.to_owned(), pidfd }
    }

    /// Waits for its end.
    #[track_caller]
    pub(super) fn wait(&self) {
        assert!(self.has_ended_within(EVENT_DEADLINE), "{} still runs\n{}", self.pid, journal());
    }

    /// Whether it ends within this time.
    pub(super) fn has_ended_within(&self, time: Duration) -> bool {
        ended_within(self.pidfd.as_fd(), time)
    }
}

/// A client that has called and waits for its answer.
pub(super) struct Caller {
    stream: UnixStream,
}

impl Caller {
    /// Connects and asks for the daemon's status.
    #[track_caller]
    pub(super) fn call() -> Self {
        let mut stream = UnixStream::connect(SOCKET).unwrap_or_else(|error| panic!("connect: {error}\n{}", journal()));
        let mut call = json!({ "method": "io.halsup.Control.Status" }).to_string().into_bytes();
        call.push(0);
        stream.write_all(&call).expect("call");
        Self { stream }
    }

    /// Whether the answer, or the end of the connection, is there within this time.
    pub(super) fn is_answered_within(&self, time: Duration) -> bool {
        ended_within(self.stream.as_fd(), time)
    }

    /// The pid of the daemon that answers.
    #[track_caller]
    pub(super) fn answer(self) -> String {
        assert!(self.is_answered_within(EVENT_DEADLINE), "no answer\n{}", journal());
        self.try_answer().unwrap_or_else(|| panic!("the connection was closed\n{}", journal()))
    }

    /// The same, or `None` where the connection is closed without an answer.
    #[track_caller]
    pub(super) fn try_answer(mut self) -> Option<String> {
        let mut reply = Vec::new();
        while reply.last() != Some(&0) {
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(count) => reply.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("read the answer: {error}"),
            }
        }
        reply.pop();
        let reply: Value = serde_json::from_slice(&reply).expect("JSON");
        Some(reply["parameters"]["pid"].as_u64().unwrap_or_else(|| panic!("no pid in {reply}")).to_string())
    }
}
