//! Limits: enforced where the kernel can, named where it cannot, refused where they must be.

use serde_json::Value;

use crate::fixture::Daemon;
use crate::look::{ANSWERS_PINGS, certificates, python, wait_certificate, wait_healthy, wait_line, worker};
use crate::needs::needs;
use crate::place::halsup;

fn stats(daemon: &Daemon, name: &str) -> Value {
    let reply = daemon.cli(&["stats", "--json"]).json();
    let workers = reply["workers"].as_array().cloned().unwrap_or_default();
    workers.into_iter().find(|worker| worker["name"] == name).unwrap_or_else(|| panic!("no {name} in {reply}"))
}

/// What the events say of limits so far.
fn told_of_limits(daemon: &Daemon) -> Vec<String> {
    let events = daemon.cli(&["events", "-n", "1000", "--json"]);
    let events = events.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("an event"));
    let limits = events.filter(|event| event["kind"] == "limit");
    limits.map(|event| event["text"].as_str().expect("a sentence").to_owned()).collect()
}

const HOG: &str = "
import time
print('begin', flush=True)
hog = bytearray()
while True:
    hog += b'x' * (1 << 20)
";

#[test]
fn memory_beyond_its_limit_ends_that_worker_alone_and_says_oom() {
    needs!(Root, CgroupTree, Cgroup2("memory"), Python3);
    let mut daemon = Daemon::start(&format!(
        "[pool.hog]\nrestart = false\nmemory = '64M'\nswap = '0'\ncommand = ['python3', '-c', '''{HOG}''']\n\
         [pool.calm]\ncommand = ['sleep', 'infinity']\n"
    ));
    let certificate = wait_certificate(&mut daemon, "hog.0", 1);
    assert_eq!(certificate["cause"], "oom", "{certificate}");
    let told = told_of_limits(&daemon);
    assert!(told[0].starts_with("hog.0: memory limit reached (67108864 bytes)"), "{told:?}");
    assert!(certificate["oom_kills"].as_u64() >= Some(1), "{certificate}");
    let peak = certificate["memory_peak_bytes"].as_u64().expect("a peak");
    assert!((32 << 20..=65 << 20).contains(&peak), "{peak}");
    assert_eq!(worker(&daemon, "calm.0")["state"], "healthy");
    assert_eq!(certificates(&daemon, "calm.0").len(), 0);
}

#[test]
fn a_fork_bomb_meets_its_limit_and_neighbours_beat_on() {
    needs!(Root, CgroupTree, Cgroup2("pids"), Python3);
    let bomb = "
import os, time
made = 0
while True:
    try:
        if os.fork() == 0:
            time.sleep(1000)
        made += 1
    except OSError as error:
        print('refused after', made, error.errno, flush=True)
        break
time.sleep(1000)
";
    let mut daemon = Daemon::start(&format!(
        "[pool.bomb]\npids = 20\ncommand = ['python3', '-c', '''{bomb}''']\n\
         [pool.calm]\nready = 'channel'\n{}\
         [pool.calm.heartbeat]\nsource = 'channel'\ninterval = '100ms'\ntimeout = '3s'\nmax_missed = 1\n",
        python(ANSWERS_PINGS)
    ));
    let lines = wait_line(&mut daemon, "bomb.0", |line| line.starts_with("refused"));
    assert_eq!(lines.last().map(String::as_str), Some("refused after 18 11"), "init and program are two of the twenty");
    let text = told_of_limits(&daemon).remove(0);
    assert!(text.starts_with("bomb.0: pids limit reached (20), ") && text.contains("`pids`"), "{text}");
    wait_healthy(&mut daemon, 2);
    let counted = stats(&daemon, "bomb.0");
    assert!(counted["pids_limit_hits"].as_u64() >= Some(1), "{counted}");
    assert_eq!((counted["pids"].as_u64(), counted["pids_max"].as_u64()), (Some(20), Some(20)));
    assert_eq!(daemon.cli(&["stop", "bomb"]).status, 0);
    assert_eq!(certificates(&daemon, "calm.0").len(), 0);
}

#[test]
fn a_processor_limit_throttles_to_within_a_tenth() {
    needs!(Root, CgroupTree, Cgroup2("cpu"), Python3);
    // It measures itself: its processor time against the clock, over enough periods that one more or less does not count.
    let spin = "
import time
begin, used = time.monotonic(), time.process_time()
while time.monotonic() - begin < 4:
    pass
print('share', (time.process_time() - used) / (time.monotonic() - begin), flush=True)
time.sleep(1000)
";
    let mut daemon = Daemon::start(&format!("[pool.spin]\ncpus = 0.25\ncommand = ['python3', '-c', '''{spin}''']\n"));
    let lines = wait_line(&mut daemon, "spin.0", |line| line.starts_with("share"));
    let share: f64 =
        lines.iter().find_map(|line| line.strip_prefix("share ")).expect("a share").parse().expect("a number");
    assert!((0.225..=0.275).contains(&share), "{share}");
    assert!(stats(&daemon, "spin.0")["throttled_usec"].as_u64() > Some(0));
}

