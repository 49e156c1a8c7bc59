//! Claims of warm workers, beside cold spawns of the same daemon and `docker exec`: request → first instruction of the program.
//!
//! Rows are interleaved as those of `spawning`. Each claim brings all that a claim is measured with (DESIGN.md section 9): a
//! project directory whose owner is mapped, three variables, a secret, a memory limit.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use halsup::host::mountinfo;
use halsup::protocol::control::{ClaimRequest, Request, Target, TargetRequest};
use halsup::spec::PoolName;

use crate::daemon::Daemon;
use crate::hops::{Chain, Mounts, Way};
use crate::place::{INSIDE, Place, now, wait_until};
use crate::report::{Samples, at_most, head, quantile_at_most, row};
use crate::{Options, Result};

/// Time for the pool to replace what was claimed, between two samples.
const PACE_NS: u64 = 30_000_000;
/// The floors: ways of a word through bare processes (`hops`).
const WAYS: [(&str, Way); 9] = [
    ("floor: client → daemon → init, which clones and executes", WAY),
    ("    the same, no pid namespace", Way { namespace: false, ..WAY }),
    ("    the same, all on one processor", Way { processors: Some([0, 0, 0]), ..WAY }),
    ("    the same, each on the other processor", Way { processors: Some([0, 1, 0]), ..WAY }),
    ("    the same, program cloned before", Way { cloned: true, ..WAY }),
    ("    the same, cloned before, all on one processor", Way { cloned: true, processors: Some([0, 0, 0]), ..WAY }),
    ("    the same, a directory mounted by a child that enters", Way { mounts: Mounts::Child, ..WAY }),
    ("    the same, a directory mounted by the daemon itself", Way { mounts: Mounts::Daemon, ..WAY }),
    ("    the same, cloned before", Way { mounts: Mounts::Daemon, cloned: true, ..WAY }),
];
const WAY: Way = Way { namespace: true, cloned: false, mounts: Mounts::Nobody, processors: None };
/// Somebody who is neither root nor any worker, so that ids have to be mapped.
const OWNER: u32 = 4711;

pub fn run(options: &Options) -> Result<()> {
    let place = Place::make()?;
    let project = place.path("project");
    std::fs::create_dir(&project)?;
    chown(&project, Some(OWNER), Some(OWNER))?;
    let mut daemon = Daemon::start(&place, &config(&place))?;
    let docker = Docker::find(&place)?;
    let done = measure(&place, &mut daemon, docker.as_ref(), options);
    // Whatever happened, nothing is left; but what went wrong first is what is told.
    let ended = docker.map_or(Ok(()), Docker::end).and(daemon.stop().map(|_| ()));
    done.and(ended)
}

fn config(place: &Place) -> String {
    let bind = format!("bind = ['{}:{INSIDE}']\n", place.shared().display());
    let projects = place.path("").display().to_string();
    let projects = projects.trim_end_matches('/');
    format!(
        "log_level = 'warn'\n\
         [pool.one]\ncommand = ['{INSIDE}/first', '{INSIDE}/fifo', 'stay']\nsize = 1\n{bind}\
         [pool.warm]\n{bind}[pool.warm.claims]\nmin = 4\nmax = 8\nprojects = ['{projects}']\n"
    )
}

fn measure(place: &Place, daemon: &mut Daemon, docker: Option<&Docker>, options: &Options) -> Result<()> {
    place.stamp()?;
    let one = || Ok::<_, halsup::spec::NameError>(TargetRequest { target: Target::Pool(PoolName::parse("one")?) });
    daemon.call(&Request::Stop(one()?))?;
    let limits_memory = has_memory_controller()?;
    let (whole, plain) = (claim(&place.path("project"), limits_memory)?, bare()?);
    let mut chains = WAYS.iter().map(|(_, way)| Chain::start(*way, place)).collect::<Result<Vec<_>>>()?;
    let mut floors = [const { Samples::none() }; WAYS.len()];
    let mut rows = [const { Samples::none() }; 5];
    let [claimed, answered, plainly, cold, beside] = &mut rows;
    for _ in 0..options.runs {
        for (chain, samples) in chains.iter_mut().zip(&mut floors) {
            pace();
            samples.add(chain.claim(place)?);
        }
        for (request, samples) in [(&whole, &mut *claimed), (&plain, &mut *plainly)] {
            pace();
            let asked = now();
            daemon.ask(request)?;
            samples.add(place.stamp()? - asked);
            let answer = daemon.answer()?;
            if std::ptr::eq(request, &raw const whole) {
                answered.add(now() - asked);
            }
            if answer.get("warm").and_then(serde_json::Value::as_bool) != Some(true) {
                return Err(format!("that was no warm worker: {answer:?}").into());
            }
        }
        pace();
        let asked = now();
        daemon.ask(&Request::Start(one()?))?;
        cold.add(place.stamp()? - asked);
        daemon.answer()?;
        daemon.call(&Request::Stop(one()?))?;
        if let Some(docker) = docker {
            pace();
            beside.add(docker.exec(place)?);
        }
    }
    head(&format!("paced, one every 30 ms, {} of each", options.runs));
    for ((name, _), samples) in WAYS.iter().zip(&floors) {
        row(name, samples, &[]);
    }
    let targets = [at_most(claimed, 250.0), quantile_at_most(claimed, 99, 1000.0)];
    row("warm claim: project, 3 variables, secret, memory", claimed, &targets);
    if !limits_memory {
        println!("    without the limit: the memory controller is not in this machine's version 2 hierarchy");
    }
    row("    the same: request → answer", answered, &[]);
    row("warm claim that brings nothing", plainly, &[]);
    row("cold spawn, the same daemon", cold, &[]);
    match docker {
        Some(_) => row("docker exec", beside, &[]),
        None => println!("docker exec: left out, no Docker engine answers"),
    }
    Ok(())
}

