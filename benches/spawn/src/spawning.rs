//! The comparison of spawning: floors, halsup as a library, halsup as a daemon, peers; paced and sustained.
//!
//! Paced rows are interleaved: each round takes one sample of every row, so that whatever else the machine does meets all.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;

use halsup::host::mounts::{TemplateSpec, build_template};
use halsup::host::seccomp::Filter;
use halsup::protocol::control::{Request, ScaleRequest, Target, TargetRequest};
use halsup::spec::PoolName;
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::daemon::Daemon;
use crate::floor::{Floor, LAPS, Work};
use crate::library::{Library, STEPS};
use crate::peers::{Peer, View};
use crate::place::{INSIDE, Place, now, wait_until};
use crate::report::{Samples, Verdict, at_most, head, row};
use crate::{Options, Result};

/// One spawn every 20 ms: the honest picture for a supervisor.
const PACE_NS: u64 = 20_000_000;
/// Spawns of a sustained row that are under way at once.
const UNDER_WAY: usize = 16;

/// All that is measured.
struct Bench {
    place: Place,
    floors: [(&'static str, Floor); 3],
    library: Library,
    daemon: Option<Daemon>,
    peers: Vec<Peer>,
    missing: Vec<&'static str>,
}

/// Samples of every paced row.
#[derive(Default)]
struct Paced {
    floors: [Samples; 3],
    laps: [Samples; LAPS.len()],
    library: Samples,
    blocked: Samples,
    steps: [Samples; STEPS.len()],
    control: Samples,
    cli: Samples,
    peers: Vec<Samples>,
}

pub fn run(options: &Options) -> Result<()> {
    let mut bench = Bench::prepare()?;
    let _held = hold(options.descriptors)?;
    let done = bench.measure(options);
    // Whatever happened, nothing is left; but what went wrong first is what is told.
    let ended = bench.end();
    done.and(ended)
}

impl Bench {
    fn prepare() -> Result<Self> {
        let place = Place::make()?;
        let template = Rc::new(build_template(&TemplateSpec {
            base: halsup::host::mounts::Base::Host,
            binds: vec![(place.shared(), PathBuf::from(INSIDE), false)],
            hidden: vec![PathBuf::from("/var/lib/halsup"), PathBuf::from("/etc/halsup")],
            places: Vec::new(),
        })?);
        let library = Library::prepare(&place, Rc::clone(&template))?;
        let filter = Filter::allow_list()?;
        let floor = |work| Floor::new(work, &place, &template, library.base().join("floor"), filter.program());
        let floors = [
            ("floor: CLONE_VM and exec, no isolation", floor(Work::Plain)?),
            ("floor: namespaces, cgroup, own root, /proc", floor(Work::Isolated)?),
            ("floor: all that a worker of halsup has, no init program", floor(Work::Same)?),
        ];
        let view = Rc::new(View::make()?);
        let (mut peers, mut missing) = (Vec::new(), Vec::new());
        for name in ["bwrap", "crun", "runc"] {
            match Peer::find(name, &place, &view)? {
                Some(peer) => peers.push(peer),
                None => missing.push(name),
            }
        }
        let program = |stay: &str| format!("['{INSIDE}/first', '{INSIDE}/fifo'{stay}]");
        let bind = format!("bind = ['{}:{INSIDE}']\n", place.shared().display());
        let config = format!(
            "log_level = 'warn'\n[pool.one]\ncommand = {}\nsize = 1\n{bind}\
             [pool.many]\ncommand = {}\nmin = 0\nmax = 9000\nstartup_batch_size = 10000\n{bind}",
            program(", 'stay'"),
            program(", 'stay'")
        );
        let daemon = match Daemon::start(&place, &config) {
            Ok(mut daemon) => {
                place.stamp()?;
                daemon.call(&Request::Stop(target()?))?;
                Some(daemon)
            }
            Err(error) => {
                eprintln!("no daemon: {error}");
                None
            }
        };
        Ok(Self { place, floors, library, daemon, peers, missing })
    }

    fn measure(&mut self, options: &Options) -> Result<()> {
        let mut paced = Paced { peers: vec![Samples::default(); self.peers.len()], ..Paced::default() };
        for round in 0..options.runs {
            self.round(&mut paced).map_err(|error| format!("round {round}: {error}"))?;
        }
        self.show_paced(&paced, options);
        self.sustained(options.runs)
    }

    fn round(&mut self, paced: &mut Paced) -> Result<()> {
        let mut next = now();
        let mut pace = || {
            next = (next + PACE_NS).max(now());
            wait_until(next);
        };
        for ((_, floor), samples) in self.floors.iter_mut().zip(&mut paced.floors) {
            pace();
            samples.add(floor.spawn(&self.place)?);
        }
        for (samples, taken) in paced.laps.iter_mut().zip(self.floors[2].1.taken) {
            samples.add(taken);
        }
        pace();
        let worker = self.library.spawn()?;
        paced.library.add(self.place.stamp()? - worker.asked);
        paced.blocked.add(worker.free - worker.asked);
        for (samples, taken) in paced.steps.iter_mut().zip(worker.steps) {
            samples.add(taken);
        }
        self.library.finish(worker)?;
        if let Some(daemon) = &mut self.daemon {
            pace();
            let start = Request::Start(target()?);
            let asked = now();
            daemon.ask(&start)?;
            paced.control.add(self.place.stamp()? - asked);
            daemon.answer()?;
            daemon.call(&Request::Stop(target()?))?;
            pace();
            let mut command = daemon.cli(&["start", "one"]);
            let asked = now();
            let mut child = command.spawn()?;
            paced.cli.add(self.place.stamp()? - asked);
            if !child.wait()?.success() {
                return Err("halsup start failed".into());
            }
            daemon.call(&Request::Stop(target()?))?;
        }
        for (peer, samples) in self.peers.iter_mut().zip(&mut paced.peers) {
            pace();
            samples.add(peer.spawn(&self.place)?);
        }
        Ok(())
    }

    fn peer<'p>(&self, paced: &'p Paced, name: &str) -> Option<&'p Samples> {
        self.peers.iter().position(|peer| peer.name == name).and_then(|at| paced.peers.get(at))
    }

