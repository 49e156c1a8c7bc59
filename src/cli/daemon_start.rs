//! `halsup daemon start`: makes a daemon in the background and returns when it is ready, or says why it is not.
//!
//! The daemon tells over `NOTIFY_SOCKET`, as it would tell systemd; its end is seen by pidfd. Nothing is polled on a timer.
//! Where a daemon answers already there is nothing to do, which is no error.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;

use super::client::Client;
use super::context::{Context, socket_in};
use super::error::Error;
use super::notify as manager;
use super::stopwatch::Stopwatch;
use crate::exit_code::ExitCode;
use crate::protocol::control::{NoParameters, Request, StatusReply};
use crate::protocol::notify;
use crate::spec::{format_duration, parse_duration};

/// How long a daemon may take until it is ready, unless somebody says otherwise.
const READY_TIMEOUT: Duration = Duration::from_secs(90);

/// Start the daemon in the background; waits until it is ready. Does nothing where one runs.
#[derive(Debug, Args)]
pub(super) struct Start {
    /// How long to wait until it is ready, such as 30s.
    #[arg(long, value_name = "DURATION", default_value = "90s", value_parser = parse_duration)]
    pub(super) timeout: Duration,
}

impl Default for Start {
    fn default() -> Self {
        Self { timeout: READY_TIMEOUT }
    }
}

/// What a start amounted to.
#[derive(Debug, Serialize)]
struct Started {
    was_running: bool,
    pid: u32,
    ready_ms: u64,
    log: Option<String>,
}

/// How a daemon that was started went on.
enum Outcome {
    Ready,
    /// It ended; with its last status text.
    Ended(Option<String>),
    TimedOut,
}

impl Start {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let stopwatch = Stopwatch::start();
        context.refuse_socket()?;
        let config = context.daemon_config()?;
        let socket = socket_in(&config.daemon.runtime_dir);
        if let Some(pid) = running(&socket)? {
            return report(context, &Started { was_running: true, pid, ready_ms: 0, log: None });
        }
        if !rustix::process::geteuid().is_root() {
            return Err(crate::daemon::Error::NotRoot.into());
        }
        let place = Place::prepare(&config.daemon.state_dir)?;
        let (pid, outcome, code) = self.start(context, &place, stopwatch)?;
        let sentence = match outcome {
            Outcome::Ready => {
                let ready_ms = u64::try_from(stopwatch.elapsed().as_millis()).unwrap_or(u64::MAX);
                let log = Some(place.log.display().to_string());
                return report(context, &Started { was_running: false, pid, ready_ms, log });
            }
            // Two starts at once: one daemon runs, which is all that either wanted.
            Outcome::Ended(status) => match (running(&socket), status) {
                (Ok(Some(pid)), _) => {
                    return report(context, &Started { was_running: true, pid, ready_ms: 0, log: None });
                }
                (_, Some(sentence)) => sentence,
                (_, None) => format!("the daemon ended before it was ready: see {}", place.log.display()),
            },
            Outcome::TimedOut => format!(
                "the daemon (pid {pid}) is not ready after {}: see {}",
                format_duration(self.timeout),
                place.log.display()
            ),
        };
        Err(Error::NotStarted { sentence, code })
    }

    #[expect(clippy::disallowed_types, reason = "the one program that the command line starts: itself, as the daemon")]
    fn start(&self, context: &Context, place: &Place, stopwatch: Stopwatch) -> Result<(u32, Outcome, ExitCode), Error> {
        let failed = |operation| move |source| Error::Spawn { operation, source };
        let program = std::env::current_exe().map_err(failed("find this program"))?;
        let log = place.open_log().map_err(|source| Error::WriteFile { path: place.log.clone(), source })?;
        let mut command = std::process::Command::new(program);
        command.args(["daemon", "run", "--background"]);
        if context.config_without_file()?.is_none() {
            command.arg("--config").arg(context.config_path());
        }
        let mut child = command
            .env_clear()
            .envs(context.environment())
            .env(manager::SOCKET, &place.socket_path)
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone().map_err(failed("open its log"))?)
            .stderr(log)
            .spawn()
            .map_err(failed("run it"))?;
        let pid = child.id();
        let outcome = place.wait(pid, self.timeout, stopwatch)?;
        let code = match outcome {
            Outcome::Ready => ExitCode::Done,
            Outcome::TimedOut => ExitCode::Saturated,
            Outcome::Ended(_) => match child.wait().map_err(failed("wait for it"))?.code() {
                Some(2) => ExitCode::Usage,
                Some(5) => ExitCode::NotFound,
                Some(_) | None => ExitCode::Failed,
            },
        };
        Ok((pid, outcome, code))
    }
}

