//! The image that `container/build` makes, under a real Docker daemon: what an operator sees through the `docker` command.
//!
//! `HALSUP_TEST_IMAGE` names the archive. The image has no programs; busybox is mounted into it, and for what needs Python
//! the whole machine at `/host`.

#![expect(clippy::disallowed_types, reason = "runs the docker command line")]
#![expect(clippy::disallowed_methods, reason = "deadlines of tests run on the real clock")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::checker::files::entries;
use crate::fixture::complain;
use crate::leftovers::find_dir;
use crate::needs::{cgroup_mount, needs, test_image};
use crate::place::{Output, directory, run};

/// How long a test waits for something in a container of an emulated guest.
const DEADLINE: Duration = Duration::from_secs(120);
const HEAD: &str = "[daemon]\nshutdown_timeout = '8s'\n";
const CALM: &str = "[pool.calm]\nsize = 3\ncommand = ['/bin/busybox', 'sleep', '1000000']\nmemory = '32m'\n";

static CONTAINERS: AtomicU32 = AtomicU32::new(0);

fn docker(arguments: &[&str]) -> Output {
    run(Command::new("docker").args(arguments))
}

/// The image, loaded once for all tests.
fn image() -> &'static str {
    static LOADED: OnceLock<String> = OnceLock::new();
    LOADED.get_or_init(|| {
        let archive = test_image().expect("needs!(Docker) asks for it");
        let loaded = docker(&["load", "--quiet", "--input", &archive]);
        assert_eq!(loaded.status, 0, "{loaded:?}");
        let name = loaded.stdout.trim().strip_prefix("Loaded image: ").unwrap_or_else(|| panic!("{loaded:?}"));
        name.to_owned()
    })
}

/// A container of the image that is removed with its value, and proved to have left no cgroup.
struct Container {
    name: String,
    _config: tempfile::TempDir,
}

impl Container {
    /// Starts one with these options of `docker run` and this configuration.
    #[track_caller]
    fn start(options: &[&str], config: &str) -> Self {
        let (container, started) = Self::run(&["--detach"], options, config, &[]);
        assert_eq!(started.status, 0, "{started:?}");
        container
    }

    fn run(how: &[&str], options: &[&str], config: &str, command: &[&str]) -> (Self, Output) {
        let name = format!("t{}-{}", std::process::id(), CONTAINERS.fetch_add(1, Ordering::Relaxed));
        let dir = directory();
        let file = dir.path().join("halsup.toml");
        fs::write(&file, format!("{HEAD}{config}")).expect("write the configuration");
        let mounted = format!("{}:/etc/halsup/halsup.toml:ro", file.display());
        let mut run_it = Command::new("docker");
        run_it.args(["run", "--network=none", "--name", &name]).args(how).args(options);
        run_it.args(["--volume", &mounted, "--volume", "/bin/busybox:/bin/busybox:ro", image()]).args(command);
        (Self { name, _config: dir }, run(&mut run_it))
    }

    /// Runs a command in the container.
    fn exec(&self, command: &[&str]) -> Output {
        let mut exec = Command::new("docker");
        run(exec.args(["exec", &self.name]).args(command))
    }

    /// Runs one of busybox's programs in the container.
    fn busybox(&self, command: &[&str]) -> Output {
        self.exec(&[&["/bin/busybox"], command].concat())
    }

    fn halsup(&self, arguments: &[&str]) -> Output {
        self.exec(&[&["halsup"], arguments].concat())
    }

    fn inspect(&self, format: &str) -> String {
        let seen = docker(&["inspect", "--format", format, &self.name]);
        assert_eq!(seen.status, 0, "{seen:?}");
        seen.stdout.trim().to_owned()
    }

    fn logs(&self) -> String {
        let output = docker(&["logs", &self.name]);
        output.stdout + &output.stderr
    }

