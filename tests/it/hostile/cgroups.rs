//! A worker against its own cgroup and limits: it can change nothing of them, and however it multiplies, a stop ends it.

use std::fs;
use std::path::PathBuf;

use super::{attack, hostile, identities, python, told};
use crate::fixture::Daemon;
use crate::look::{wait_healthy, worker};
use crate::needs::needs;

const REACH: &str = "
mounts = open('/proc/self/mountinfo').read()
tell('mounted', [line for line in mounts.splitlines() if ' - cgroup' in line])
tell('sys', [name for name in ('cgroup.procs', 'unified', 'cgroup.controllers') if os.path.exists('/sys/fs/cgroup/' + name)])
attempt('mkdir', lambda: os.mkdir('/sys/fs/cgroup/mine'))
def mount(kind):
    def deed():
        if libc.mount(b'none', b'/tmp', kind, 0, None) != 0:
            raise OSError(ctypes.get_errno(), 'refused')
    return deed
attempt('mount cgroup2', mount(b'cgroup2'))
attempt('mount cgroup', mount(b'cgroup'))
attempt('fsopen', lambda: call(430, ctypes.c_char_p(b'cgroup2'), 0))
attempt('unshare', lambda: call(272, 0x02000000))
attempt('setns', lambda: call(308, os.open('/proc/self/ns/cgroup', 0), 0))
attempt('root', lambda: os.chroot('/tmp'))
tell('cgroup', open('/proc/self/cgroup').read().split()[-1])
";

/// The only directory of a worker's cgroup.
fn worker_cgroup(daemon: &Daemon) -> PathBuf {
    let pool = daemon.cgroup().expect("the instance's cgroup").join("pool.web");
    let mut dirs = fs::read_dir(&pool).expect("list the pool's cgroup").flatten().map(|entry| entry.path());
    dirs.find(|path| path.is_dir()).unwrap_or_else(|| panic!("no worker in {pool:?}"))
}

fn processes(cgroup: &std::path::Path) -> Vec<u64> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

#[test]
fn a_worker_cannot_reach_a_cgroup() {
    needs!(Root, CgroupTree, Python3);
    for identity in identities() {
        for seccomp in ["default", "unconfined"] {
            let (_daemon, told) = attack(&format!("identity = '{identity}'\nseccomp = '{seccomp}'\n"), REACH);
            assert_eq!((told["mounted"].as_str(), told["sys"].as_str()), ("[]", "[]"), "{identity}, {seccomp}");
            assert_eq!(told["cgroup"], "0::/", "{identity}, {seccomp}: it sees no more than itself");
            for deed in ["mkdir", "mount cgroup2", "mount cgroup", "fsopen", "unshare", "setns", "root"] {
                let outcome = told[deed].as_str();
                assert!(
                    ["EPERM", "EACCES", "EROFS", "ENOENT"].contains(&outcome),
                    "{identity}, {seccomp}: {deed} is {outcome}"
                );
            }
        }
    }
}

#[test]
fn a_fork_bomb_is_ended_by_a_stop_every_time() {
    needs!(Root, CgroupTree, Python3);
    const ROUNDS: usize = 20;
    // The limit of the worker's own uid, so that it also holds where there is no pids controller.
    let bomb =
        "import os, time\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        time.sleep(0.05)";
    let mut daemon = Daemon::start(&format!(
        "[pool.web]\npids = 'max'\nstop_grace = '50ms'\nstop_signal = 'USR1'\nrlimits = {{ nproc = 300 }}\n{}",
        python(&format!("import signal\nsignal.signal(signal.SIGUSR1, signal.SIG_IGN)\n{bomb}"))
    ));
    for round in 0..ROUNDS {
        wait_healthy(&mut daemon, 1);
        let cgroup = worker_cgroup(&daemon);
        let bombs = daemon.wait_until("300 processes", |_| Some(processes(&cgroup)).filter(|pids| pids.len() >= 299));
        let stopped = daemon.cli(&["stop", "web"]);
        assert_eq!(stopped.status, 0, "round {round}: {stopped:?}");
        assert!(!cgroup.exists(), "round {round}: its cgroup is gone");
        let uid = worker(&daemon, "web.0")["uid"].as_u64();
        let alive: Vec<_> = bombs
            .iter()
            .filter(|pid| {
                fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|at| at.contains(daemon.instance()))
            })
            .collect();
        assert!(alive.is_empty(), "round {round}, uid {uid:?}: {alive:?} survived");
        assert_eq!(daemon.cli(&["start", "web"]).status, 0);
    }
}

#[test]
fn what_a_worker_may_use_up_has_a_bound() {
    needs!(Root, CgroupTree, Python3);
    let generous = "import os,resource,sys\nmost = int(open('/proc/sys/fs/nr_open').read())\ntry: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))\nexcept (OSError, ValueError): pass\nos.execv(sys.argv[1], sys.argv[1:])";
    let program = "
import resource
for name in ('NOFILE', 'CORE', 'MEMLOCK', 'MSGQUEUE', 'SIGPENDING'):
    tell(name, resource.getrlimit(getattr(resource, 'RLIMIT_' + name))[1])
for place in ('/tmp', '/dev/shm'):
    found = os.statvfs(place)
    tell(f'{place} bytes', found.f_blocks * found.f_frsize)
    tell(f'{place} inodes', found.f_files)
for place in ('/run', '/dev', '/sys', '/', '/var/tmp', '/run/worker'):
    attempt(f'write {place}', lambda: os.open(place + '/file', os.O_CREAT | os.O_WRONLY))
def raise_limit():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard + 1))
attempt('raise', raise_limit)
held = []
# Fewer than it may have, so that reaching the end is quick everywhere.
resource.setrlimit(resource.RLIMIT_NOFILE, (1000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
def descriptors():
    while True:
        held.append(os.dup(0))
attempt('descriptors', descriptors)
for fd in held:
    os.close(fd)
terminals = []
def open_terminals():
    while True:
        terminals.append(os.openpty())
attempt('terminals', open_terminals)
tell('how many', len(terminals))
";
    let config = format!("[pool.web]\n{}", hostile(program));
    let mut daemon = Daemon::start_under(&["python3", "-c", generous], &config);
    let told = told(&mut daemon);
    let limits = super::proc_file(daemon.pid().into(), "limits");
    let own = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a line");
    let own: u64 = own.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number");
    assert_eq!(told["NOFILE"], own.min(65_536).to_string(), "the daemon has {own}");
    for place in ["/tmp", "/dev/shm"] {
        assert_eq!(told[&format!("{place} bytes")], (4_u64 << 30).to_string(), "what `memory` is by default");
        assert_eq!(told[&format!("{place} inodes")], "65536");
    }
    assert_eq!(told["descriptors"], "EMFILE");
    assert_eq!(told["terminals"], "ENOSPC");
    assert_eq!(told["how many"], "64");
    assert_eq!(told["raise"], "ValueError", "not allowed to raise maximum limit");
    for place in ["/run", "/dev", "/sys", "/", "/var/tmp", "/run/worker"] {
        assert!(["EROFS", "EACCES", "EPERM"].contains(&told[&format!("write {place}")].as_str()), "{place}: {told:?}");
    }
}
