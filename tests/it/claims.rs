//! Warm pools and claims from the outside: what is claimed has its project, variables, secrets and limits; what is claimed is
//! nobody else's; what is given back leaves nothing; and a daemon that dies in between loses none and leaks none.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::fixture::Daemon;
use crate::needs::{Need, cgroup_mount, met, needs};

/// A pool of two warm workers whose projects lie below `projects`.
pub(crate) fn config(projects: &Path, more: &str) -> String {
    let projects = projects.display();
    format!("[pool.work]\n{more}\n[pool.work.claims]\nmin = 2\nmax = 4\nprojects = ['{projects}']\n")
}

/// A directory for projects, away from /tmp, which workers have one of their own of.
pub(crate) fn projects() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let path = dir.path().canonicalize().expect("its path");
    (dir, path)
}

fn claims(daemon: &Daemon) -> Value {
    let status = daemon.cli(&["status", "--json"]).json();
    status["pools"].as_array().and_then(|pools| pools.first()).map(|pool| pool["claims"].clone()).unwrap_or_default()
}

pub(crate) fn warm(daemon: &mut Daemon, count: u64) {
    daemon.wait_until("warm workers", |daemon| (claims(daemon)["warm"] == count).then_some(()));
}

/// What a session has written into its project, once it has written it whole.
pub(crate) fn report(daemon: &mut Daemon, file: &Path) -> String {
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

/// A claim in a thread of its own; the worker's name, or what was said instead.
fn claim(place: &crate::place::Place, arguments: &[&str]) -> Result<String, String> {
    let output = place.cli(&[&["claim", "--json"], arguments, &["--", "sleep", "1000"]].concat());
    match output.status {
        0 => Ok(output.json()["worker"].as_str().expect("its worker").to_owned()),
        1 => Err(output.stderr),
        other => panic!("exit status {other}: {}", output.stderr),
    }
}

#[test]
fn of_two_hundred_claimers_none_gets_what_another_has() {
    needs!(Root, CgroupTree);
    let config = "[pool.work]\nmemory = 'max'\n[pool.work.claims]\nmin = 20\nmax = 20\nsessions = 60\n";
    let mut daemon = Daemon::start(config);
    warm(&mut daemon, 20);
    let place = daemon.place();
    let answers: Vec<Result<String, String>> = std::thread::scope(|scope| {
        let claimers: Vec<_> = (0..20).map(|_| scope.spawn(|| (0..10).map(|_| claim(place, &[])).collect())).collect();
        let answers = claimers.into_iter().map(|claimer| claimer.join().expect("a claimer"));
        answers.collect::<Vec<Vec<_>>>().into_iter().flatten().collect()
    });
    let got: Vec<&String> = answers.iter().filter_map(|answer| answer.as_ref().ok()).collect();
    let distinct: std::collections::BTreeSet<&&String> = got.iter().collect();
    assert_eq!(distinct.len(), got.len(), "one worker has two holders");
    assert!((20..=60).contains(&got.len()), "{} of 200 got one", got.len());
    for refusal in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        let truthful = refusal.contains("No warm workers available") || refusal.contains("60 workers are claimed");
        assert!(truthful, "{refusal}");
    }
    assert_eq!(claims(&daemon)["busy"], got.len());
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn a_secret_is_in_no_environment_argument_log_state_or_other_worker() {
    const CANARY: &str = "canary-7f3a9c";
    needs!(Root, CgroupTree);
    let (_dir, root) = projects();
    std::fs::write(root.join("secret"), CANARY).expect("a secret");
    let project = root.join("p");
    std::fs::create_dir(&project).expect("a project");
    let mut daemon = Daemon::start(&config(&root, ""));
    warm(&mut daemon, 2);
    let secret = format!("key={}", root.join("secret").display());
    let path = project.display().to_string();
    let script = "test $(cat /run/secrets/key) = canary-7f''3a9c && echo done > seen; sleep 1000";
    let claimed =
        daemon.cli(&["claim", "--project", &path, "--name", "one", "--secret", &secret, "--", "sh", "-c", script]);
    assert_eq!(claimed.status, 0, "{}", claimed.stderr);
    report(&mut daemon, &project.join("seen"));
    // Another session sees neither the project nor the secret.
    let other = root.join("other");
    std::fs::create_dir(&other).expect("a project");
    let script = format!("ls {path} /run/secrets > seen 2>&1; echo done >> seen; sleep 1000");
    let claimed = daemon.cli(&["claim", "--project", &other.display().to_string(), "--", "sh", "-c", &script]);
    assert_eq!(claimed.status, 0, "{}", claimed.stderr);
    let said = report(&mut daemon, &other.join("seen"));
    assert!(said.contains("No such file") && !said.contains("key"), "{said}");
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        for file in ["environ", "cmdline"] {
            let bytes = std::fs::read(entry.path().join(file)).unwrap_or_default();
            let has = bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes());
            assert!(!has, "{} of {}", file, entry.path().display());
        }
    }
    let held = files_with(&daemon.path("."), CANARY.as_bytes());
    assert_eq!(held, Vec::<PathBuf>::new());
    assert!(!daemon.stderr().contains(CANARY));
    assert_eq!(daemon.stop(), 0);
}

