//! Hostile workers: small programs that try what HARDENING's catalogue lists, each in a real worker of a real daemon.
//!
//! A test here is worth something only if it goes red when the defence it is about is taken away; each was seen to. A hostile
//! program prints `key=value` lines and at last `told=all`, then stays.

mod cgroups;
mod descriptors;
mod ends;
mod environment;
mod floods;
mod identity;
mod network;
mod paths;
mod root_directory;
mod syscalls;
mod terminals;

use std::collections::BTreeMap;

use crate::fixture::Daemon;
use crate::look::{wait_healthy, wait_line, worker};

/// Every way to be somebody.
const IDENTITIES: [&str; 4] = ["dynamic", "mapped", "host:nobody", "unsafe-root"];

/// What every hostile program begins with: `tell`, and `attempt`, which tells `done` or the name of the error.
const PRELUDE: &str = r#"
import ctypes, errno, os, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def tell(key, value):
    print(f"{key}={value}", flush=True)
def attempt(key, deed):
    try:
        deed()
    except OSError as error:
        tell(key, errno.errorcode.get(error.errno, error.errno))
    except Exception as error:
        tell(key, type(error).__name__)
    else:
        tell(key, "done")
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if result == -1:
        raise OSError(ctypes.get_errno(), "refused")
    return result
"#;

/// A Python program as a pool's command; its braces are no placeholders.
fn python(program: &str) -> String {
    assert!(!program.contains("'''"), "the program is quoted by that");
    let program = program.replace('{', "{{").replace('}', "}}");
    format!("command = ['python3', '-c', '''{program}''']\n")
}

/// A shell program as a pool's command.
fn shell(program: &str) -> String {
    assert!(!program.contains("'''"), "the program is quoted by that");
    let program = program.replace('{', "{{").replace('}', "}}");
    format!("command = ['sh', '-c', '''{program}''']\n")
}

/// A hostile program that stays when it has told all.
fn hostile(program: &str) -> String {
    python(&format!("{PRELUDE}{program}\ntell('told', 'all')\ntime.sleep(100000)\n"))
}

/// What the worker `web.0` has told, once it has told all.
#[track_caller]
fn told(daemon: &mut Daemon) -> BTreeMap<String, String> {
    wait_healthy(daemon, 1);
    let lines =
        wait_line(daemon, "web.0", |line| line == "told=all" || (line.contains("Error") && !line.contains('=')));
    let told: BTreeMap<String, String> =
        lines.iter().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    assert!(told.contains_key("told"), "{lines:#?}");
    told
}

/// Runs a hostile program as the only worker of a daemon.
#[track_caller]
fn attack(settings: &str, program: &str) -> (Daemon, BTreeMap<String, String>) {
    let mut daemon = Daemon::start(&format!("[pool.web]\n{}{settings}", hostile(program)));
    let told = told(&mut daemon);
    (daemon, told)
}

/// Every identity that this machine can give.
fn identities() -> impl Iterator<Item = &'static str> {
    IDENTITIES.into_iter().filter(|identity| *identity != "mapped" || crate::needs::met(&[crate::needs::Need::Userns]))
}

/// The pid of the init of `web.0`, on this machine.
#[track_caller]
fn init_pid(daemon: &Daemon) -> u64 {
    worker(daemon, "web.0")["init_pid"].as_u64().expect("an init")
}

/// A file of `/proc/PID`.
#[track_caller]
pub(crate) fn proc_file(pid: u64, name: &str) -> String {
    let bytes =
        std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_else(|error| panic!("/proc/{pid}/{name}: {error}"));
    String::from_utf8_lossy(&bytes).into_owned()
}
