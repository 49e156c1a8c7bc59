//! Settings of a pool, each shown by what its worker sees.

#![expect(clippy::disallowed_types, reason = "a process that lends its network namespace is no worker")]

use std::os::unix::fs::PermissionsExt as _;

use crate::fixture::Daemon;
use crate::look::{wait_healthy, wait_line};
use crate::needs::needs;

/// A pool whose worker runs this script and says `end` when it has told all.
fn tell(settings: &str, script: &str) -> (Daemon, Vec<String>) {
    let script = script.replace('{', "{{").replace('}', "}}");
    let mut daemon = Daemon::start(&format!(
        "[pool.web]\n{settings}command = ['sh', '-c', '''{script}\necho end; exec sleep infinity''']\n"
    ));
    let lines = wait_line(&mut daemon, "web.0", |line| line == "end");
    (daemon, lines)
}

#[test]
fn a_network_namespace_is_joined_by_its_path() {
    needs!(Root, CgroupTree);
    let mut lender = std::process::Command::new("unshare").args(["-n", "sleep", "1000"]).spawn().expect("run unshare");
    let path = format!("/proc/{}/ns/net", lender.id());
    let own = std::fs::read_link("/proc/self/ns/net").expect("read own network namespace");
    // The program is another one once it has left this namespace.
    let lent = (0..).find_map(|_| std::fs::read_link(&path).ok().filter(|lent| *lent != own)).expect("it is lent");
    let (daemon, lines) = tell(&format!("net = '{path}'\n"), "readlink /proc/self/ns/net");
    assert_eq!(lines[0], lent.to_string_lossy());
    drop(daemon);
    lender.kill().expect("end the lender");
    lender.wait().expect("reap the lender");
}

#[test]
fn binds_are_read_only_unless_they_are_said_to_be_writable() {
    needs!(Root, CgroupTree);
    let shared = tempfile::tempdir().expect("make a directory");
    let path = shared.path().to_str().expect("ASCII");
    std::fs::write(shared.path().join("given"), "from the host\n").expect("write");
    std::fs::set_permissions(shared.path(), std::fs::Permissions::from_mode(0o777)).expect("open the directory");
    let script = "cat /srv/given; (echo x > /srv/ro) 2>/dev/null && echo wrote || echo refused
(echo x > /mnt/rw) 2>/dev/null && echo wrote || echo refused; cat /run/given";
    let bind = format!("bind = ['{path}:/srv', '{path}:/mnt:rw', '{path}/given:/run/given']\n");
    let (_daemon, lines) = tell(&bind, script);
    assert_eq!(lines, ["from the host", "refused", "wrote", "from the host", "end"]);
    assert!(shared.path().join("rw").exists() && !shared.path().join("ro").exists());
}

#[test]
fn a_bind_that_cannot_be_is_said_before_anything_runs() {
    needs!(Root, CgroupTree);
    let place = crate::place::Place::new("[pool.web]\ncommand = ['true']\nbind = ['/nowhere/at/all:/srv']\n");
    let output = place.cli(&["daemon", "run"]);
    assert_eq!(output.status, 1, "{output:?}");
    assert!(output.stderr.contains("bind /nowhere/at/all: No such file or directory"), "{output:?}");
}

#[test]
fn resource_limits_of_processes_are_set() {
    needs!(Root, CgroupTree);
    let (_daemon, lines) = tell(
        "rlimits = { nofile = 77, fsize = 1048576, core = 0 }\n",
        "ulimit -n; grep 'Max file size' /proc/self/limits | tr -s ' ' | cut -d' ' -f4; grep 'Max pending signals' /proc/self/limits | tr -s ' ' | cut -d' ' -f4",
    );
    assert_eq!(lines[..2], ["77", "1048576"]);
    let pending: u64 = lines[2].parse().expect("a number");
    assert!(pending <= 4096, "what is not said is not the daemon's own: {pending}");
}

#[test]
fn a_profile_in_dockers_format_is_obeyed() {
    needs!(Root, CgroupTree);
    let profile = tempfile::NamedTempFile::new().expect("make a file");
    let json = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],
        "syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28}]}"#;
    std::fs::write(profile.path(), json).expect("write the profile");
    let (_daemon, lines) = tell(
        &format!("seccomp = '{}'\n", profile.path().display()),
        "mkdir made 2>&1 | grep -o 'No space left' ; grep '^Seccomp:' /proc/self/status | tr -d ' \\t'",
    );
    assert_eq!(lines[..2], ["No space left", "Seccomp:2"]);
}

#[test]
fn what_is_unconfined_is_so_only_by_that_word() {
    needs!(Root, CgroupTree);
    let (_daemon, lines) = tell("seccomp = 'unconfined'\n", "grep '^Seccomp:' /proc/self/status | tr -d ' \\t'");
    assert_eq!(lines[0], "Seccomp:0");
}

#[test]
fn output_can_be_opened_again_by_its_name() {
    needs!(Root, CgroupTree);
    let (mut daemon, lines) = tell("", "echo again > /dev/stdout; echo wrong > /dev/stderr");
    assert!(lines.contains(&"again".to_owned()), "{lines:?}");
    // Another pipe, which the daemon reads when it comes to it.
    wait_line(&mut daemon, "web.0", |line| line == "wrong");
}

#[test]
fn a_unix_listener_is_anybodys_to_connect_and_gone_at_the_end() {
    needs!(Root, CgroupTree);
    let dir = tempfile::tempdir().expect("make a directory");
    let path = dir.path().join("listen.sock");
    let mut daemon =
        Daemon::start(&format!("[pool.web]\nlisten = ['unix:{}']\ncommand = ['sleep', 'infinity']\n", path.display()));
    wait_healthy(&mut daemon, 1);
    let mode = std::fs::metadata(&path).expect("look at the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o666);
    std::os::unix::net::UnixStream::connect(&path).expect("somebody listens");
    assert_eq!(daemon.stop(), 0);
    assert!(!path.exists());
}

#[test]
fn what_is_in_the_way_of_a_listener_is_not_removed() {
    needs!(Root, CgroupTree);
    let dir = tempfile::tempdir().expect("make a directory");
    let path = dir.path().join("precious");
    std::fs::write(&path, "data").expect("write");
    let place =
        crate::place::Place::new(&format!("[pool.web]\nlisten = ['unix:{}']\ncommand = ['true']\n", path.display()));
    let output = place.cli(&["daemon", "run"]);
    assert_eq!(output.status, 1, "{output:?}");
    assert!(output.stderr.contains("the address is in use"), "{output:?}");
    assert_eq!(std::fs::read_to_string(&path).expect("it is still there"), "data");
}
