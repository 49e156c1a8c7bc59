//! Where one round happens: a directory in memory, a configuration, an instance of its own; and the daemons that are started
//! there one after the other.

#![expect(clippy::disallowed_types, reason = "the daemon is started as an operator's shell does")]
#![expect(clippy::zombie_processes, reason = "they are reaped by their pidfd, or by whoever traces them")]
#![expect(clippy::disallowed_methods, reason = "starts and ends are timed by the real clock")]

use std::fs;
use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::checker::secrets::Secrets;
use crate::checker::{Instance, cgroups, files};
use crate::ports::free_ports;
use crate::ready::{Ready, Stopwatch};
use crate::tracer::{Traced, Victim};

/// How long a daemon may take to be ready after it was killed, without what it waits for a processor.
pub(crate) const READY_BUDGET: Duration = Duration::from_secs(2);
/// After this long it is not waited for any more.
const GIVE_UP: Duration = Duration::from_secs(20);
/// What the pool `keep` knows.
const SECRET_OF_KEEP: &str = "canary-of-the-pool-keep";

/// What is in the archive of an image.
const IMAGE_FILES: [&str; 3] = ["first", "dir/second", "third"];

static SITES: AtomicU32 = AtomicU32::new(0);

/// A directory with a configuration.
#[derive(Debug)]
pub(crate) struct Site {
    dir: tempfile::TempDir,
    /// One that nobody else has, if the configuration names it.
    port: u16,
    pub(crate) instance: Instance,
}

/// A process of the daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    notify: UnixDatagram,
    stopwatch: Stopwatch,
}

impl Site {
    /// Makes one. `{DIR}` in the configuration is its directory, `{SLEEP}` a program that does nothing, `{PORT}` a port.
    pub(crate) fn new(config: &str) -> Self {
        let memory = Path::new("/dev/shm");
        let top = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new().prefix("halsup-test-").tempdir_in(top).expect("make a directory");
        let name = format!("k{}-{}", std::process::id(), SITES.fetch_add(1, Ordering::Relaxed));
        let (runtime_dir, state_dir) = (dir.path().join("run"), dir.path().join("state"));
        let secret = format!("canary-of-the-daemon-{name}");
        let secrets = Secrets { daemon: Some(secret), pools: vec![("keep".to_owned(), SECRET_OF_KEEP.to_owned())] };
        let own = dir.path().to_owned();
        let instance = Instance { name, dir: own, runtime_dir, state_dir, known: Vec::new(), secrets };
        let port = if config.contains("{PORT}") { free_ports(1) } else { 0 };
        let site = Self { dir, port, instance };
        if config.contains("{DIR}/root") {
            make_root(&site.path("root"));
        }
        if config.contains("{DIR}/seen") {
            crate::requests::share(&site.path("seen"));
        }
        site.configure(config);
        site
    }

    /// Writes the configuration, anew or first: the pool that no scenario touches, and what the scenario wants.
    pub(crate) fn configure(&self, config: &str) {
        let Instance { name, runtime_dir, state_dir, .. } = &self.instance;
        let text = format!(
            "[daemon]\ninstance = {name:?}\nruntime_dir = {runtime_dir:?}\nstate_dir = {state_dir:?}\n\
             shutdown_timeout = '10s'\n[pool.keep]\ncommand = [{{SLEEP}}]\nenv = {{ SECRET = {SECRET_OF_KEEP:?} }}\n{config}"
        );
        let dir = self.dir.path().to_str().expect("an ASCII path");
        let text = text.replace("{DIR}", dir).replace("{SLEEP}", &sleeper());
        let text = text.replace("{PORT}", &self.port.to_string());
        fs::write(self.path("config.toml"), text).expect("write the configuration");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, mut command: Command, notify: &mut Option<UnixDatagram>) -> Command {
        let socket = self.path("notify");
        fs::remove_file(&socket).unwrap_or_default();
        *notify = Some(UnixDatagram::bind(&socket).expect("bind the notify socket"));
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("stderr")).expect("open the log");
        let secret = self.instance.secrets.daemon.clone().unwrap_or_default();
        command.arg("--config").arg(self.path("config.toml")).args(["daemon", "run"]);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("NOTIFY_SOCKET", socket).env("CANARY", secret).stdout(Stdio::null()).stderr(log);
        command
    }

    /// Starts the daemon.
    pub(crate) fn start(&self) -> Daemon {
        let mut notify = None;
        let mut command = self.command(Command::new(program()), &mut notify);
        let stopwatch = Stopwatch::start();
        let child = command.stdin(Stdio::null()).spawn().expect("start the daemon");
        Daemon::new(&child, notify, stopwatch)
    }

    /// A command of the program other than the daemon, with its complaints in the log.
    pub(crate) fn tool(&self, words: &[&str]) -> Command {
        self.with_words(Command::new(program()), words)
    }

    fn with_words(&self, mut command: Command, words: &[&str]) -> Command {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("stderr")).expect("open the log");
        command.arg("--config").arg(self.path("config.toml")).args(words);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).stderr(log);
        command
    }

    /// Starts such a command under a tracer, at its first instruction.
    pub(crate) fn traced_tool(&self, words: &[&str], victim: Victim) -> (Child, Traced) {
        let mut command = self.with_words(gate(), words);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("start the shell");
        let mut gate = child.stdin.take().expect("stdin is piped");
        let traced = Traced::attach_for(victim, child.id(), || gate.write_all(b"\n").expect("let it go on"));
        (child, traced)
    }

    /// Starts it under a tracer, at its first instruction.
    pub(crate) fn start_traced(&self) -> (Daemon, Traced) {
        let mut notify = None;
        let mut command = self.command(gate(), &mut notify);
        let mut child = command.stdin(Stdio::piped()).spawn().expect("start the shell");
        let mut gate = child.stdin.take().expect("stdin is piped");
        let traced = Traced::attach_before_exec(child.id(), || gate.write_all(b"\n").expect("let it go on"));
        (Daemon::new(&child, notify, Stopwatch::start()), traced)
    }

    /// Writes an archive of a few files, by another program.
    pub(crate) fn make_archive(&self) {
        let files = self.path("files");
        fs::create_dir_all(files.join("dir")).expect("make directories");
        for name in IMAGE_FILES {
            fs::write(files.join(name), name).expect("write a file");
        }
        let made =
            Command::new("tar").arg("-czf").arg(self.path("image.tar.gz")).arg("-C").arg(&files).arg(".").status();
        assert!(made.expect("run tar").success());
    }

    /// Has the daemon make an image of it; whether it says that it did.
    pub(crate) fn import_image(&self) -> bool {
        let archive = self.path("image.tar.gz").display().to_string();
        let mut command = self.tool(&["image", "import", &archive, "--name", "it"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).status().expect("run the program").success()
    }

    /// What is wrong with the images on the disk: each is whole, and nothing else is there.
    pub(crate) fn wrong_images(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for entry in fs::read_dir(self.path("state/images")).into_iter().flatten().flatten() {
            let whole =
                || IMAGE_FILES.iter().all(|name| fs::read_to_string(entry.path().join("root").join(name)).is_ok());
            if entry.file_name() == "tmp" {
                let left = fs::read_dir(entry.path()).into_iter().flatten().flatten();
                wrong.extend(left.map(|left| format!("{} is left of an import", left.path().display())));
            } else if !whole() {
                wrong.push(format!("image {} is not whole", entry.path().display()));
            }
        }
        wrong
    }

    /// What the daemons have written.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path("stderr")).unwrap_or_default()).into_owned()
    }

    /// Removes by force what a round has left, so that it does not spoil the next.
    pub(crate) fn sweep(&self) {
        if let Some(base) = cgroups::base(&self.instance.name) {
            let deadline = Instant::now() + GIVE_UP;
            fs::write(base.join("cgroup.kill"), "1").unwrap_or_default();
            while cgroups::remove(&base).is_err() && Instant::now() < deadline {
                crate::checker::pause(Duration::from_millis(5));
            }
        }
        for point in files::mounts(self.dir.path()) {
            rustix::mount::unmount(&point, rustix::mount::UnmountFlags::DETACH).unwrap_or_default();
        }
    }
}

