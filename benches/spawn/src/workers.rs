//! A daemon with a thousand workers: how long they take, what they cost while nothing happens, and what is left of them.

use std::fs;
use std::path::{Path, PathBuf};

use halsup::host::mountinfo;
use halsup::protocol::control::{ListRequest, Request, ScaleRequest};
use halsup::spec::PoolName;

use crate::daemon::Daemon;
use crate::place::{Place, now, wait_until};
use crate::{Options, Result};

/// How long an idle daemon is watched.
const IDLE_NS: u64 = 5_000_000_000;
/// How long it is left alone before that: the limit for a connection's first message runs out once, 5 s after it was made.
const SETTLING_NS: u64 = 6_000_000_000;
/// Listings that the median is taken of.
const LISTINGS: usize = 21;

/// What is known of the daemon's process at one moment.
struct Moment {
    rss_kib: u64,
    wakeups: u64,
    cpu_ticks: u64,
    descriptors: usize,
}

pub fn run(options: &Options) -> Result<()> {
    let count = options.count;
    let place = Place::make()?;
    let config = format!(
        "log_level = 'warn'\n[pool.many]\ncommand = ['sleep', 'infinity']\nmin = 0\nmax = {count}\n\
         startup_batch_size = {count}\nmemory = 'max'\n"
    );
    let mut daemon = Daemon::start(&place, &config)?;
    let measured = measure(&mut daemon, count);
    let instance = daemon.instance.clone();
    let run = daemon.run.clone();
    let stopping = now();
    let code = daemon.stop()?;
    show("daemon: SIGTERM → gone", millis(stopping), "ms", None);
    let left = leftovers(&place, &run, &instance)?;
    show("left after it (processes, cgroups, mounts, directories)", left.len() as f64, "", Some((0.0, "= 0")));
    for one in left {
        println!("    {one}");
    }
    if code != Some(0) {
        return Err(format!("the daemon ended with {code:?}").into());
    }
    measured
}

fn measure(daemon: &mut Daemon, count: u32) -> Result<()> {
    let scale = |count| {
        Ok::<_, halsup::spec::NameError>(Request::Scale(ScaleRequest { pool: PoolName::parse("many")?, count }))
    };
    // Once up and down, so that what is kept for later is not counted as what a worker costs.
    daemon.call(&scale(1)?)?;
    daemon.call(&scale(0)?)?;
    let before = Moment::of(daemon)?;
    println!("{count} workers, `sleep infinity`\n{:<62} {:>10}", "", "measured");
    show("RSS of the daemon without workers", before.rss_kib as f64, "KiB", Some((8192.0, "≤ 8,192 KiB")));
    let asked = now();
    let answer = daemon.call(&scale(count)?)?;
    if answer.get("achieved").and_then(serde_json::Value::as_u64) != Some(u64::from(count)) {
        return Err(format!("not all came up: {answer:?}").into());
    }
    let up = millis(asked);
    show("scale 0 → all healthy", up, "ms", None);
    show("    per worker", up * 1000.0 / f64::from(count), "µs", None);
    listings(daemon, count)?;
    let full = Moment::of(daemon)?;
    let each = full.rss_kib.saturating_sub(before.rss_kib) as f64 / f64::from(count);
    show("RSS of the daemon with all", full.rss_kib as f64, "KiB", None);
    show("    per worker", each, "KiB", Some((4.0, "≤ 4 KiB")));
    let descriptors = (full.descriptors - before.descriptors) as f64 / f64::from(count);
    show("descriptors of the daemon per worker", descriptors, "", None);
    inits(daemon)?;
    // The end of the last client's connection is heard after that client has gone.
    wait_until(now() + SETTLING_NS);
    let calm = Moment::of(daemon)?;
    wait_until(now() + IDLE_NS);
    let after = Moment::of(daemon)?;
    show("wake-ups of the idle daemon in 5 s", (after.wakeups - calm.wakeups) as f64, "", Some((0.0, "= 0")));
    show("CPU of the idle daemon in 5 s", (after.cpu_ticks - calm.cpu_ticks) as f64, "ticks", Some((0.0, "= 0")));
    let asked = now();
    daemon.call(&scale(0)?)?;
    show("scale all → 0 (SIGTERM, emptied, removed)", millis(asked), "ms", None);
    // What is removed piece by piece may still be going on for some turns.
    let deadline = now() + IDLE_NS;
    while Moment::of(daemon)?.descriptors != before.descriptors && now() < deadline {
        wait_until(now() + 10_000_000);
    }
    let empty = Moment::of(daemon)?;
    show(
        "descriptors too many afterwards",
        empty.descriptors.abs_diff(before.descriptors) as f64,
        "",
        Some((0.0, "= 0")),
    );
    show("RSS of the daemon afterwards", empty.rss_kib as f64, "KiB", None);
    Ok(())
}