    fn show_paced(&self, paced: &Paced, options: &Options) {
        head(&format!("paced, one every 20 ms, {} of each", options.runs));
        for ((name, _), samples) in self.floors.iter().zip(&paced.floors) {
            row(name, samples, &[]);
        }
        if options.steps {
            for (name, samples) in LAPS.iter().zip(&paced.laps) {
                row(&format!("    of that: {name}"), samples, &[]);
            }
        }
        let same = paced.floors[2].median();
        row(
            "halsup, library: request → first instruction",
            &paced.library,
            &[times(&paced.library, same, 1.5, "same floor")],
        );
        row("halsup, library: caller blocked", &paced.blocked, &[at_most(&paced.blocked, 100.0)]);
        if options.steps {
            for (name, samples) in STEPS.iter().zip(&paced.steps) {
                row(&format!("    of that: {name}"), samples, &[]);
            }
        }
        let crun = self.peer(paced, "crun").and_then(Samples::median);
        let control = [
            at_most(&paced.control, 400.0),
            times(&paced.control, same, 1.5, "same floor"),
            faster(&paced.control, crun, 10.0, "crun"),
        ];
        row("halsup, daemon: control request → first instruction", &paced.control, &control);
        let bwrap = self.peer(paced, "bwrap").and_then(Samples::median);
        row(
            "halsup, command line: its start → first instruction",
            &paced.cli,
            &[faster(&paced.cli, bwrap, 1.0, "bwrap")],
        );
        for (peer, samples) in self.peers.iter().zip(&paced.peers) {
            row(peer.name, samples, &[]);
        }
        for missing in &self.missing {
            let package = if *missing == "bwrap" { "bubblewrap" } else { missing };
            println!("{missing}: not installed: apt-get install {package}");
        }
    }

