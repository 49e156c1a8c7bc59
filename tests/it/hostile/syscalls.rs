//! The default filter against a table of system calls by number, and ordinary programs against the filter.

use super::{attack, identities, shell};
use crate::fixture::Daemon;
use crate::look::{wait_certificate, wait_healthy};
use crate::needs::needs;

/// Numbers of x86_64, with arguments that the kernel itself would often let pass.
const DENIED: &str = "
buffer = ctypes.create_string_buffer(4096)
at = ctypes.byref(buffer)
name = ctypes.c_char_p(b'/tmp')
DENIED = dict(
    ptrace=(101, 0, 0, 0, 0), mount=(165, name, name, 0, 4096, 0), umount2=(166, name, 2), pivot_root=(155, name, name),
    unshare_user=(272, 0x10000000), unshare_ns=(272, 0x20000), unshare_files=(272, 0x400), setns=(308, 0, 0),
    bpf=(321, 0, at, 128), perf_event_open=(298, at, 0, -1, -1, 0), userfaultfd=(323, 1), keyctl=(250, 0, -3, 1),
    add_key=(248, ctypes.c_char_p(b'user'), name, name, 1, -2), request_key=(249, ctypes.c_char_p(b'user'), name, 0, -2),
    io_uring_setup=(425, 1, at), io_uring_enter=(426, 0, 0, 0, 0, 0), io_uring_register=(427, 0, 0, 0, 0),
    kexec_load=(246, 0, 0, 0, 0), kexec_file_load=(320, 0, 0, 0, 0, 0), init_module=(175, at, 0, name),
    finit_module=(313, 0, name, 0), delete_module=(176, name, 0), open_by_handle_at=(304, 0, at, 0),
    name_to_handle_at=(303, -100, name, at, at, 0), process_vm_readv=(310, os.getpid(), 0, 0, 0, 0, 0),
    process_vm_writev=(311, os.getpid(), 0, 0, 0, 0, 0), personality=(135, 0x40000), swapon=(167, name, 0), swapoff=(168, name),
    reboot=(169, 0xfee1dead, 672274793, 0, 0), iopl=(172, 0), ioperm=(173, 0, 1, 0), clock_settime=(227, 0, at),
    settimeofday=(164, 0, 0), adjtimex=(159, at), clock_adjtime=(305, 0, at), acct=(163, 0), quotactl=(179, 0, 0, 0, 0),
    syslog=(103, 10, 0, 0), open_tree=(428, -100, name, 0), move_mount=(429, -1, name, -1, name, 0), fsopen=(430, name, 0),
    fsconfig=(431, -1, 0, 0, 0, 0), fsmount=(432, -1, 0, 0), fspick=(433, -100, name, 0), mount_setattr=(442, -1, name, 0, at, 32),
    pidfd_getfd=(438, -1, 0, 0), kcmp=(312, os.getpid(), os.getpid(), 0, 0, 0), modify_ldt=(154, 0, at, 16),
    lookup_dcookie=(212, 0, at, 16), fanotify_init=(300, 0, 0), vhangup=(153,), sethostname=(170, name, 4),
    setdomainname=(171, name, 4), chroot=(161, name), migrate_pages=(256, 0, 0, 0, 0), move_pages=(279, 0, 0, 0, 0, 0, 0),
    set_mempolicy=(238, 0, 0, 0), mbind=(237, 0, 0, 0, 0, 0, 0), process_madvise=(440, -1, 0, 0, 0, 0),
    uselib=(134, name), ustat=(136, 0, at), sysfs=(139, 3), nfsservctl=(180, 0, 0, 0), quotactl_fd=(443, -1, 0, 0, 0),
    listmount=(458, at, at, 1, 0), statmount=(457, at, at, 1, 0),
)
for key, arguments in DENIED.items():
    attempt(key, lambda: call(*arguments))
attempt('clone3', lambda: call(435, at, 64))
for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
    def deed():
        if call(56, flag | 17, 0, 0, 0, 0) == 0:
            os._exit(0)
    attempt(f'clone {flag:x}', deed)
def foreign(number):
    pid = os.fork()
    if pid == 0:
        ctypes.set_errno(0)
        libc.syscall(ctypes.c_long(number))
        os._exit(ctypes.get_errno())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
tell('x32', foreign(0x40000000 | 39))
import mmap
def thirty_two():
    # mov eax, 20 (getpid of i386); int 0x80; ret
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(bytes([0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0xc3]))
    run = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    pid = os.fork()
    if pid == 0:
        os._exit(100 if run() > 0 else 101)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
tell('i386', thirty_two())
attempt('nothing such', lambda: call(5000))
";

