//! Warm pools and claims from the outside: what is claimed has its project, variables, secrets and limits; what is claimed is
//! nobody else's; what is given back leaves nothing; and a daemon that dies in between loses none and leaks none.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::fixture::Daemon;
use crate::needs::{Need, cgroup_mount, met, needs};

/// A pool of two warm workers whose projects lie below `projects`.
fn config(projects: &Path, more: &str) -> String {
    let projects = projects.display();
    format!("[pool.work]\n{more}\n[pool.work.claims]\nmin = 2\nmax = 4\nprojects = ['{projects}']\n")
}

/// A directory for projects, away from /tmp, which workers have one of their own of.
fn projects() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let path = dir.path().canonicalize().expect("its path");
    (dir, path)
}

fn claims(daemon: &Daemon) -> Value {
    let status = daemon.cli(&["status", "--json"]).json();
    status["pools"].as_array().and_then(|pools| pools.first()).map(|pool| pool["claims"].clone()).unwrap_or_default()
}

fn warm(daemon: &mut Daemon, count: u64) {
    daemon.wait_until("warm workers", |daemon| (claims(daemon)["warm"] == count).then_some(()));
}

/// What a session has written into its project, once it has written it whole.
fn report(daemon: &mut Daemon, file: &Path) -> String {
    daemon.wait_until("the session's report", |_| {
        std::fs::read_to_string(file).ok().filter(|text| text.ends_with("done\n"))
    })
}

#[test]
fn a_claim_has_its_project_variables_secret_and_limits_and_a_release_leaves_nothing() {
    needs!(Root, CgroupTree);
    let (_dir, root) = projects();
    let project = root.join("site");
    std::fs::create_dir(&project).expect("make a project");
    std::os::unix::fs::chown(&project, Some(4711), Some(4712)).expect("give it to somebody");
    std::fs::write(project.join("mine"), "of the owner\n").expect("a file");
    std::os::unix::fs::chown(project.join("mine"), Some(4711), Some(4712)).expect("give it to somebody");
    std::fs::write(root.join("secret"), "top-secret-word").expect("a secret");
    let mut daemon = Daemon::start(&config(&root, ""));
    warm(&mut daemon, 2);
    let script = "cat mine; echo own >> mine; echo new > made; stat -c %u:%g . mine made; id -u; pwd; echo $COLOUR $HALSUP_SESSION; \
        cat /run/secrets/key; echo; stat -c %a /run/secrets/key; tr '\\0' '\\n' < /proc/self/environ | grep -c top-secret; echo done";
    let script = format!("({script}) > report.tmp 2>&1; mv report.tmp report; sleep 1000");
    let secret = format!("key={}", root.join("secret").display());
    let path = project.display().to_string();
    let claimed = daemon.cli(&[
        "claim",
        "--json",
        "--project",
        &path,
        "--name",
        "my-site",
        "--env",
        "COLOUR=blue",
        "--secret",
        &secret,
        "--",
        "sh",
        "-c",
        &script,
    ]);
    assert_eq!(claimed.status, 0, "{}", claimed.stderr);
    let claimed = claimed.json();
    assert_eq!((&claimed["session"], &claimed["warm"]), (&Value::from("my-site"), &Value::from(true)));
    let said = report(&mut daemon, &project.join("report"));
    let uid = said.lines().nth(4).expect("its uid");
    let expected = format!(
        "of the owner\n{uid}:{uid}\n{uid}:{uid}\n{uid}:{uid}\n{uid}\n{path}\nblue my-site\ntop-secret-word\n400\n0\ndone\n"
    );
    assert_eq!(said, expected);
    let made = std::fs::metadata(project.join("made")).expect("what it made");
    assert_eq!((made.uid(), made.gid()), (4711, 4712), "on the disk its files are the owner's");
    assert_eq!(std::fs::read_to_string(project.join("mine")).expect("read it"), "of the owner\nown\n");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert!(!mounts.contains(&path), "the mount shows on the host");
    assert_eq!(daemon.cli(&["release", "my-site"]).status, 0);
    warm(&mut daemon, 2);
    assert_eq!(claims(&daemon)["busy"], 0);
    assert_eq!(daemon.cli(&["release", "my-site"]).status, 5);
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn limits_of_a_claim_are_the_kernels_and_one_that_cannot_be_is_a_refusal() {
    needs!(Root, CgroupTree);
    let (_dir, root) = projects();
    let mut daemon = Daemon::start(&config(&root, ""));
    warm(&mut daemon, 2);
    let claimed =
        daemon.cli(&["claim", "--memory", "64m", "--pids-limit", "7", "--name", "small", "--", "sleep", "1000"]);
    let has_memory = met(&[Need::Cgroup2("memory"), Need::Cgroup2("pids")]);
    if has_memory {
        assert_eq!(claimed.status, 0, "{}", claimed.stderr);
        let limits = cgroup_of(&daemon, "small");
        let read = |file: &str| std::fs::read_to_string(limits.join(file)).expect(file);
        assert_eq!((read("memory.max").trim(), read("pids.max").trim()), ("67108864", "7"));
        let free = daemon.cli(&["claim", "--no-limits", "--name", "free", "--", "sleep", "1000"]);
        assert_eq!(free.status, 0, "{}", free.stderr);
        let limits = cgroup_of(&daemon, "free");
        let read = |file: &str| std::fs::read_to_string(limits.join(file)).expect(file);
        assert_eq!((read("memory.max").trim(), read("pids.max").trim()), ("max", "max"));
    } else {
        assert_eq!(claimed.status, 1);
        assert!(claimed.stderr.contains("memory.max"), "{}", claimed.stderr);
        daemon.wait_until("nothing claimed", |daemon| (claims(daemon)["busy"] == 0).then_some(()));
        warm(&mut daemon, 2);
    }
    assert_eq!(daemon.stop(), 0);
}

fn cgroup_of(daemon: &Daemon, session: &str) -> PathBuf {
    let listed = daemon.cli(&["ps", "--json"]).json();
    let workers = listed["workers"].as_array().cloned().unwrap_or_default();
    let worker = workers.iter().find(|worker| worker["session"]["name"] == session).expect("the session is listed");
    let below = worker["cgroup"].as_str().expect("its cgroup").trim_start_matches('/').to_owned();
    cgroup_mount().expect("a cgroup mount").join(below)
}