    /// Spawns per second.
    fn sustained(&mut self, runs: u32) -> Result<()> {
        println!("\n{:<58} {:>8}", "sustained", "per s");
        let show = |name: &str, count: u32, since: u64, target: Option<f64>| {
            let rate = f64::from(count) * 1e9 / (now() - since) as f64;
            let verdict = target.map(|least| Verdict { target: format!("≥ {least}"), met: Some(rate >= least) });
            println!("{name:<58} {rate:>8.0}  {}", verdict.map(|v| v.to_string()).unwrap_or_default());
        };
        for (name, floor) in &mut self.floors {
            let since = now();
            for _ in 0..runs {
                floor.spawn(&self.place)?;
            }
            show(&format!("{name}, one at a time"), runs, since, None);
        }
        let many = runs * 10;
        let since = now();
        let mut under_way = VecDeque::new();
        for _ in 0..many {
            under_way.push_back(self.library.spawn()?);
            if under_way.len() == UNDER_WAY {
                self.finish_first(&mut under_way)?;
            }
        }
        while !under_way.is_empty() {
            self.finish_first(&mut under_way)?;
        }
        show("halsup, library: spawn, run, reap, remove", many, since, Some(3000.0));
        if let Some(daemon) = &mut self.daemon {
            let count = many.min(1000);
            let scale = |count| {
                Ok::<_, Box<dyn std::error::Error>>(Request::Scale(ScaleRequest {
                    pool: PoolName::parse("many")?,
                    count,
                }))
            };
            let since = now();
            daemon.ask(&scale(count)?)?;
            for _ in 0..count {
                self.place.stamp()?;
            }
            show("halsup, daemon: first instructions of one scale", count, since, Some(3000.0));
            daemon.answer()?;
            daemon.call(&scale(0)?)?;
        }
        for peer in &mut self.peers {
            let few = (runs / 5).max(5);
            let since = now();
            for _ in 0..few {
                peer.spawn(&self.place)?;
            }
            show(peer.name, few, since, None);
        }
        Ok(())
    }

    fn finish_first(&mut self, under_way: &mut VecDeque<crate::library::Worker>) -> Result<()> {
        if let Some(first) = under_way.pop_front() {
            self.place.stamp()?;
            self.library.finish(first)?;
        }
        Ok(())
    }

    fn end(self) -> Result<()> {
        if let Some(daemon) = self.daemon {
            daemon.stop()?;
        }
        self.library.end()
    }
}

/// Opens so many descriptors.
fn hold(count: u32) -> Result<Vec<OwnedFd>> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    let null = || open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    Ok((0..count).map(|_| null()).collect::<std::result::Result<_, _>>()?)
}

fn target() -> Result<TargetRequest> {
    Ok(TargetRequest { target: Target::Pool(PoolName::parse("one")?) })
}

fn times(samples: &Samples, other: Option<f64>, factor: f64, what: &str) -> Verdict {
    let ratio = samples.median().zip(other).map(|(own, other)| own / other);
    let found = ratio.map(|ratio| format!(" (is {ratio:.2})")).unwrap_or_default();
    Verdict { target: format!("≤ {factor} × {what}{found}"), met: ratio.map(|ratio| ratio <= factor) }
}

fn faster(samples: &Samples, other: Option<f64>, factor: f64, what: &str) -> Verdict {
    let ratio = samples.median().zip(other).map(|(own, other)| other / own);
    let found = ratio.map(|ratio| format!(" (is {ratio:.1})")).unwrap_or_default();
    Verdict { target: format!("≥ {factor} × faster than {what}{found}"), met: ratio.map(|ratio| ratio >= factor) }
}