    /// Asks again and again until there is an answer; each question is a process in the guest, so nothing spins.
    #[track_caller]
    fn wait_until<T>(&self, what: &str, reached: impl Fn() -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(value) = reached() {
                return value;
            }
            assert!(Instant::now() < deadline, "{what}: not after {DEADLINE:?}\n{}", self.logs());
        }
    }

    #[track_caller]
    fn wait_ready(&self) {
        self.wait_until("it is ready", || Some(()).filter(|()| self.halsup(&["status", "--ready"]).status == 0));
    }

    #[track_caller]
    fn assert_enforced(&self) {
        let status = self.halsup(&["status", "--json"]).json();
        assert_eq!(status["limits_enforced"], true, "{status}");
    }

    /// The cgroups of the calm workers, on the machine that Docker runs on.
    #[track_caller]
    fn workers(&self) -> Vec<PathBuf> {
        let pool = find_dir(&self.cgroup(), "pool.calm").expect("the pool is in the container's cgroup");
        entries(&pool).into_iter().filter(|path| path.is_dir()).collect()
    }

    #[track_caller]
    fn certificates(&self, worker: &str) -> Vec<Value> {
        let inspected = self.halsup(&["inspect", worker, "--json"]).json();
        inspected["workers"][0]["certificates"].as_array().cloned().unwrap_or_default()
    }

    /// The container's cgroup on the machine that Docker runs on.
    #[track_caller]
    fn cgroup(&self) -> PathBuf {
        let id = self.inspect("{{.Id}}");
        let mount = cgroup_mount().expect("Docker needs it too");
        // By the systemd driver it is called `docker-ID.scope`.
        find_dir(&mount, &id).or_else(|| find_dir(&mount, &format!("docker-{id}.scope"))).expect("it runs")
    }

    /// Stops it and says with which exit code it ended.
    #[track_caller]
    fn stop(&self) -> i32 {
        let stopped = docker(&["stop", &self.name]);
        assert_eq!(stopped.status, 0, "{stopped:?}");
        self.exit_code()
    }

    fn exit_code(&self) -> i32 {
        self.inspect("{{.State.ExitCode}}").parse().expect("a number")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            complain(&format!("{}:\n{}", self.name, self.logs()));
        }
        let removed = docker(&["rm", "--force", "--volumes", &self.name]);
        assert!(removed.status == 0 || std::thread::panicking(), "{removed:?}");
    }
}

/// Every cgroup of the machine that halsup could have made, below `top`.
fn cgroups_of_halsup(top: &Path) -> Vec<PathBuf> {
    let dirs = entries(top).into_iter().filter(|path| path.is_dir());
    dirs.flat_map(|dir| if dir.ends_with("halsup") { vec![dir] } else { cgroups_of_halsup(&dir) }).collect()
}

/// The container's own limits, which must not be in the way, and which workers must not leave.
const LIMITED: [&str; 4] = ["--privileged", "--memory=512m", "--cpus=1.5", "--pids-limit=200"];

