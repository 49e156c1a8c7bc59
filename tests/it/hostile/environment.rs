//! What the daemon has in its environment, and what it would leave in a core, stays with it.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;

use rustix::process::Signal;

use super::{hostile, init_pid, proc_file, python, shell, told};
use crate::fixture::Daemon;
use crate::look::{signal, wait_certificate, wait_healthy, worker};
use crate::needs::needs;

/// Every file below `dir` that holds `needle`.
fn holding(dir: &Path, needle: &[u8], found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).expect("list").flatten() {
        let path = entry.path();
        let kind = entry.file_type().expect("look at it");
        if kind.is_dir() {
            holding(&path, needle, found);
        } else if kind.is_file() && fs::read(&path).expect("read").windows(needle.len()).any(|window| window == needle)
        {
            found.push(path.display().to_string());
        }
    }
}

#[test]
fn nothing_of_the_daemons_environment_reaches_workers_or_files() {
    needs!(Root, CgroupTree, Python3);
    let program = "
tell('environ', sorted(os.environ))
tell('all', ' '.join(open(f'/proc/{pid}/environ').read().replace(chr(0), ' ') for pid in ('self',)))
tell('auxiliary', [pid for pid in os.listdir('/proc') if pid.isdigit()])
";
    let wrapper = [
        "env",
        "HALSUP_SECRET=canary-in-a-variable",
        "SECRET=canary-in-a-variable",
        "LD_PRELOAD=/nonexistent/preloaded.so",
        "LISTEN_FDS=3",
        "PYTHONINSPECT=canary-in-a-variable",
    ];
    let mut daemon = Daemon::start_under(&wrapper, &format!("log_level = 'trace'\n[pool.web]\n{}", hostile(program)));
    let told = told(&mut daemon);
    for word in ["canary", "preload", "LD_", "NOTIFY_SOCKET", "LISTEN_", "SECRET"] {
        assert!(!told["environ"].contains(word) && !told["all"].contains(word), "{word}: {told:?}");
    }
    assert!(proc_file(daemon.pid().into(), "environ").contains("canary-in-a-variable"), "the daemon has it");
    assert_eq!(proc_file(init_pid(&daemon), "environ"), "", "the init has nothing at all");
    let program = worker(&daemon, "web.0")["pid"].as_u64().expect("a pid");
    assert!(!proc_file(program, "environ").contains("canary"));
    let mut found = Vec::new();
    holding(&daemon.path(""), b"canary-in-a-variable", &mut found);
    assert_eq!(found, [""; 0]);
    for question in [&["inspect", "web.0", "--json"][..], &["daemon", "status", "--json"], &["events", "--json"]] {
        assert!(!daemon.cli(question).stdout.contains("canary"), "{question:?}");
    }
}

/// Starts the daemon with cores allowed, in a directory that they could be written to.
const DUMPING: &str = "import os,resource,sys\nresource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)\nos.chdir('/tmp')\nos.execv(sys.argv[1], sys.argv[1:])";

#[test]
fn a_worker_that_aborts_leaves_no_core() {
    needs!(Root, CgroupTree, Python3);
    let program = "sh -c \"kill -ABRT \\$\\$\"; ls -A; kill -SEGV $$";
    let config = format!("[pool.web]\nrestart = false\n{}", shell(program));
    let mut daemon = Daemon::start_under(&["python3", "-c", DUMPING], &config);
    let certificate = wait_certificate(&mut daemon, "web.0", 1);
    assert_eq!(certificate["cause"], "signal 11", "{certificate}");
    let words = certificate["last_output"].as_str().expect("output");
    assert!(!words.contains("core"), "{words}");
}

#[test]
fn no_core_of_a_worker_is_offered_to_the_hosts_crash_handler() {
    needs!(Root, CgroupTree, Python3);
    let config = format!(
        "[pool.web]\n{}",
        python(
            "import os, resource, time\nprint('core', resource.getrlimit(resource.RLIMIT_CORE), flush=True)\npid = os.fork()\nif pid == 0:\n    os.abort()\nprint('dumped', os.WCOREDUMP(os.waitpid(pid, 0)[1]), os.listdir('.'), flush=True)\ntime.sleep(100000)"
        )
    );
    let mut daemon = Daemon::start_under(&["python3", "-c", DUMPING], &config);
    wait_healthy(&mut daemon, 1);
    let lines = crate::look::wait_line(&mut daemon, "web.0", |line| line.starts_with("dumped"));
    // One byte, and not none: with one the kernel does not start the program that core_pattern may name.
    assert_eq!(lines, ["core (1, 1)", "dumped False []"]);
}

#[test]
fn an_aborted_daemon_leaves_no_core_and_the_next_one_cleans_up() {
    needs!(Root, CgroupTree, Python3);
    let config = "[pool.web]\nsize = 3\non_supervisor_death = '0s'\ncommand = ['sleep', 'infinity']\n";
    let mut daemon = Daemon::start_under(&["python3", "-c", DUMPING], config);
    let workers = wait_healthy(&mut daemon, 3);
    // Not none but one byte: none would not keep the kernel from starting the program that core_pattern may name.
    let limits = proc_file(daemon.pid().into(), "limits");
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).expect("a line");
    assert_eq!(core.split_whitespace().collect::<Vec<_>>(), ["1", "unlimited", "bytes"]);
    signal(i32::try_from(daemon.pid()).expect("a pid"), Signal::ABORT);
    let ended = daemon.start_again();
    assert_eq!((ended.signal(), ended.core_dumped()), (Some(6), false), "{ended}");
    for worker in &workers {
        let pid = worker["pid"].as_u64().expect("a pid");
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{worker} is gone");
    }
    wait_healthy(&mut daemon, 3);
}