/// The processes and files of theirs that hold `wanted`, but for those that `may`.
fn processes_with(wanted: &str, may: impl Fn(u32) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        for file in ["environ", "cmdline"] {
            let bytes = std::fs::read(entry.path().join(file)).unwrap_or_default();
            if bytes.windows(wanted.len()).any(|window| window == wanted.as_bytes()) && !may(pid) {
                found.push(entry.path().join(file).display().to_string());
            }
        }
    }
    found
}

#[test]
fn a_further_program_has_what_the_claim_gave_also_after_a_restart() {
    const CANARY: &str = "canary-of-a-variable-91c4";
    needs!(Root, CgroupTree);
    let (_dir, root) = projects();
    std::fs::write(root.join("secret"), "of the file").expect("a secret");
    let mut daemon = Daemon::start(&config(&root, "env = { OF_POOL = 'pool', BOTH = 'pool' }"));
    warm(&mut daemon, 2);
    let secret = format!("key={}", root.join("secret").display());
    // Only the command of the caller's knows the word; here it comes from a file, as an operator's shell would have it.
    let request = serde_json::json!({ "pool": "work", "session": "one", "command": ["sleep", "1000"],
        "env": [format!("TOKEN={CANARY}"), "BOTH=claim"], "secrets": ["key=of the file"] });
    let mut line =
        crate::checker::line::Line::connect(&daemon.path("run/control.sock"), crate::fixture::EVENT_DEADLINE)
            .expect("connect");
    let claimed = line.ask("Claim", &request).expect("an answer");
    assert_eq!(claimed["parameters"]["session"], "one", "{claimed}");
    let main = u32::try_from(claimed["parameters"]["pid"].as_u64().expect("its pid")).expect("a pid");
    assert_eq!(daemon.cli(&["claim", "--name", "two", "--secret", &secret, "--", "sleep", "1000"]).status, 0);
    let script = "echo $TOKEN $OF_POOL $BOTH $MORE $HALSUP_SESSION; cat /run/secrets/key; tr '\\0' '\\n' < /proc/self/cmdline | grep -c canary";
    let look = |daemon: &Daemon| {
        let run = daemon.cli(&["exec", "-e", "MORE=more", "one", "--", "sh", "-c", script]);
        assert_eq!(run.stdout, format!("{CANARY} pool claim more one\nof the file0\n"), "{run:?}");
        let other = daemon.cli(&["exec", "two", "--", "sh", "-c", "echo ${TOKEN-none} $BOTH"]);
        assert_eq!(other.stdout, "none pool\n", "another session has it not: {other:?}");
        let held = files_with(&daemon.path("."), CANARY.as_bytes());
        assert_eq!(held, Vec::<PathBuf>::new());
        assert_eq!(processes_with(CANARY, |pid| pid == main), Vec::<String>::new(), "the program itself has it");
        assert!(!daemon.stderr().contains(CANARY));
        let inspected = daemon.cli(&["inspect", "one", "--json"]);
        assert!(!inspected.stdout.contains(CANARY) && inspected.status == 0);
    };
    look(&daemon);
    assert_eq!(daemon.cli(&["daemon", "reexec"]).status, 0);
    look(&daemon);
    crate::look::signal(i32::try_from(daemon.pid()).expect("a pid"), rustix::process::Signal::KILL);
    daemon.start_again();
    daemon.wait_until("the sessions", |daemon| (claims(daemon)["busy"] == 2).then_some(()));
    look(&daemon);
    assert_eq!(daemon.stop(), 0);
}