/// A shell that waits for a line before it becomes the program.
fn gate() -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "read go && exec \"$@\" </dev/null", "sh"]).arg(program());
    shell
}

/// Makes a root file system of busybox alone.
fn make_root(root: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("open it to all");
    for dir in ["bin", "etc", "proc", "dev", "sys", "run", "tmp"] {
        fs::create_dir_all(root.join(dir)).expect("make a directory");
        open(&root.join(dir));
    }
    open(root);
    open(root.parent().expect("the directory of the round"));
    fs::copy(busybox().expect("busybox"), root.join("bin/busybox")).expect("copy busybox");
}

fn busybox() -> Option<&'static str> {
    ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists())
}

/// The program under test.
fn program() -> std::ffi::OsString {
    std::env::var_os("HALSUP_TEST_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_halsup").into())
}

/// A program that does nothing, as words of a configuration; one without a loader, where there is one.
fn sleeper() -> String {
    busybox().map_or_else(|| "'sleep', 'infinity'".to_owned(), |path| format!("'{path}', 'sleep', 'infinity'"))
}

impl Daemon {
    fn new(child: &Child, notify: Option<UnixDatagram>, stopwatch: Stopwatch) -> Self {
        let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).expect("open its pidfd");
        Self { pid: child.id(), pidfd, notify: notify.expect("it was bound"), stopwatch }
    }

    /// Waits until it is ready; how long that took since it was started, or `None` if it ended first or took too long.
    pub(crate) fn ready(&self) -> Option<Ready> {
        let deadline = self.stopwatch.begun() + GIVE_UP;
        let mut buffer = [0; 4096];
        while readable([self.notify.as_fd(), self.pidfd.as_fd()], deadline)? == 0 {
            let count = self.notify.recv(&mut buffer).ok()?;
            if buffer[..count].split(|&byte| byte == b'\n').any(|line| line == b"READY=1") {
                return Some(self.stopwatch.ready(self.pid));
            }
        }
        None
    }

    /// Has it end and reaps it; its exit code.
    pub(crate) fn stop(&self) -> Option<i32> {
        pidfd_send_signal(&self.pidfd, Signal::TERM).ok()?;
        readable([self.pidfd.as_fd()], Instant::now() + GIVE_UP)?;
        self.reap()
    }

    /// Kills it and reaps it.
    pub(crate) fn kill(&self) {
        crate::tracer::kill(&self.pidfd);
        self.reap();
    }

    /// Waits for its end; its exit code, if it was not killed.
    pub(crate) fn reap(&self) -> Option<i32> {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        let status = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED).ok()??;
        status.exit_status()
    }
}

/// Waits until one of these is readable or at its end; which, or `None` at the deadline.
fn readable<const N: usize>(fds: [BorrowedFd<'_>; N], deadline: Instant) -> Option<usize> {
    let mut polled = fds.each_ref().map(|fd| PollFd::new(fd, PollFlags::IN));
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).expect("a deadline of a test is near");
        match poll(&mut polled, Some(&timeout)) {
            Ok(0) => return None,
            Ok(_) => return polled.iter().position(|one| !one.revents().is_empty()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}