/// The pid of the daemon that answers at `socket`, if one does.
fn running(socket: &Path) -> Result<Option<u32>, Error> {
    match Client::connect(socket) {
        Ok(mut client) => {
            let status: StatusReply = client.call(&Request::Status(NoParameters {}))?;
            Ok(Some(status.pid))
        }
        Err(Error::Unreachable { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn report(context: &Context, started: &Started) -> Result<(), Error> {
    context.output.answer(started, |started| {
        if started.was_running {
            return format!("halsup daemon runs already (pid {})", started.pid);
        }
        let log = started.log.as_deref().unwrap_or_default();
        format!("halsup daemon runs (pid {}), ready after {} ms; log: {log}", started.pid, started.ready_ms)
    })
}

/// The log, and the socket over which the daemon says that it is ready; the socket's file goes when this does.
struct Place {
    log: PathBuf,
    socket_path: PathBuf,
    socket: UnixDatagram,
}

impl Place {
    fn prepare(state_dir: &Path) -> Result<Self, Error> {
        let failed = |operation| move |source| Error::Spawn { operation, source };
        let logs = state_dir.join("logs");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&logs)
            .map_err(|source| Error::WriteFile { path: logs.clone(), source })?;
        let socket_path = state_dir.join(format!("start-{}.sock", std::process::id()));
        match std::fs::remove_file(&socket_path) {
            // Left by a command of the same pid that was killed.
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed("make its notify socket")(error)),
        }
        let socket = UnixDatagram::bind(&socket_path).map_err(failed("make its notify socket"))?;
        socket.set_nonblocking(true).map_err(failed("make its notify socket"))?;
        Ok(Self { log: logs.join("daemon.log"), socket_path, socket })
    }

    fn open_log(&self) -> std::io::Result<File> {
        let no_follow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).map_err(std::io::Error::other)?;
        OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(no_follow).open(&self.log)
    }

    /// Sleeps until the daemon speaks, ends, or the time is over.
    fn wait(&self, pid: u32, timeout: Duration, stopwatch: Stopwatch) -> Result<Outcome, Error> {
        let wait_error = |errno: rustix::io::Errno| Error::Wait { source: errno.into() };
        let process = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::SRCH);
        let process = process.and_then(|pid| pidfd_open(pid, PidfdFlags::empty())).map_err(wait_error)?;
        let mut status = None;
        loop {
            let Some(left) = stopwatch.left_of(timeout) else {
                return Ok(Outcome::TimedOut);
            };
            let left =
                Timespec::try_from(left).map_err(|error| Error::Wait { source: std::io::Error::other(error) })?;
            let mut sources = [PollFd::new(&self.socket, PollFlags::IN), PollFd::new(&process, PollFlags::IN)];
            match poll(&mut sources, Some(&left)) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(wait_error(errno)),
            }
            let ended = !sources[1].revents().is_empty();
            // Last words first: what was sent before the end is read before the end is believed.
            if self.read(&mut status) {
                return Ok(Outcome::Ready);
            }
            if ended {
                return Ok(Outcome::Ended(status));
            }
        }
    }

    /// Takes in what the daemon said; whether it said that it is ready.
    fn read(&self, status: &mut Option<String>) -> bool {
        let mut buffer = [0; notify::DATAGRAM_BYTES_MAX + 1];
        let mut ready = false;
        while let Ok(length) = self.socket.recv(&mut buffer) {
            let said = notify::parse(&buffer[..length]);
            ready |= said.ready;
            if said.status.is_some() {
                *status = said.status;
            }
        }
        ready
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The file is of no use to anybody; the next command of this pid removes it at the latest.
        std::fs::remove_file(&self.socket_path).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(said: &[&[u8]]) -> Outcome {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::prepare(directory.path()).unwrap();
        for message in said {
            UnixDatagram::unbound().unwrap().send_to(message, &place.socket_path).unwrap();
        }
        // Ourselves: a process that has not ended.
        place.wait(std::process::id(), Duration::from_millis(50), Stopwatch::start()).unwrap()
    }

    #[test]
    fn ready_is_what_the_daemon_says_and_nothing_else() {
        assert!(matches!(wait(&[b"STATUS=starting", b"junk", b"", b"READY=1"]), Outcome::Ready));
        assert!(matches!(wait(&[b"STATUS=starting", b"READY=0"]), Outcome::TimedOut));
        assert!(matches!(wait(&[]), Outcome::TimedOut));
    }

    #[test]
    fn the_place_is_private_and_leaves_no_socket() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let place = Place::prepare(&state).unwrap();
        drop(place.open_log().unwrap());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&state), mode(&state.join("logs/daemon.log"))), (0o700, 0o600));
        let socket = place.socket_path.clone();
        assert!(socket.exists());
        drop(place);
        assert!(!socket.exists());
        std::fs::remove_file(state.join("logs/daemon.log")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", state.join("logs/daemon.log")).unwrap();
        let place = Place::prepare(&state).unwrap();
        assert!(place.open_log().is_err(), "a log that is a link is not followed");
    }
}