/// Where it is missing, a claim with a limit is refused.
fn has_memory_controller() -> Result<bool> {
    let mounts = mountinfo::read()?;
    let unified = mounts.iter().find(|mount| mount.fs_type == "cgroup2").ok_or("no cgroup v2 is mounted")?;
    let controllers = std::fs::read_to_string(unified.mount_point.join("cgroup.controllers"))?;
    Ok(controllers.split_whitespace().any(|name| name == "memory"))
}

fn pace() {
    wait_until(now() + PACE_NS);
}

fn claim(project: &Path, limits_memory: bool) -> Result<Request> {
    let list = |items: &[&str]| Some(items.iter().map(|&item| item.to_owned()).collect());
    Ok(Request::Claim(Box::new(ClaimRequest {
        project: Some(project.display().to_string()),
        env: list(&["ONE=1", "TWO=22", "THREE=333"]),
        secrets: list(&["key=of-nobody-else"]),
        memory_bytes: limits_memory.then_some(1 << 30),
        ..of_program()?
    })))
}

fn bare() -> Result<Request> {
    Ok(Request::Claim(Box::new(of_program()?)))
}

fn of_program() -> Result<ClaimRequest> {
    let command = Some(vec![format!("{INSIDE}/first"), format!("{INSIDE}/fifo")]);
    Ok(ClaimRequest { command, warm_only: Some(true), ..ClaimRequest::of(PoolName::parse("warm")?) })
}

/// A container of an engine that answers, to execute programs in.
struct Docker {
    image: String,
    container: String,
}

impl Docker {
    /// `None` where there is no engine.
    fn find(place: &Place) -> Result<Option<Self>> {
        let version = Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]).output();
        if !version.is_ok_and(|answer| answer.status.success()) {
            return Ok(None);
        }
        let root = place.path("docker-root");
        std::fs::create_dir_all(root.join("bench"))?;
        let archive: PathBuf = place.path("docker-root.tar");
        let packed = Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&root).arg(".").status()?;
        if !packed.success() {
            return Err("tar failed".into());
        }
        let image = output(Command::new("docker").arg("import").arg(&archive))?;
        let volume = format!("{}:/bench", place.shared().display());
        let run = ["run", "--detach", "--volume", &volume, &image, "/bench/first", "/bench/fifo", "stay"];
        let container = output(Command::new("docker").args(run))?;
        place.stamp()?;
        Ok(Some(Self { image, container }))
    }

    /// Nanoseconds from the start of its command line to the program's first instruction.
    fn exec(&self, place: &Place) -> Result<u64> {
        let mut command = Command::new("docker");
        command.args(["exec", &self.container, "/bench/first", "/bench/fifo"]);
        let asked = now();
        let mut child = command.stdout(Stdio::null()).spawn()?;
        let taken = place.stamp()? - asked;
        if child.wait()?.success() { Ok(taken) } else { Err("docker exec failed".into()) }
    }

    fn end(self) -> Result<()> {
        output(Command::new("docker").args(["rm", "--force", &self.container]))?;
        output(Command::new("docker").args(["rmi", &self.image]))?;
        Ok(())
    }
}

fn output(command: &mut Command) -> Result<String> {
    let ended = command.output()?;
    if !ended.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&ended.stderr)).into());
    }
    Ok(String::from_utf8(ended.stdout)?.trim().to_owned())
}
