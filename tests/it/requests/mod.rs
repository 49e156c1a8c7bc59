//! Requests from the outside: what callers send through the daemon to real workers, and what comes back, whoever dies,
//! lies, floods or stalls meanwhile.
//!
//! Workers are Python programs: `worker.py`, by the SDK, or programs of a test's own, which say whatever it wants on their
//! channel. Callers are the command line, the SDK's client, or `Peer`, frame by frame.

mod bills;
mod breakers;
mod callers;
mod crowds;
mod inputs;
mod liars;
mod payloads;
mod plain;
mod recycling;
mod rust;
mod sessions;
mod status;
mod storms;
mod streams;
mod takeover;
mod telemetry;
mod told;
mod tools;
mod waits;

use std::fs;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::fixture::Daemon;
use crate::look::wait_healthy;
use crate::peer::{INTERFACE, Peer};

/// The SDK, which a guest has no other copy of.
const SDK: &str = include_str!("../../../examples/sdk/halsup.py");
const WORKER: &str = include_str!("worker.py");

/// A worker that is gone is back at once, however often.
const RESTART: &str = "restart = { delay = '1ms', delay_max = '20ms', max_restarts = 10000 }\n";

/// What workers and test share: programs in `/srv`, and `/mnt`, where both may write.
#[derive(Debug)]
struct Shared {
    programs: tempfile::TempDir,
    seen: tempfile::TempDir,
}

impl Shared {
    fn new() -> Self {
        let open = |mode| {
            let dir = tempfile::tempdir().expect("make a directory");
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).expect("open the directory");
            dir
        };
        // Workers have identities of their own.
        let shared = Self { programs: open(0o755), seen: open(0o777) };
        shared.program("halsup.py", SDK);
        shared.program("worker.py", WORKER);
        let ledger = shared.seen.path().join("ledger");
        fs::write(&ledger, "").expect("make the ledger");
        fs::set_permissions(&ledger, fs::Permissions::from_mode(0o666)).expect("open the ledger");
        shared
    }

    /// Puts a program where workers find it.
    fn program(&self, name: &str, text: &str) {
        let path = self.programs.path().join(name);
        fs::write(&path, text).expect("write a program");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("let it be read");
    }

    /// A pool of workers that run this program; `more` are keys of its table, `dispatch` those of how it dispatches.
    fn pool(&self, name: &str, program: &str, more: &str, dispatch: &str) -> String {
        let (programs, seen) = (self.programs.path().display(), self.seen.path().display());
        format!(
            "[pool.{name}]\nready = 'channel'\nready_timeout = '60s'\nbind = ['{programs}:/srv', '{seen}:/mnt:rw']\n\
             command = ['python3', '-B', '/srv/{program}']\non_supervisor_death = '10m'\n{RESTART}{more}\n[pool.{name}.dispatch]\n{dispatch}\n"
        )
    }

    /// What workers have written down.
    fn ledger(&self) -> Vec<String> {
        let text = fs::read_to_string(self.seen.path().join("ledger")).expect("read the ledger");
        text.lines().map(str::to_owned).collect()
    }

    /// How many lines of the ledger begin like this.
    fn noted(&self, what: &str) -> usize {
        self.ledger().iter().filter(|line| line.starts_with(what)).count()
    }
}

/// A pipe that workers wait at: each byte lets one go on.
#[derive(Debug)]
struct Gate(fs::File);

impl Gate {
    fn new(shared: &Shared) -> Self {
        let path = shared.seen.path().join("gate");
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &path, fifo, rustix::fs::Mode::from_raw_mode(0o666), 0)
            .expect("make a pipe");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("open it to everybody");
        // Both ways, so that neither end waits for the other to be there.
        Self(fs::File::options().read(true).write(true).open(&path).expect("open the pipe"))
    }

    /// Lets so many go on.
    fn open(&mut self, count: usize) {
        std::io::Write::write_all(&mut self.0, &vec![b'.'; count]).expect("write to the pipe");
    }
}

/// A daemon whose workers share something with the test.
struct Scene {
    daemon: Daemon,
    shared: Shared,
}

impl Deref for Scene {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.daemon
    }
}

impl DerefMut for Scene {
    fn deref_mut(&mut self) -> &mut Daemon {
        &mut self.daemon
    }
}