/// Files below `dir` that hold `wanted`.
fn files_with(dir: &Path, wanted: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files_with(&path, wanted)),
            Ok(kind) if kind.is_file() => {
                let bytes = std::fs::read(&path).unwrap_or_default();
                if bytes.windows(wanted.len()).any(|window| window == wanted) {
                    found.push(path);
                }
            }
            Ok(_) | Err(_) => {}
        }
    }
    found
}

#[test]
fn what_a_claim_may_not_have_is_refused_and_costs_no_worker() {
    needs!(Root, CgroupTree);
    let (_dir, root) = projects();
    std::fs::create_dir(root.join("real")).expect("a project");
    std::os::unix::fs::symlink("real", root.join("link")).expect("a link");
    std::fs::write(root.join("file"), "").expect("a file");
    let mut daemon = Daemon::start(&config(&root, ""));
    warm(&mut daemon, 2);
    let path = |name: &str| root.join(name).display().to_string();
    let varlink = |parameters: Value| {
        let mut peer = crate::peer::Peer::connect(&daemon);
        assert!(peer.call("io.halsup.Control.Claim", &parameters));
        peer.reply()
    };
    let refused = |parameters: Value, expected: &str| {
        let answer = varlink(parameters.clone()).to_string();
        assert!(answer.contains(expected), "{parameters}: {answer}");
    };
    let of = |more: Value| {
        let mut parameters = serde_json::json!({ "pool": "work", "command": ["sleep", "1000"] });
        parameters.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        parameters
    };
    refused(of(serde_json::json!({ "project": "/etc" })), "Security violation: path '/etc' not in allowed directories");
    refused(of(serde_json::json!({ "project": format!("{}/../../etc", root.display()) })), "without");
    refused(of(serde_json::json!({ "project": path("link") })), "leads through a symbolic link");
    refused(of(serde_json::json!({ "project": path("file") })), "is no directory");
    refused(of(serde_json::json!({ "project": path("real"), "project_target": "/proc/x" })), "/proc");
    refused(
        of(serde_json::json!({ "project": path("real"), "project_target": "/run/worker/work" })),
        "the worker's own",
    );
    refused(of(serde_json::json!({ "env": ["LD_PRELOAD=/x"] })), "halsup's own");
    refused(of(serde_json::json!({ "env": ["ANTHROPIC_API_KEY=x"] })), "SECURITY VIOLATION");
    refused(of(serde_json::json!({ "secrets": ["../x=y"] })), "no name of a secret");
    refused(of(serde_json::json!({ "session": "a b" })), "InvalidParameter");
    refused(of(serde_json::json!({ "command": [] })), "InvalidParameter");
    assert_eq!(claims(&daemon)["warm"], 2, "a refusal cost a worker");
    // One that can only fail inside costs its worker, which is replaced.
    let failed = daemon.cli(&["claim", "--project", &path("real"), "--", "/no/such/program"]);
    assert_eq!(failed.status, 1);
    assert!(failed.stderr.contains("/no/such/program"), "{}", failed.stderr);
    daemon.wait_until("nothing claimed", |daemon| (claims(daemon)["busy"] == 0).then_some(()));
    warm(&mut daemon, 2);
    assert_eq!(daemon.stop(), 0);
}

/// The sessions that there are, by name, and the pid of each one's program.
fn sessions(daemon: &Daemon) -> std::collections::BTreeMap<String, i64> {
    let listed = daemon.cli(&["ps", "--json"]).json();
    let workers = listed["workers"].as_array().cloned().unwrap_or_default();
    let held = workers.iter().filter(|worker| !worker["session"].is_null());
    let named =
        |worker: &Value| (worker["session"]["name"].as_str().expect("its name").to_owned(), worker["pid"].as_i64());
    held.map(named).map(|(name, pid)| (name, pid.unwrap_or(0))).collect()
}

