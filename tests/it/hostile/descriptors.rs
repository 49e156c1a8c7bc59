//! What a worker can reach through descriptors, `/proc` and memory: of its init, of the daemon, of who started the daemon.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{SealFlags, fcntl_get_seals};

use super::{attack, hostile, identities, init_pid, proc_file, told};
use crate::fixture::Daemon;
use crate::look::worker;
use crate::needs::needs;
use crate::ports::free_ports;

/// Leaves descriptors 3 to 20 and 200 open for the daemon, as careless callers do.
const LEAKING: &str = "import os,sys\nfd = os.open('/etc/passwd', 0)\nfor n in [*range(3, 21), 200]:\n    os.dup2(fd, n) if n != fd else os.set_inheritable(fd, True)\nos.execv(sys.argv[1], sys.argv[1:])";

const LIST: &str = "
fds = sorted(os.listdir('/proc/self/fd'), key=int)
tell('fds', ' '.join(f'{n}:{os.readlink(f\"/proc/self/fd/{n}\")}' for n in fds if os.path.exists(f'/proc/self/fd/{n}') or n in '012'))
";

fn links(pid: u64) -> BTreeMap<u32, String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("list descriptors").flatten();
    let link = |entry: &fs::DirEntry| fs::read_link(entry.path()).ok().map(|to| to.to_string_lossy().into_owned());
    entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, link(&entry)?))).collect()
}

#[test]
fn what_the_starter_left_open_reaches_nobody() {
    needs!(Root, CgroupTree, Python3);
    let port = free_ports(1);
    let config = format!("[pool.web]\nlisten = ['tcp:127.0.0.1:{port}']\n{}", hostile(LIST));
    let mut daemon = Daemon::start_under(&["python3", "-c", LEAKING], &config);
    let told = told(&mut daemon);
    let seen: Vec<&str> = told["fds"].split(' ').collect();
    assert_eq!(seen.len(), 4, "0, 1, 2 and the listener: {seen:?}");
    assert!(seen[0].starts_with("0:") && seen[0].ends_with("/null"), "{seen:?}");
    for (fd, kind) in [(1, "pipe:"), (2, "pipe:"), (3, "socket:")] {
        assert!(seen[fd].starts_with(&format!("{fd}:{kind}")), "{seen:?}");
    }
    let of_daemon = links(daemon.pid().into());
    assert!(of_daemon.values().all(|link| link != "/etc/passwd"), "{of_daemon:?}");
    let of_init = links(init_pid(&daemon));
    let kinds = ["/null", "pipe:[", "socket:[", "/memfd:", "anon_inode:[signalfd]", "anon_inode:[pidfd]", "/exits"];
    let known = |link: &String| kinds.iter().any(|kind| link.starts_with(kind) || link.ends_with(kind));
    assert!(of_init.values().all(known), "{of_init:?}");
    // 0, 1, 2, its socket, the start image, the listener, the ten that it keeps for a later daemon, the signalfd.
    assert_eq!(of_init.len(), 17, "{of_init:?}");
}

#[test]
fn the_program_of_the_init_cannot_be_written() {
    needs!(Root, CgroupTree, Python3);
    let binary = std::env::var_os("HALSUP_TEST_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_halsup").into());
    let before = fs::read(&binary).expect("read the program");
    for identity in identities() {
        let (daemon, told) = attack(
            &format!("identity = '{identity}'\n"),
            "
opened = set()
for _ in range(300):
    for name in os.listdir('/proc'):
        if name.isdigit() and name != str(os.getpid()):
            for what in ('exe', 'fd/0', 'fd/1', 'fd/2', 'fd/3', 'fd/4', 'fd/5', 'mem', 'map_files', 'root', 'cwd'):
                try:
                    os.close(os.open(f'/proc/{name}/{what}', os.O_WRONLY))
                    opened.add(f'{name}/{what}')
                except OSError:
                    pass
tell('opened', sorted(opened))
",
        );
        assert_eq!(told["opened"], "[]", "{identity}");
        let init = init_pid(&daemon);
        let exe = fs::read_link(format!("/proc/{init}/exe")).expect("read the link");
        assert!(exe.to_string_lossy().starts_with("/memfd:"), "{identity}: {exe:?}");
        let file = fs::File::open(format!("/proc/{init}/exe")).expect("open the init's program");
        let all = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        assert!(fcntl_get_seals(&file).expect("it has seals").contains(all), "{identity}");
    }
    assert!(fs::read(&binary).expect("read the program") == before, "the program on this machine is unchanged");
}

/// Without the system call filter, so that it is the init's own defence that is met.
const REACH_INIT: &str = r"
def trace(request):
    def deed():
        if libc.ptrace(ctypes.c_long(request), 1, None, None) == -1:
            raise OSError(ctypes.get_errno(), 'refused')
    return deed