fn listings(daemon: &mut Daemon, count: u32) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..LISTINGS {
        let asked = now();
        let answer = daemon.call(&Request::List(ListRequest::default()))?;
        times.push(millis(asked));
        let listed = answer.get("workers").and_then(serde_json::Value::as_array).map_or(0, Vec::len);
        if listed != usize::try_from(count)? {
            return Err(format!("{listed} workers are listed").into());
        }
    }
    times.sort_by(f64::total_cmp);
    show("list all, median", times[LISTINGS / 2], "ms", None);
    let asked = now();
    let status = daemon.cli(&["ps"]).status()?;
    show("halsup ps", millis(asked), "ms", None);
    if status.success() { Ok(()) } else { Err("halsup ps failed".into()) }
}

/// What an init costs, as the median over the daemon's children.
fn inits(daemon: &Daemon) -> Result<()> {
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", daemon.pid()))?;
    let mut pss = Vec::new();
    for pid in children.split_whitespace() {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        pss.extend(number_after(&rollup, "Pss:"));
    }
    pss.sort_unstable();
    let median = *pss.get(pss.len() / 2).ok_or("the daemon has no children")?;
    show("PSS of an init, median", median as f64, "KiB", Some((150.0, "≤ 150 KiB")));
    Ok(())
}

impl Moment {
    fn of(daemon: &Daemon) -> Result<Self> {
        let proc = PathBuf::from(format!("/proc/{}", daemon.pid()));
        let status = fs::read_to_string(proc.join("status"))?;
        let number = |key| number_after(&status, key).ok_or(format!("/proc has no {key}"));
        let stat = fs::read_to_string(proc.join("stat"))?;
        // utime and stime are fields 14 and 15; the name before them may have blanks, its closing bracket is field 2's end.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
        Ok(Self {
            rss_kib: number("VmRSS:")?,
            wakeups: number("voluntary_ctxt_switches:")?,
            cpu_ticks: fields.filter_map(|field| field.parse::<u64>().ok()).sum(),
            descriptors: fs::read_dir(proc.join("fd"))?.count(),
        })
    }
}

fn number_after(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
}

fn millis(since: u64) -> f64 {
    (now() - since) as f64 / 1e6
}

fn show(name: &str, value: f64, unit: &str, target: Option<(f64, &str)>) {
    let verdict = target.map(|(most, text)| format!("{text}: {}", if value <= most { "PASS" } else { "MISS" }));
    let digits = if value.fract() == 0.0 { 0 } else { 1 };
    println!("{name:<62} {value:>10.digits$} {unit:<5}  {}", verdict.unwrap_or_default());
}

/// Whatever of the daemon is still there.
fn leftovers(place: &Place, run: &Path, instance: &str) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let mounts = mountinfo::read()?;
    for mount in mounts.iter().filter(|mount| mount.mount_point.starts_with(place.path(""))) {
        left.push(format!("mount on {}", mount.mount_point.display()));
    }
    if let Some(cgroups) = mounts.iter().find(|mount| mount.fs_type == "cgroup2") {
        let base = cgroups.mount_point.join("halsup").join(instance);
        if base.exists() {
            left.push(format!("cgroup {}", base.display()));
        }
    }
    for kind in ["work", "notify"] {
        for entry in fs::read_dir(run.join(kind)).into_iter().flatten() {
            left.push(format!("directory {}", entry?.path().display()));
        }
    }
    let mark = format!("HALSUP_INSTANCE={instance}");
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let environment = fs::read(path.join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
            left.push(format!("process {}", path.display()));
        }
    }
    Ok(left)
}