#[test]
fn a_session_outlives_its_daemon_and_ends_with_its_program() {
    needs!(Root, CgroupTree);
    let (_dir, root) = projects();
    let project = root.join("p");
    std::fs::create_dir(&project).expect("a project");
    let mut daemon = Daemon::start(&config(&root, "on_supervisor_death = 'forever'"));
    warm(&mut daemon, 2);
    let path = project.display().to_string();
    let script = "while [ ! -e stop ]; do sleep 0.05; done; exit 7";
    let claimed = daemon.cli(&["claim", "--project", &path, "--name", "kept", "--", "sh", "-c", script]);
    assert_eq!(claimed.status, 0, "{}", claimed.stderr);
    let before = sessions(&daemon);
    crate::look::signal(i32::try_from(daemon.pid()).expect("a pid"), rustix::process::Signal::KILL);
    daemon.start_again();
    assert_eq!(sessions(&daemon), before);
    warm(&mut daemon, 2);
    assert_eq!(daemon.cli(&["claim", "--name", "kept"]).status, 1, "its name is taken");
    std::fs::write(project.join("stop"), "").expect("tell it to end");
    daemon.wait_until("the session's end", |daemon| sessions(daemon).is_empty().then_some(()));
    let ended = daemon.cli(&["events", "-n", "1000", "--json"]).stdout;
    assert!(ended.contains("exited 7"), "{ended}");
    warm(&mut daemon, 2);
    assert_eq!(daemon.cli(&["claim", "--name", "kept", "--", "sleep", "9"]).status, 0, "its name is free");
    assert_eq!(daemon.stop(), 0);
}

/// How often the daemon is killed while claims are made; HALSUP_TEST_CLAIM_KILLS for more.
const KILLS: u64 = 6;