#[test]
fn a_pool_is_served_with_enforced_limits_and_an_oom_is_that_worker_s_alone_and_a_stop_leaves_nothing() {
    needs!(Root, Cgroup2("memory"), Docker);
    let hog =
        "[pool.hog]\nrestart = false\nmemory = '16m'\ncommand = ['/bin/busybox', 'sh', '-c', 'exec tail /dev/zero']\n";
    // A root of its own, of which the writable layer lies on the image's volume.
    let own = "[pool.own]\nroot = '/images/box'\ncommand = ['/bin/busybox', 'sleep', '1000000']\n";
    let images = directory();
    let root = images.path().join("box");
    for dir in ["bin", "proc", "dev", "sys", "run", "tmp"] {
        fs::create_dir_all(root.join(dir)).expect("make a directory");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("copy busybox");
    let volume = format!("--volume={}:/images/box:ro", root.display());
    let container = Container::start(&[&LIMITED[..], &[&volume]].concat(), &format!("{CALM}{hog}{own}"));
    let certificate = container.wait_until("the certificate", || container.certificates("hog.0").first().cloned());
    assert_eq!(certificate["cause"], "oom", "{certificate}");
    container.assert_enforced();
    let listed = container.halsup(&["ps", "--json"]).json();
    let calm: Vec<_> = listed["workers"].as_array().into_iter().flatten().filter(|one| one["pool"] == "calm").collect();
    assert_eq!(calm.len(), 3, "{listed}");
    assert!(calm.iter().all(|one| one["state"] == "healthy" && one["restarts"] == 0), "{listed}");
    container.wait_until("the worker with a root of its own is healthy", || {
        Some(()).filter(|()| container.halsup(&["ps", "own", "--json"]).json()["workers"][0]["state"] == "healthy")
    });
    assert_eq!(container.inspect("{{.State.Running}}"), "true");
    // The kernel's word, from outside of the container.
    let cgroup = container.cgroup();
    let leaf = container.workers().into_iter().next().expect("a worker's cgroup");
    let limit = fs::read_to_string(leaf.join("memory.max")).expect("read memory.max");
    assert_eq!(limit.trim(), (32 << 20).to_string());
    assert_eq!(container.stop(), 0);
    assert!(!cgroup.exists(), "{cgroup:?} is left");
}

#[test]
fn in_the_host_s_cgroup_namespace_workers_stay_in_the_container_and_one_that_was_killed_comes_up_clean() {
    needs!(Root, Cgroup2("memory"), Docker);
    let container = Container::start(&[&LIMITED[..], &["--cgroupns=host"]].concat(), CALM);
    container.wait_ready();
    container.assert_enforced();
    assert_eq!(container.workers().len(), 3);
    let all = cgroups_of_halsup(&cgroup_mount().expect("Docker needs it"));
    let strays: Vec<_> = all.iter().filter(|path| !in_a_container(path)).collect();
    assert!(strays.is_empty(), "outside of every container: {strays:?}");

    let before = container.cgroup();
    let killed = docker(&["kill", &container.name]);
    assert_eq!(killed.status, 0, "{killed:?}");
    assert_eq!(container.exit_code(), 137);
    assert!(!before.exists(), "{before:?} is left");
    let again = docker(&["start", &container.name]);
    assert_eq!(again.status, 0, "{again:?}");
    container.wait_ready();
    container.assert_enforced();
    assert_eq!(container.workers().len(), 3, "and none of its first life");
    // Nor is anything left in the directories: there is one for each worker.
    container.wait_until("work directories of the first life are removed", || {
        let listed = container.busybox(&["ls", "/run/halsup/work"]);
        Some(()).filter(|()| listed.stdout.lines().count() == 3)
    });
    assert_eq!(container.stop(), 0);
    assert!(!before.exists(), "{before:?} is left");
}

/// Whether Docker made the cgroup that this one is directly in: its name has a container's id of 64 digits.
fn in_a_container(path: &Path) -> bool {
    let parent = path.parent().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default();
    parent.split(['-', '.']).any(|part| part.len() == 64 && part.chars().all(|c| c.is_ascii_hexdigit()))
}

#[test]
fn ten_thousand_orphans_are_reaped_while_it_answers() {
    needs!(Root, Docker, Python3);
    let container = Container::start(&["--privileged", "--pids-limit=-1", "--volume=/:/host:ro"], CALM);
    container.wait_ready();
    let leave = "import os\nfor _ in range(10000):\n    if os.fork() == 0:\n        os._exit(0)\nprint('left')";
    let left = container.busybox(&["chroot", "/host", "python3", "-c", leave]);
    assert_eq!((left.status, left.stdout.trim()), (0, "left"), "{left:?}");
    container.wait_until("no zombie is left", || {
        assert_eq!(container.halsup(&["status", "--ready"]).status, 0);
        let all = container.busybox(&["sh", "-c", "/bin/busybox cat /proc/[0-9]*/stat"]).stdout;
        assert!(all.lines().count() > 3, "the daemon and its workers: {all}");
        let zombies =
            all.lines().filter(|line| line.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with("Z 1 ")));
        Some(()).filter(|()| zombies.count() == 0)
    });
    assert_eq!(container.stop(), 0);
}