attempt('seize', trace(0x4206))
attempt('attach', trace(16))
attempt('mem', lambda: os.open('/proc/1/mem', os.O_RDONLY))
attempt('mem_write', lambda: os.open('/proc/1/mem', os.O_WRONLY))
attempt('environ', lambda: open('/proc/1/environ').read())
attempt('maps', lambda: open('/proc/1/maps').read())
attempt('fd', lambda: os.readlink('/proc/1/fd/3'))
attempt('fd_open', lambda: os.open('/proc/1/fd/4', os.O_RDONLY))
attempt('root', lambda: os.readlink('/proc/1/root'))
pidfd = os.pidfd_open(1)
attempt('getfd', lambda: call(438, pidfd, 3, 0))
class Iov(ctypes.Structure):
    _fields_ = [('base', ctypes.c_void_p), ('len', ctypes.c_size_t)]
buffer = ctypes.create_string_buffer(8)
own = Iov(ctypes.addressof(buffer), 8)
far = Iov(0x400000, 8)
attempt('vm_read', lambda: call(310, 1, ctypes.byref(own), 1, ctypes.byref(far), 1, 0))
";

#[test]
fn the_init_cannot_be_traced_or_read() {
    needs!(Root, CgroupTree, Python3);
    for identity in identities() {
        for seccomp in ["default", "unconfined"] {
            let settings = format!("identity = '{identity}'\nseccomp = '{seccomp}'\n");
            let (_daemon, told) = attack(&settings, REACH_INIT);
            for (deed, outcome) in told.iter().filter(|(deed, _)| *deed != "told") {
                assert!(["EPERM", "EACCES"].contains(&outcome.as_str()), "{identity}, {seccomp}: {deed} is {outcome}");
            }
        }
    }
}

/// Whether the readable memory of a process holds `needle`.
fn memory_holds(pid: u64, needle: &[u8]) -> bool {
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("open its memory");
    let ranges = proc_file(pid, "maps");
    let mut looked_at = 0;
    let found = ranges.lines().filter(|line| line.contains(" r")).any(|line| {
        let (from, to) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let (from, to) = (u64::from_str_radix(from, 16).expect("hex"), u64::from_str_radix(to, 16).expect("hex"));
        let mut bytes = vec![0; usize::try_from(to - from).expect("it fits")];
        // Pages of the kernel's own, such as [vvar], cannot be read.
        if memory.read_exact_at(&mut bytes, from).is_err() {
            return false;
        }
        looked_at += bytes.len();
        bytes.windows(needle.len()).any(|window| window == needle)
    });
    assert!(looked_at > 0, "something of {pid} can be read");
    found
}

#[test]
fn the_init_has_nothing_of_the_daemons_memory() {
    needs!(Root, CgroupTree, Python3);
    let canary = format!("canary-{}-of-the-daemon", std::process::id());
    let variable = format!("SECRET_OF_ANOTHER={canary}");
    let mut daemon = Daemon::start_under(
        &["env", &variable],
        &format!(
            "[pool.web]\n{}[pool.other]\ncommand = ['sleep', 'infinity']\nenv = {{ TOKEN = '{canary}' }}\n",
            hostile("")
        ),
    );
    crate::look::wait_healthy(&mut daemon, 2);
    told_by_web(&mut daemon);
    assert!(memory_holds(daemon.pid().into(), canary.as_bytes()), "the daemon itself knows it");
    assert!(!memory_holds(init_pid(&daemon), canary.as_bytes()), "the init does not");
    let program = worker(&daemon, "web.0")["pid"].as_u64().expect("a pid");
    assert!(!memory_holds(program, canary.as_bytes()), "nor does the program of another pool");
}

fn told_by_web(daemon: &mut Daemon) {
    crate::look::wait_line(daemon, "web.0", |line| line == "told=all");
}

#[test]
fn the_null_of_workers_is_not_the_hosts() {
    needs!(Root, CgroupTree, Python3);
    let mode = || fs::metadata("/dev/null").map(|meta| std::os::unix::fs::PermissionsExt::mode(&meta.permissions()));
    let before = mode().expect("look at /dev/null");
    let (_daemon, told) = attack(
        "identity = 'unsafe-root'\n",
        "
attempt('own', lambda: os.fchmod(0, 0o666))
attempt('path', lambda: os.chmod('/dev/null', 0o666))
attempt('times', lambda: os.utime(0, (1, 1)))
tell('null', os.fstat(0).st_rdev == os.makedev(1, 3))
",
    );
    assert_eq!(before, mode().expect("look at /dev/null"));
    assert_eq!((told["own"].as_str(), told["path"].as_str(), told["times"].as_str()), ("EROFS", "EROFS", "EROFS"));
    assert_eq!(told["null"], "True");
    let mut nothing = Vec::new();
    fs::File::open("/dev/null").and_then(|mut null| null.read_to_end(&mut nothing)).expect("read /dev/null");
}
