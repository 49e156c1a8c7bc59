//! What a worker sees and may do: told by the worker itself, held against what the machine is.

use std::collections::BTreeMap;

use crate::fixture::Daemon;
use crate::look::{wait_healthy, wait_line, worker};
use crate::needs::needs;

/// Tells about itself, one `key=value` a line, then stays.
const TELL: &str = r#"
tell() {{ echo "$1=$2"; }}
tell cwd "$(pwd)"
tell net "$(readlink /proc/self/ns/net)"
tell pid "$$"
tell procs "$(ls /proc | grep '^[0-9]' | sort -n | tail -1)"
tell uid "$(grep '^Uid:' /proc/self/status | tr -s '\t' ' ')"
tell groups "$(grep '^Groups:' /proc/self/status | tr -s '\t' ' ')"
for set in CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp; do
    tell $set "$(grep "^$set:" /proc/self/status | tr -d ' \t' | cut -d: -f2)"
done
tell cgroup "$(grep '^0:' /proc/self/cgroup)"
(echo x > /etc/halsup-test) 2>/dev/null && tell etc written || tell etc refused
(echo x > /proc/sys/kernel/core_pattern) 2>/dev/null && tell sysctl written || tell sysctl refused
(echo x > own-file) 2>/dev/null && tell own written || tell own refused
(echo x > /tmp/file) 2>/dev/null && tell tmp written || tell tmp refused
tell sockets "$(find / -xdev -name control.sock 2>/dev/null | head -1)"
tell dev "$(ls /dev | tr '\n' ' ')"
tell run "$(ls -A /run | tr '\n' ' ')"
tell hostname "$(cat /proc/sys/kernel/hostname)"
tell fds "$(ls /proc/self/fd | tr '\n' ' ')"
tell core "$(ulimit -c)"
tell oom "$(cat /proc/self/oom_score_adj)"
(unshare -m true) 2>/dev/null && tell unshare allowed || tell unshare refused
(mount -t tmpfs none /tmp) 2>/dev/null && tell mount allowed || tell mount refused
(readlink /proc/1/exe) >/dev/null 2>&1 && tell init readable || tell init hidden
tell env "$(env | cut -d= -f1 | sort | tr '\n' ' ')"
tell link "$(readlink release)"
tell told all
exec sleep infinity
"#;

fn tell(settings: &str) -> (Daemon, BTreeMap<String, String>) {
    let mut daemon = Daemon::start(&format!(
        "[pool.web]\ncommand = ['sh', '-c', '''{TELL}''']\nlink = ['/etc/os-release', '/etc/hostname']\n{settings}"
    ));
    wait_healthy(&mut daemon, 1);
    let lines = wait_line(&mut daemon, "web.0", |line| line == "told=all");
    let told =
        lines.iter().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    (daemon, told)
}

fn hold_no_privileges(told: &BTreeMap<String, String>) {
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(told[set], "0000000000000000", "{set}");
    }
    assert_eq!(told["NoNewPrivs"], "1");
    assert_eq!(told["Seccomp"], "2");
    for refused in ["etc", "sysctl", "unshare", "mount"] {
        assert_eq!(told[refused], "refused", "{refused}");
    }
}

#[test]
fn a_worker_has_its_own_everything_but_the_network() {
    needs!(Root, CgroupTree);
    let (daemon, told) = tell("");
    let own = std::fs::read_link("/proc/self/ns/net").expect("read own network namespace");
    assert_eq!(told["net"], own.to_string_lossy());
    assert_eq!(told["cwd"], "/run/worker/work");
    assert_eq!(told["pid"], "2");
    assert!(told["procs"].parse::<u32>().expect("a pid") < 1000, "only its own processes: {}", told["procs"]);
    hold_no_privileges(&told);
    assert_eq!(told["cgroup"], "0::/");
    assert_eq!((told["own"].as_str(), told["tmp"].as_str()), ("written", "written"));
    assert_eq!(told["hostname"], "web-0");
    assert_eq!(told["fds"], "0 1 2 3 ", "3 is the directory that ls reads");
    assert_eq!(told["core"], "0");
    assert_eq!(told["oom"], "0", "the daemon is not for the killer, its workers are");
    assert_eq!(told["sockets"], "");
    assert_eq!(told["run"], "secrets worker ", "a place for secrets, where none are");
    assert_eq!(told["dev"], "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero ");
    assert_eq!(told["init"], "hidden");
    let uid: Vec<&str> = told["uid"].split(' ').collect();
    assert!(uid[1].parse::<u32>().expect("a uid") >= 1_879_048_192, "{uid:?}");
    assert_eq!(told["groups"].trim(), format!("Groups: {}", uid[1]));
    assert!(!std::fs::exists("/tmp/file").expect("look at /tmp"), "/tmp is the worker's own");
    drop(daemon);
}

