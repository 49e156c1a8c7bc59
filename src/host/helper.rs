//! Programs that the daemon runs beside itself and that report like any other child: by their exit and what they print.
//!
//! Nothing of a worker is started here. A helper gets no input but what is sent to it; what it prints is read when it has
//! ended, and bounded.

#![expect(clippy::disallowed_types, reason = "the one place that runs helpers")]

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// What is read of a helper's output, in bytes.
const OUTPUT_BYTES_MAX: usize = 64 << 10;

/// A helper that was started.
#[derive(Debug)]
pub struct Helper {
    pidfd: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// What a helper has left.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl Helper {
    /// Runs `program` with `arguments` and, beside this process's own, `variables`. It inherits every descriptor that is
    /// inheritable now.
    ///
    /// # Errors
    /// When it cannot be executed.
    pub fn run(program: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> io::Result<Self> {
        let mut command = std::process::Command::new(program);
        command.args(arguments).envs(variables.iter().copied());
        Self::spawn(command)
    }

    fn spawn(mut command: std::process::Command) -> io::Result<Self> {
        let (stdout, their_stdout) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let (stderr, their_stderr) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let mut child = command.stdin(std::process::Stdio::null()).stdout(their_stdout).stderr(their_stderr).spawn()?;
        // Not waited for yet, so the pid is still this child's.
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { pidfd, stdout, stderr }),
            Err(errno) => {
                child.kill()?;
                child.wait()?;
                Err(errno.into())
            }
        }
    }

    /// As [`Helper::run`], with nothing of this process's own environment.
    ///
    /// # Errors
    /// When it cannot be executed.
    pub fn run_with_only(program: &Path, arguments: &[&str], variables: &[(String, String)]) -> io::Result<Self> {
        let mut command = std::process::Command::new(program);
        command.args(arguments).env_clear().envs(variables.iter().cloned());
        Self::spawn(command)
    }

    /// Runs this program with `arguments`, an empty environment and one end of a new socket of packets as its standard
    /// input; gives the other end, which does not block.
    ///
    /// # Errors
    /// When it cannot be executed.
    pub fn run_self(arguments: &[&str]) -> io::Result<(Self, OwnedFd)> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::fs::fcntl_setfl(&ours, rustix::fs::OFlags::NONBLOCK)?;
        let (stdout, _nobody) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let (stderr, their_stderr) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let mut child = std::process::Command::new("/proc/self/exe")
            .args(arguments)
            .env_clear()
            .current_dir("/")
            .stdin(theirs)
            .stdout(std::process::Stdio::null())
            .stderr(their_stderr)
            .spawn()?;
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok((Self { pidfd, stdout, stderr }, ours)),
            Err(errno) => {
                child.kill()?;
                child.wait()?;
                Err(errno.into())
            }
        }
    }

    /// Readable when it has ended.
    #[must_use]
    pub const fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Ends it.
    ///
    /// # Errors
    /// ESRCH if it was waited for already.
    pub fn kill(&self) -> io::Result<()> {
        super::spawn::kill(&self.pidfd)
    }

    /// What it left, if it has ended; reaps it.
    ///
    /// # Errors
    /// ECHILD if somebody else has reaped it.
    pub fn ended(&self) -> io::Result<Option<Ended>> {
        let Some(waited) = super::spawn::try_wait(&self.pidfd)? else { return Ok(None) };
        let code = match waited.status {
            super::spawn::Status::Exited(code) => Some(code),
            super::spawn::Status::Signalled(_) => None,
        };
        Ok(Some(Ended { code, stdout: read(&self.stdout), stderr: read(&self.stderr) }))
    }
}

fn read(pipe: &OwnedFd) -> String {
    let mut bytes = vec![0; OUTPUT_BYTES_MAX];
    // A pipe holds no more than this, and whoever wrote is gone: one read gives all there is.
    let length = rustix::io::read(pipe, bytes.as_mut_slice()).unwrap_or(0);
    bytes.truncate(length);
    String::from_utf8_lossy(&bytes).into_owned()
}