#[test]
fn commands_are_executed_from_the_first_moment_on_and_beside_spawning_and_the_health_check_passes() {
    needs!(Root, Cgroup2("memory"), Docker);
    // Something forks in the container's own cgroup while the daemon begins; it is given no rest until after that.
    let busy = "while :; do /bin/busybox true; done & exec halsup daemon run";
    let options = ["--privileged", "--entrypoint=/bin/busybox"];
    let (container, started) = Container::run(&["--detach"], &options, CALM, &["sh", "-c", busy]);
    assert_eq!(started.status, 0, "{started:?}");
    let first = container.halsup(&["status", "--ready"]);
    assert!([0, 1, 3].contains(&first.status), "it could be executed at all: {first:?}");
    container.wait_ready();
    container.assert_enforced();
    std::thread::scope(|scope| {
        let restarts = scope.spawn(|| {
            let script = "for round in 1 2 3 4 5 6 7 8 9 10; do halsup restart calm || exit 1; done";
            container.busybox(&["sh", "-c", script])
        });
        for _ in 0..10 {
            let cgroup = container.busybox(&["sh", "-c", "halsup status --json && /bin/busybox cat /proc/self/cgroup"]);
            assert_eq!(cgroup.status, 0, "{cgroup:?}");
            assert!(cgroup.stdout.trim().ends_with("/supervisor"), "beside the daemon: {cgroup:?}");
        }
        let restarts = restarts.join().expect("the thread did not panic");
        assert_eq!(restarts.status, 0, "{restarts:?}");
    });
    container.wait_until("it is healthy", || {
        Some(()).filter(|()| container.inspect("{{.State.Health.Status}}") == "healthy")
    });
    // Its own cgroup has stayed empty: whatever was executed went elsewhere.
    let inside = fs::read_to_string(container.cgroup().join("cgroup.procs")).expect("read cgroup.procs");
    assert_eq!(inside, "");
    assert_eq!(container.stop(), 0);
}

#[test]
fn a_container_without_the_rights_says_which_flag_it_lacks() {
    needs!(Root, Docker);
    let unconfined = ["--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined"];
    let host = ["--cgroupns=host", "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw"];
    let admin = ["--cap-add=SYS_ADMIN"];
    let cases: [(&[&[&str]], &str); 4] = [
        (&[], "CAP_SYS_ADMIN is missing"),
        (&[&admin, &unconfined], "cgroup v2 on /sys/fs/cgroup is read-only"),
        (&[&admin, &unconfined[1..], &host], "a seccomp filter forbids pivot_root"),
        (&[&["--privileged"], &host[1..]], "needs --cgroupns host"),
    ];
    for (options, reason) in cases {
        let options = options.concat();
        let (_container, ended) = Container::run(&[], &options, CALM, &[]);
        assert_eq!(ended.status, 1, "{options:?}: {ended:?}");
        let [line] = ended.stderr.lines().collect::<Vec<_>>()[..] else {
            panic!("{options:?}: one sentence: {ended:?}")
        };
        assert!(line.contains(reason), "{options:?}: {line}");
        assert!(line.contains("--privileged") || line.contains("--cgroupns host"), "{options:?}: {line}");
    }
    // What it says helps: the flags that it names as an alternative to --privileged are enough.
    let options = [&admin[..], &unconfined, &host].concat();
    let container = Container::start(&options, CALM);
    container.wait_ready();
    container.assert_enforced();
    assert_eq!(container.stop(), 0);

    let (_container, doctor) =
        Container::run(&["--entrypoint=/bin/busybox"], &[], CALM, &["sh", "-c", "halsup check && halsup doctor"]);
    assert_eq!(doctor.status, 1, "{doctor:?}");
    let lines: Vec<&str> = doctor.stdout.lines().collect();
    assert!(lines[0].contains("halsup.toml"), "what needs no rights works without them: {doctor:?}");
    let miss = lines.iter().position(|line| *line == "MISS  container: CAP_SYS_ADMIN is missing");
    let fix = miss.and_then(|at| lines.get(at + 1)).unwrap_or_else(|| panic!("{doctor:?}"));
    assert!(fix.contains("--privileged") && fix.contains("--cap-add SYS_ADMIN"), "{fix}");
}
