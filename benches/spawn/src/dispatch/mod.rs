//! Requests: what a daemon with real workers does with them, beside the same conversations over bare unix sockets.
//!
//! Rows that are held against each other are measured in turn, round by round. All of them run in one process of callers, one
//! daemon and workers of their own; what a request costs the daemon is its own time on a processor, by `schedstat`.

mod bare;
mod callers;
mod memory;
mod payloads;
mod worker;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use halsup::cli::Caller;
use halsup::protocol::control::ExecuteRequest;
use halsup::spec::PoolName;
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::place::{INSIDE, Place};
use crate::rows::Rows;
use crate::{Options, Result};

/// Callers at once.
const CALLERS: usize = 20;
/// Workers of each pool but `memory`.
const WORKERS: usize = 5;
/// How long a job takes.
const JOB_MS: u64 = 50;

/// The SDK and a worker with it.
const SDK: &str = include_str!("../../../../examples/sdk/halsup.py");
const PYTHON: &str = "\
import time
from halsup import Context, serve, tool

@tool
def ping(context: Context, args):
    return args

@tool
def job(context: Context, args):
    time.sleep(args / 1000)
    return args

serve()
";

/// Serves as a worker or as something bare, if that is what the arguments say.
pub fn serve(arguments: &[String]) -> Option<Result<()>> {
    match arguments.split_first()? {
        (what, _) if what == "worker" => Some(worker::serve()),
        (what, rest) => bare::serve(what, rest),
    }
}

/// A daemon whose pools take requests.
struct Scene<'p> {
    place: &'p Place,
    daemon: Daemon,
    has_python: bool,
}

impl Scene<'_> {
    fn caller(&self) -> Result<Caller> {
        Ok(Caller::connect(&self.daemon.run.join("control.sock"))?)
    }

    /// Nanoseconds that the daemon has spent on processors.
    fn spent(&self) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/schedstat", self.daemon.pid()))?;
        Ok(text.split(' ').next().unwrap_or_default().parse()?)
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.place.path(name)
    }
}

pub fn run(options: &Options) -> Result<()> {
    let place = Place::make()?;
    let shared = place.shared();
    fs::copy("/proc/self/exe", shared.join("worker"))?;
    fs::write(shared.join("halsup.py"), SDK)?;
    fs::write(shared.join("worker.py"), PYTHON)?;
    for (name, mode) in [("worker", 0o755), ("halsup.py", 0o644), ("worker.py", 0o644)] {
        fs::set_permissions(shared.join(name), fs::Permissions::from_mode(mode))?;
    }
    let version = Command::new("python3").arg("--version").output();
    let has_python = version.is_ok_and(|ended| ended.status.success());
    let daemon = Daemon::start(&place, &config(&place, has_python))?;
    let scene = Scene { place: &place, daemon, has_python };
    let mut rows = Rows::new(options.json);
    let done = measure(&scene, options, &mut rows);
    let ended = scene.daemon.stop().map(|_| ());
    done.and(ended)
}

fn measure(scene: &Scene<'_>, options: &Options, rows: &mut Rows) -> Result<()> {
    callers::jobs(scene, options, rows)?;
    callers::pings(scene, options, rows)?;
    payloads::run(scene, options, rows)
}

fn config(place: &Place, has_python: bool) -> String {
    let shared = place.shared();
    let pool = |name: &str, size: usize, program: &str, capacity: usize| {
        format!(
            "[pool.{name}]\nready = 'channel'\nbind = ['{}:{INSIDE}']\nsize = {size}\ncommand = [{program}]\n\
             [pool.{name}.dispatch]\nqueue_timeout = '60s'\ncapacity = {capacity}\n",
            shared.display()
        )
    };
    let own = format!("'{INSIDE}/worker', 'worker'");
    let mut config = "log_level = 'warn'\n".to_owned();
    config += &pool("jobs", WORKERS, &own, 1);
    config += &pool("pings", WORKERS, &own, CALLERS.div_ceil(WORKERS));
    config += &pool("memory", 1, &own, 1);
    if has_python {
        config += &pool("python", WORKERS, &format!("'python3', '-B', '{INSIDE}/worker.py'"), 1);
    }
    config
}

fn request(pool: &str, command: &str, args: Option<Value>) -> Result<ExecuteRequest> {
    let mut request = ExecuteRequest::of(PoolName::parse(pool)?, command.to_owned());
    request.args = args;
    Ok(request)
}

/// Has every worker of a pool answered once, so that it has run all that it will run.
fn warm(scene: &Scene<'_>, pool: &str) -> Result<()> {
    let mut caller = scene.caller()?;
    for number in 0..4 * WORKERS {
        caller.call(request(pool, "ping", Some(json!(number)))?, None)?;
    }
    Ok(())
}