#[test]
fn the_environment_is_built_from_nothing() {
    needs!(Root, CgroupTree);
    let (daemon, told) = tell("base_port = 47100\nenv = { GREETING = 'hello from {worker}' }\nready = 'exec'\n");
    let expected =
        "GREETING HALSUP_INSTANCE HALSUP_POOL HALSUP_SLOT HALSUP_WORKER HOME LANG LOGNAME PATH PORT PWD USER ";
    let told_names: Vec<&str> =
        told["env"].split(' ').filter(|name| *name != "_" && *name != "SHLVL" && *name != "OLDPWD").collect();
    assert_eq!(told_names.join(" "), expected);
    drop(daemon);
}

#[test]
fn links_appear_in_the_directory() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(
        "[pool.web]\ncommand = ['sh', '-c', 'readlink os-release; cat os-release | head -1; exec sleep infinity']\nlink = ['/etc/os-releas?']\n",
    );
    let lines = wait_line(&mut daemon, "web.0", |line| line.contains("NAME"));
    assert_eq!(lines[0], "/etc/os-release");
}

#[test]
fn a_mapped_worker_is_root_of_nothing() {
    needs!(Root, CgroupTree, Userns);
    let (daemon, told) = tell("identity = 'mapped'\n");
    assert_eq!(told["uid"], "Uid: 0 0 0 0");
    hold_no_privileges(&told);
    let worker = crate::look::worker(&daemon, "web.0");
    let outside =
        std::fs::read_to_string(format!("/proc/{}/status", crate::look::pid(&worker))).expect("read its status");
    let uid = outside.lines().find_map(|line| line.strip_prefix("Uid:")).expect("a Uid line");
    assert!(uid.split_whitespace().all(|uid| uid.parse::<u32>().expect("a uid") > 1_879_048_192), "{uid}");
}

#[test]
fn an_unsafe_root_worker_still_cannot_change_the_host() {
    needs!(Root, CgroupTree);
    let (_daemon, told) = tell("identity = 'unsafe-root'\n");
    assert_eq!(told["uid"], "Uid: 0 0 0 0");
    hold_no_privileges(&told);
}

#[test]
fn a_worker_runs_as_a_user_of_the_host() {
    needs!(Root, CgroupTree);
    let (_daemon, told) = tell("identity = 'host:nobody'\n");
    assert_eq!(told["uid"], "Uid: 65534 65534 65534 65534");
    hold_no_privileges(&told);
}

#[test]
fn a_network_of_its_own_has_loopback_only() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(
        "[pool.web]\nnet = 'own'\ncommand = ['sh', '-c', 'readlink /proc/self/ns/net; cat /proc/net/dev | tail -n +3 | cut -d: -f1; echo end; exec sleep infinity']\n",
    );
    let lines = wait_line(&mut daemon, "web.0", |line| line == "end");
    let own = std::fs::read_link("/proc/self/ns/net").expect("read own network namespace");
    assert_ne!(lines[0], own.to_string_lossy());
    assert_eq!(lines[1].trim(), "lo");
    assert_eq!(lines.len(), 3, "{lines:?}");
}

#[test]
#[expect(clippy::disallowed_types, reason = "what the kernel says of a process is asked by another program")]
fn only_the_daemon_and_inits_take_short_turns_on_a_processor() {
    needs!(Root, CgroupTree, Python3);
    let mut daemon = Daemon::start("[pool.web]\ncommand = ['sleep', 'infinity']\n");
    wait_healthy(&mut daemon, 1);
    let worker = worker(&daemon, "web.0");
    // What a process of this kernel's has that asks for short turns, one that asks for nothing, and these.
    let script = "
import ctypes, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def turn(pid):
    attr = ctypes.create_string_buffer(48)
    assert libc.syscall(315, pid, attr, 48, 0) == 0, ctypes.get_errno()
    return struct.unpack('IIQiIQQQ', attr.raw)[5]
print(turn(0))
asked = struct.pack('IIQiIQQQ', 48, 0, 0, 0, 0, 100000, 0, 0)
assert libc.syscall(314, 0, ctypes.create_string_buffer(asked, 48), 0) == 0
print(turn(0))
for pid in sys.argv[1:]:
    print(turn(int(pid)))";
    let pids = [daemon.pid().to_string(), worker["init_pid"].to_string(), worker["pid"].to_string()];
    let mut command = std::process::Command::new("python3");
    let told = crate::place::run(command.args(["-c", script]).args(pids));
    assert_eq!(told.status, 0, "{told:?}");
    let [usual, short, of_daemon, of_init, of_program] = told.stdout.lines().collect::<Vec<_>>()[..] else {
        panic!("{told:?}")
    };
    assert_eq!([of_daemon, of_init, of_program], [short, short, usual]);
    assert_eq!(daemon.stop(), 0);
}