impl Scene {
    /// A pool `work` of so many workers, all healthy.
    #[track_caller]
    fn start(size: usize, dispatch: &str) -> Self {
        let shared = Shared::new();
        let config = shared.pool("work", "worker.py", &format!("size = {size}"), dispatch);
        Self::begin(shared, &config, size)
    }

    /// Any pools, with so many workers.
    #[track_caller]
    fn begin(shared: Shared, config: &str, workers: usize) -> Self {
        let mut daemon = Daemon::start(config);
        wait_healthy(&mut daemon, workers);
        Self { daemon, shared }
    }

    /// What `halsup queue` says of a pool.
    #[track_caller]
    fn queue(&self, pool: &str) -> Value {
        self.cli(&["queue", pool, "--json"]).json()["pools"][0].clone()
    }

    /// Waits until these numbers are a pool's.
    #[track_caller]
    fn wait_queue(&mut self, pool: &str, wanted: &Value) -> Value {
        let numbers = wanted.as_object().expect("numbers by name");
        self.daemon.wait_until(&format!("{wanted} of {pool}"), |daemon| {
            let queue = daemon.cli(&["queue", pool, "--json"]).json()["pools"][0].clone();
            numbers.iter().all(|(name, value)| queue[name] == *value).then_some(queue)
        })
    }

    /// Waits until the ledger has so many lines that begin like this.
    #[track_caller]
    fn wait_noted(&mut self, what: &str, count: usize) {
        let shared = &self.shared;
        let told = format!("{count} times {what:?} in the ledger");
        self.daemon.wait_until(&told, |_| (shared.noted(what) >= count).then_some(()));
    }

    /// A caller whose request is on its way.
    #[track_caller]
    fn send(&self, command: &str, args: &Value, more: &Value) -> Peer {
        let mut peer = Peer::connect(&self.daemon);
        peer.call("Execute", &parameters("work", command, args, more));
        peer
    }

    /// What comes of a request.
    #[track_caller]
    fn ask(&self, command: &str, args: &Value, more: &Value) -> Value {
        self.send(command, args, more).reply()
    }

    /// Runs a program with the SDK's client.
    #[track_caller]
    fn python(&self, program: &str) -> crate::place::Output {
        python(&self.shared, &self.path("run/control.sock"), program)
    }

    /// The daemon's open descriptors.
    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("look at the daemon's descriptors").count()
    }

    /// Waits until the daemon has no more of them than this.
    #[track_caller]
    fn wait_descriptors(&mut self, baseline: usize) {
        let path = PathBuf::from(format!("/proc/{}/fd", self.pid()));
        self.daemon.wait_until(&format!("{baseline} descriptors"), |_| {
            (fs::read_dir(&path).expect("look at the daemon's descriptors").count() <= baseline).then_some(())
        });
    }
}

/// The parameters of a request.
fn parameters(pool: &str, command: &str, args: &Value, more: &Value) -> Value {
    let mut parameters = json!({ "pool": pool, "command": command, "args": args });
    for (name, value) in more.as_object().expect("further parameters by name") {
        parameters[name] = value.clone();
    }
    parameters
}

/// Runs a Python program that has the SDK, and the control socket as its argument.
#[track_caller]
#[expect(clippy::disallowed_types, reason = "the client is a program of its own")]
fn python(shared: &Shared, socket: &std::path::Path, program: &str) -> crate::place::Output {
    let mut command = std::process::Command::new("python3");
    command.env("PYTHONPATH", shared.programs.path()).args(["-B", "-W", "error", "-c", program]).arg(socket);
    crate::place::run(&mut command)
}

/// The result of a request that has one.
#[track_caller]
fn result(reply: &Value) -> &Value {
    assert_eq!(reply["error"], Value::Null, "{reply}");
    &reply["parameters"]["result"]
}

/// Why a request has no result, and what became of it.
#[track_caller]
fn failed(reply: &Value) -> (&str, &str) {
    assert_eq!(reply["error"], format!("{INTERFACE}.RequestFailed"), "{reply}");
    let text = |name: &str| reply["parameters"][name].as_str().unwrap_or_else(|| panic!("no {name} in {reply}"));
    (text("reason"), text("outcome"))
}

/// The sentence with which a call was refused.
#[track_caller]
fn refused(reply: &Value) -> &str {
    assert_eq!(reply["error"], format!("{INTERFACE}.Refused"), "{reply}");
    reply["parameters"]["reason"].as_str().unwrap_or_else(|| panic!("no reason in {reply}"))
}