#[test]
fn a_daemon_that_is_killed_during_claims_keeps_those_that_were_answered_and_no_others() {
    needs!(Root, CgroupTree);
    let (_dir, root) = projects();
    let project = root.join("p");
    std::fs::create_dir(&project).expect("a project");
    let kills = std::env::var("HALSUP_TEST_CLAIM_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let mut daemon = Daemon::start(&config(&root, "on_supervisor_death = 'forever'"));
    let path = project.display().to_string();
    for round in 0..kills {
        warm(&mut daemon, 2);
        let place = daemon.place();
        let pid = i32::try_from(daemon.pid()).expect("a pid");
        let answered: Vec<String> = std::thread::scope(|scope| {
            let claimers: Vec<_> = (0..4)
                .map(|claimer| {
                    let path = &path;
                    scope.spawn(move || {
                        let name = format!("r{round}-{claimer}");
                        let asked = ["claim", "--cold-ok", "--project", path, "--name", &name, "--", "sleep", "1000"];
                        (place.cli(&asked).status == 0).then_some(name)
                    })
                })
                .collect();
            // Some way into the first claims: a different one in each round.
            let pause = std::time::Duration::from_micros(1_500 * (round % 23));
            let pause = rustix::event::Timespec::try_from(pause).expect("a pause");
            rustix::event::poll(&mut [], Some(&pause)).expect("wait");
            crate::look::signal(pid, rustix::process::Signal::KILL);
            claimers.into_iter().filter_map(|claimer| claimer.join().expect("a claimer")).collect()
        });
        daemon.start_again();
        let expected: std::collections::BTreeSet<String> = answered.into_iter().collect();
        daemon.wait_until("the sessions that were answered", |daemon| {
            let there: std::collections::BTreeSet<String> = sessions(daemon).into_keys().collect();
            // One that was written down as answered and not heard any more is there too: nobody can know better.
            let heard = expected.iter().all(|name| there.contains(name));
            assert!(heard, "{expected:?} were answered, {there:?} are there");
            let busy = claims(daemon)["busy"].as_u64();
            (busy == Some(there.len() as u64)).then_some(())
        });
        for name in sessions(&daemon).into_keys() {
            assert_eq!(daemon.cli(&["release", &name]).status, 0, "{name}");
        }
        daemon.wait_until("nothing claimed", |daemon| (claims(daemon)["busy"] == 0).then_some(()));
    }
    assert_eq!(daemon.stop(), 0);
}

/// Mounts a file system that answers while it is mounted and is looked at once, says so, and then never again.
const HANGS: &str = r#"
import ctypes, os, struct, sys
at, libc = sys.argv[1], ctypes.CDLL(None, use_errno=True)
fuse = os.open('/dev/fuse', os.O_RDWR)
options = ('fd=%d,rootmode=40755,user_id=0,group_id=0,allow_other' % fuse).encode()
assert libc.mount(b'halsup-test', at.encode(), b'fuse', 6, options) == 0, os.strerror(ctypes.get_errno())
attr = struct.pack('<QQQQQQIIIIIIIIII', 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0)
print('mounted', flush=True)
while True:
    call = os.read(fuse, 1 << 17)
    length, code, unique = struct.unpack('<IIQ', call[:16])
    if code == 26: body = struct.pack('<IIIIHHIIHHI', 7, 31, 0, 0, 0, 0, 4096, 1, 0, 0, 0) + bytes(28)
    elif code == 3: body = struct.pack('<QII', 0, 0, 0) + attr
    elif code == 1: print('asked', flush=True); continue
    else: continue
    os.write(fuse, struct.pack('<IiQ', 16 + len(body), 0, unique) + body)
"#;

/// Its server, in the daemon's mount namespace.
struct Hung(std::process::Child);

impl Drop for Hung {
    /// With the server gone everything that waits for it goes on.
    fn drop(&mut self) {
        self.0.kill().expect("end it");
        self.0.wait().expect("reap it");
    }
}

#[test]
#[expect(clippy::disallowed_types, reason = "a file system that does not answer is another program's")]
fn a_file_system_that_does_not_answer_holds_up_nobody_but_whoever_named_it() {
    needs!(Root, CgroupTree, Python3, Fuse, Program("nsenter"));
    let (_dir, root) = projects();
    let hung = root.join("hung");
    std::fs::create_dir(&hung).expect("a place");
    // Mounted for the daemon and its callers alone: other tests see that nothing new is mounted on the host.
    let apart = ["unshare", "--mount", "--propagation", "private"];
    let mut daemon = Daemon::start_under(&apart, &config(&root, ""));
    warm(&mut daemon, 2);
    let pid = daemon.pid().to_string();
    let beside = |words: &[&str]| {
        let mut command = std::process::Command::new("nsenter");
        command.args(["--target", &pid, "--mount", "--"]).args(words).stdout(std::process::Stdio::piped());
        command
    };
    let at = hung.display().to_string();
    let mut fuse = Hung(beside(&["python3", "-c", HANGS, &at]).spawn().expect("run python"));
    let mut said = std::io::BufReader::new(fuse.0.stdout.take().expect("piped"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).expect("read");
    assert_eq!(line, "mounted\n");
    let control = daemon.path("run/control.sock");
    let connect = || crate::checker::line::Line::connect(&control, crate::fixture::EVENT_DEADLINE).expect("connect");
    let inside = hung.join("project").display().to_string();
    let requests = [
        serde_json::json!({ "pool": "work", "project": inside, "command": ["true"] }),
        serde_json::json!({ "pool": "work", "mounts": [format!("{inside}:/data")], "command": ["true"] }),
    ];
    for request in requests {
        let mut line = connect();
        line.say("Claim", &request, false).expect("say it");
        // Somebody else's call behind it is answered at once, and so is the claim itself.
        let pinged = connect().ask("Ping", &serde_json::json!({}));
        assert!(pinged.is_some(), "the daemon hangs: {request}");
        let answer = line.next().expect("an answer");
        assert!(
            answer["parameters"]["reason"].as_str().is_some_and(|text| text.contains("is not at hand")),
            "{answer}"
        );
    }
    assert_eq!(claims(&daemon)["busy"], 0, "no worker was taken for it");
    // The command waits for what it names; the daemon does not.
    let socket = control.display().to_string();
    let program = crate::place::program().into_string().expect("ASCII");
    let claim = [&*program, "--socket", &socket, "claim", "--project", &inside, "--", "true"];
    let mut waits = beside(&claim).stderr(std::process::Stdio::null()).spawn().expect("run halsup");
    line.clear();
    std::io::BufRead::read_line(&mut said, &mut line).expect("read");
    assert_eq!(line, "asked\n");
    assert!(connect().ask("Ping", &serde_json::json!({})).is_some());
    drop(fuse);
    assert!(!waits.wait().expect("reap it").success());
    assert_eq!(daemon.stop(), 0);
}

/// The ports that sessions are told, by their names.
fn told_ports(daemon: &Daemon, sessions: &[&str]) -> Vec<(u16, u16)> {
    let ask = |name: &&str| {
        let script = "echo $PORT $HALSUP_PORT_FIRST $HALSUP_PORT_LAST";
        let run = daemon.cli(&["exec", name, "--", "sh", "-c", script]);
        let numbers: Vec<u16> = run.stdout.split_whitespace().map(|word| word.parse().expect("a port")).collect();
        let [port, first, last] = numbers[..] else { panic!("{run:?}") };
        assert_eq!(port, first);
        (first, last)
    };
    sessions.iter().map(ask).collect()
}

#[track_caller]
fn are_apart(ports: &[(u16, u16)]) {
    for (at, (first, last)) in ports.iter().enumerate() {
        assert!((21_000..=21_059).contains(first) && last - first == 9, "{ports:?}");
        assert!(ports[..at].iter().all(|(one, other)| last < one || first > other), "{ports:?}");
    }
}

#[test]
fn each_session_is_told_ports_that_no_other_has() {
    needs!(Root, CgroupTree);
    let config = "[pool.work]\nports = '21000-21059'\n[pool.work.claims]\nmin = 2\nmax = 2\nsessions = 4\n";
    let mut daemon = Daemon::start(config);
    warm(&mut daemon, 2);
    let claim = |daemon: &Daemon, name: &str| {
        let claimed = daemon.cli(&["claim", "--cold-ok", "--name", name, "--", "sleep", "1000"]);
        assert_eq!(claimed.status, 0, "{claimed:?}");
    };
    for name in ["one", "two", "three"] {
        claim(&daemon, name);
    }
    let before = told_ports(&daemon, &["one", "two", "three"]);
    are_apart(&before);
    // What is given back is given out again; what is adopted keeps what it was told, and nobody else is told the same.
    crate::look::signal(i32::try_from(daemon.pid()).expect("a pid"), rustix::process::Signal::KILL);
    daemon.start_again();
    daemon.wait_until("the sessions", |daemon| (claims(daemon)["busy"] == 3).then_some(()));
    assert_eq!(told_ports(&daemon, &["one", "two", "three"]), before);
    for round in 0..4 {
        assert_eq!(daemon.cli(&["release", "two"]).status, 0);
        daemon.wait_until("its end", |daemon| (claims(daemon)["busy"] == 2).then_some(()));
        warm(&mut daemon, 2);
        claim(&daemon, "two");
        let now = told_ports(&daemon, &["one", "two", "three"]);
        are_apart(&now);
        assert_eq!((now[0], now[2]), (before[0], before[2]), "round {round}");
    }
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn what_was_made_for_claims_of_a_pool_goes_with_it() {
    needs!(Root, CgroupTree);
    let (_dir, root) = projects();
    let mut daemon = Daemon::start("");
    // What is mounted nowhere is shown as a root of its own.
    let detached = |daemon: &Daemon| {
        let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("its descriptors").flatten();
        open.filter(|one| std::fs::read_link(one.path()).is_ok_and(|target| target == Path::new("/"))).count()
    };
    let before = detached(&daemon);
    daemon.place().configure(&config(&root, ""));
    assert_eq!(daemon.cli(&["daemon", "reload"]).status, 0);
    warm(&mut daemon, 2);
    std::fs::write(root.join("secret"), "word").expect("a secret");
    let secret = format!("key={}", root.join("secret").display());
    let claimed = daemon.cli(&["claim", "--name", "one", "--secret", &secret, "--", "sleep", "1000"]);
    assert_eq!(claimed.status, 0, "{claimed:?}");
    // The next claims will bring secrets too.
    daemon.wait_until("places for them", |daemon| (detached(daemon) > before).then_some(()));
    assert_eq!(daemon.cli(&["release", "one"]).status, 0);
    daemon.place().configure("");
    assert_eq!(daemon.cli(&["daemon", "reload"]).status, 0);
    daemon.wait_until("nothing of them", |daemon| (detached(daemon) == before).then_some(()));
    assert_eq!(daemon.stop(), 0);
}
