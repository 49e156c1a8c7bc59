//! A service manager that keeps descriptors for the next daemon, and hands them over as systemd does.

#![expect(clippy::disallowed_methods, reason = "deadlines of tests run on the real clock")]

use std::os::fd::AsRawFd as _;
use std::time::Instant;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use crate::fixture::{Daemon, EVENT_DEADLINE};
use crate::look::{signal, wait_certificate, wait_healthy};
use crate::needs::needs;

/// Fetches descriptors of the test's process, puts them from 3 on, and becomes the program behind its arguments.
const HAND_OVER: &str = "
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
test = libc.syscall(434, int(sys.argv[1]), 0)
wanted = sys.argv[3].split(',')
fetched = [libc.syscall(438, test, int(number), 0) for number in wanted]
assert min(fetched) >= 0, os.strerror(ctypes.get_errno())
aside = [os.dup2(fd, 100 + place) for place, fd in enumerate(fetched)]
for place, fd in enumerate(aside): os.dup2(fd, 3 + place)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(wanted)), LISTEN_FDNAMES=sys.argv[2])
os.execvp(sys.argv[4], sys.argv[4:])
";

/// Since Linux 6.15 a pidfd knows how its process ended, whoever has reaped it.
fn a_pidfd_knows_the_exit() -> bool {
    let release = rustix::system::uname();
    let mut numbers =
        release.release().to_str().expect("ASCII").split(['.', '-']).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6_u32, 15_u32)
}

#[test]
fn a_pidfd_that_the_manager_kept_says_how_a_worker_ended_that_could_not() {
    needs!(Root, CgroupTree, Python3);
    let mut daemon =
        Daemon::start("[pool.web]\ncommand = ['sleep', 'infinity']\non_supervisor_death = 'forever'\nsize = 2\n");
    wait_healthy(&mut daemon, 2);
    let inspected = daemon.cli(&["inspect", "all", "--json"]).json();
    let worker = &inspected["workers"][0]["worker"];
    let init =
        worker["init_pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_else(|| panic!("{worker}"));
    let kept = pidfd_open(Pid::from_raw(init).expect("a pid"), PidfdFlags::empty()).expect("it runs");
    let null = std::fs::File::open("/dev/null").expect("open it");
    signal(i32::try_from(daemon.pid()).expect("a pid"), Signal::KILL);
    // Its init is the one that would have written down how it ended.
    signal(init, Signal::KILL);
    // The kernel keeps how it ended from when somebody has waited for it; that is this machine's first process.
    let deadline = Instant::now() + EVENT_DEADLINE;
    while std::path::Path::new(&format!("/proc/{init}")).exists() {
        assert!(Instant::now() < deadline, "nobody waits for the orphan {init}");
        std::thread::yield_now();
    }
    let fds = format!("{},{}", kept.as_raw_fd(), null.as_raw_fd());
    let names = format!("w{}:w99", worker["generation"]);
    let own = std::process::id().to_string();
    daemon.start_again_under(&["python3", "-c", HAND_OVER, &own, &names, &fds]);
    let told = wait_certificate(&mut daemon, worker["name"].as_str().expect("a name"), 1);
    let cause = if a_pidfd_knows_the_exit() { "signal 9" } else { "unknown" };
    assert_eq!(told["cause"], cause, "{told}");
    assert_eq!(told["generation"], worker["generation"]);
    wait_healthy(&mut daemon, 2);
    assert!(daemon.stderr().contains("\"w99\": it is nothing of ours"), "{}", daemon.stderr());
}