#[test]
fn what_changes_the_system_is_refused_to_every_identity() {
    needs!(Root, CgroupTree, Python3);
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    for identity in identities() {
        let (_daemon, told) = attack(&format!("identity = '{identity}'\n"), DENIED);
        assert!(told.len() > 70, "{told:?}");
        for (deed, outcome) in &told {
            let wanted: &[&str] = match deed.as_str() {
                "told" => &["all"],
                // ENOSYS makes every C library take `clone`.
                "clone3" => &["ENOSYS"],
                // What is newer than the list may be unknown to libc, and to the kernel.
                "statmount" | "listmount" | "nothing such" => &["EPERM", "ENOSYS"],
                // Ended by SIGSYS, or refused.
                "x32" => &["-31", "38", "1"],
                // Ended by SIGSYS; or by SIGSEGV on a kernel without it.
                "i386" => &["-31", "-11"],
                _ => &["EPERM"],
            };
            assert!(wanted.contains(&outcome.as_str()), "{identity}: {deed} is {outcome}");
        }
    }
}

/// Programs that people run; each is left out where the machine has none.
const COMPATIBLE: &str = r#"
set -e
export HOME="$PWD"
have() { command -v "$1" >/dev/null 2>&1; }
python3 - <<'END'
import asyncio, concurrent.futures, ctypes, mmap, multiprocessing, os, signal, socket, sqlite3, subprocess, sys, tempfile, threading, time
out = []
threads = [threading.Thread(target=out.append, args=(n,)) for n in range(20)]
[t.start() for t in threads]; [t.join() for t in threads]
assert len(out) == 20
assert subprocess.run(["sh", "-c", "echo hello"], capture_output=True, text=True).stdout == "hello\n"
async def main():
    server = await asyncio.start_server(lambda r, w: (w.write(b"hi"), w.close()), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await reader.read() == b"hi"
    process = await asyncio.create_subprocess_exec("true")
    assert await process.wait() == 0
asyncio.run(main())
def twice(n):
    return 2 * n
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(twice, range(4)) == [0, 2, 4, 6]
db = sqlite3.connect("db"); db.execute("create table t (x)"); db.execute("insert into t values (1)"); db.commit()
assert socket.getaddrinfo("localhost", 80)
with tempfile.TemporaryFile() as file:
    file.write(b"x" * 4096); file.flush()
    assert mmap.mmap(file.fileno(), 4096)[:1] == b"x"
signal.signal(signal.SIGALRM, lambda *_: None); signal.setitimer(signal.ITIMER_REAL, 0.01); signal.pause()
main_end, side = os.openpty(); os.write(side, b"x"); assert os.read(main_end, 1) == b"x"
os.sched_setaffinity(0, os.sched_getaffinity(0)); os.getrandom(8); os.memfd_create("m"); os.pidfd_open(os.getpid())
END
echo python fine
if have git; then
    git init -q repo; cd repo; git config user.email a@b; git config user.name a
    echo x > x; git add x; git commit -q -m x; git log --oneline | grep -q x; git gc -q; git clone -q . ../copy; cd ..
fi
echo git fine
if have gcc; then
    printf '#include <stdio.h>\n#include <pthread.h>\nvoid*f(void*x){return x;}int main(){pthread_t t;pthread_create(&t,0,f,0);pthread_join(t,0);puts("built");}' > a.c
    gcc -pthread -o a a.c; ./a | grep -q built
fi
echo gcc fine
if have busybox; then
    busybox sh -c 'busybox seq 3 | busybox sort -r | busybox tar cf - a.c 2>/dev/null; busybox ls / >/dev/null; busybox ps >/dev/null'
    busybox timeout 5 busybox sleep 0
fi
echo busybox fine
if have node; then node -e 'require("worker_threads"); setTimeout(() => console.log("ok"), 1)' | grep -q ok; fi
echo node fine
"#;

#[test]
fn ordinary_programs_run_under_the_filter() {
    needs!(Root, CgroupTree, Python3);
    for identity in identities() {
        let mut daemon =
            Daemon::start(&format!("[pool.web]\nidentity = '{identity}'\nrestart = false\n{}", shell(COMPATIBLE)));
        let certificate = wait_certificate(&mut daemon, "web.0", 1);
        assert_eq!(certificate["cause"], "exited 0", "{identity}: {}", certificate["last_output"]);
    }
}

#[test]
fn without_a_filter_only_by_that_word() {
    needs!(Root, CgroupTree);
    let status = "grep Seccomp: /proc/self/status; exec sleep infinity";
    for (seccomp, mode) in [("default", "2"), ("unconfined", "0")] {
        let mut daemon = Daemon::start(&format!("[pool.web]\nseccomp = '{seccomp}'\n{}", shell(status)));
        wait_healthy(&mut daemon, 1);
        let lines = crate::look::wait_line(&mut daemon, "web.0", |line| line.starts_with("Seccomp:"));
        assert!(lines[0].ends_with(mode), "{seccomp}: {lines:?}");
    }
}