#[test]
fn limits_are_on_the_kernels_files() {
    needs!(Root, CgroupTree, Cgroup2("memory"), Cgroup2("pids"), Cgroup2("cpu"), Cgroup2("cpuset"));
    let mut daemon = Daemon::start(
        "[pool.web]\nmemory = '100M'\nmemory_high = '80M'\nswap = '1M'\ncpus = 1.5\ncpu_weight = 50\npids = 33\ncpuset = '0'\ncommand = ['sleep', 'infinity']\n",
    );
    let web = wait_healthy(&mut daemon, 1).remove(0);
    assert_eq!(web["limits_enforced"], true, "{web}");
    let generation = &web["generation"];
    let cgroup = daemon.cgroup().expect("a cgroup").join(format!("pool.web/w-0-{generation}"));
    for (file, value) in [
        ("memory.max", "104857600"),
        ("memory.high", "83886080"),
        ("memory.swap.max", "1048576"),
        ("memory.oom.group", "1"),
        ("cpu.max", "150000 100000"),
        ("cpu.weight", "50"),
        ("pids.max", "33"),
        ("cpuset.cpus", "0"),
    ] {
        let text = std::fs::read_to_string(cgroup.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!(text.trim(), value, "{file}");
    }
}

#[test]
fn a_default_that_cannot_be_enforced_is_told_and_a_limit_that_was_asked_for_is_refused() {
    needs!(Root, CgroupTree, Lacks("memory"));
    let mut daemon = Daemon::start(
        "[pool.plain]\ncommand = ['sleep', 'infinity']\n[pool.strict]\nrestart = false\nmemory = '64M'\ncommand = ['sleep', 'infinity']\n",
    );
    let certificate = wait_certificate(&mut daemon, "strict.0", 1);
    assert_eq!(certificate["cause"], "start-failed");
    let text = certificate["start_failure"]["text"].as_str().expect("a sentence");
    assert!(text.contains("memory"), "{text}");
    let plain = wait_healthy(&mut daemon, 1).remove(0);
    assert_eq!((plain["name"].as_str(), &plain["limits_enforced"]), (Some("plain.0"), &false.into()));
    assert!(plain["limits_reason"].as_str().is_some_and(|reason| reason.contains("memory")), "{plain}");
}

#[test]
fn require_makes_every_miss_an_error() {
    needs!(Root, CgroupTree, Lacks("memory"));
    let mut daemon =
        Daemon::start("limits = 'require'\n[pool.web]\nrestart = false\ncommand = ['sleep', 'infinity']\n");
    let certificate = wait_certificate(&mut daemon, "web.0", 1);
    let text = certificate["start_failure"]["text"].as_str().expect("a sentence");
    assert!(text.contains("memory"), "{text}");
}

#[test]
fn nonsense_limits_are_refused_before_anything_runs() {
    let dir = tempfile::tempdir().expect("make a directory");
    for (limit, words) in [
        ("memory = '4q'", "memory"),
        ("memory = '-1'", "memory"),
        ("memory = '99999999999999999999g'", "memory"),
        ("pids = 0", "pids"),
        ("cpus = 0", "cpus"),
        ("cpuset = '3-1'", "cpuset"),
    ] {
        let path = dir.path().join("config.toml");
        std::fs::write(&path, format!("[pool.web]\ncommand = ['true']\n{limit}\n")).expect("write");
        let output = halsup(&["check", path.to_str().expect("ASCII")]);
        assert_eq!(output.status, 2, "{limit}: {output:?}");
        assert!(output.stderr.contains(words) && output.stderr.lines().count() == 1, "{limit}: {output:?}");
    }
}

/// The first process of a worker shares the daemon's memory until it executes, and the kernel's killer takes everybody who
/// shares a victim's memory.
#[test]
fn a_limit_that_is_too_small_to_start_in_does_not_take_the_daemon_along() {
    needs!(Root, CgroupTree, Cgroup2("memory"));
    let mut daemon = Daemon::start(
        "[pool.tiny]\nsize = 20\nmemory = '1M'\nswap = '0'\ncommand = ['sh', '-c', 'exec sleep infinity']\n[pool.tiny.restart]\ndelay = '1ms'\ndelay_max = '10ms'\nmax_restarts = 10\n\
         [pool.calm]\ncommand = ['sleep', 'infinity']\n",
    );
    daemon.wait_until("every tiny worker has settled", |daemon| {
        let tiny = crate::look::workers(daemon).into_iter().filter(|worker| worker["pool"] == "tiny");
        Some(()).filter(|()| tiny.clone().all(|worker| worker["state"] == "healthy" || worker["state"] == "crashed"))
    });
    assert_eq!(worker(&daemon, "calm.0")["state"], "healthy");
    assert_eq!(daemon.stop(), 0);
}
