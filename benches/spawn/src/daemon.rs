//! halsup as it is used: a running daemon, asked over its control socket or through its command line.
//!
//! The daemon is this very program under its real name, `halsup`: `main` gives over to the package's command line then.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use halsup::protocol::control::Request;
use halsup::protocol::varlink::{Decoder, Reply};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::Result;
use crate::place::{Place, readable};

const PATIENCE: Duration = Duration::from_secs(120);

/// `halsup` with no arguments yet.
pub fn halsup() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("halsup");
    command
}

/// A daemon and a connection to it.
pub struct Daemon {
    child: Child,
    control: UnixStream,
    decoder: Decoder,
    pub config: PathBuf,
    pub run: PathBuf,
    pub instance: String,
}

impl Daemon {
    /// Starts one whose configuration, but for the head of `[daemon]`, is `config`; waits until it is ready.
    pub fn start(place: &Place, config: &str) -> Result<Self> {
        let instance = format!("benchd-{}", std::process::id());
        let (run, state, file) = (place.path("run"), place.path("state"), place.path("config.toml"));
        let head = format!("[daemon]\ninstance = {instance:?}\nruntime_dir = {run:?}\nstate_dir = {state:?}\n");
        fs::write(&file, head + config)?;
        let notify = UnixDatagram::bind(place.path("notify"))?;
        let log = fs::File::create(place.path("daemon.log"))?;
        let mut command = halsup();
        command.args(["daemon", "run", "--config"]).arg(&file).env("NOTIFY_SOCKET", place.path("notify"));
        let mut child = command.stdout(Stdio::null()).stderr(log).spawn()?;
        let mut text = [0; 4096];
        loop {
            if readable(&notify, Duration::from_millis(100)) {
                let length = notify.recv(&mut text)?;
                if text[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                    break;
                }
            } else if let Some(status) = child.try_wait()? {
                let log = fs::read_to_string(place.path("daemon.log")).unwrap_or_default();
                return Err(format!("the daemon ended: {status}\n{log}").into());
            }
        }
        fs::remove_file(place.path("notify"))?;
        let control = UnixStream::connect(run.join("control.sock"))?;
        control.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { child, control, decoder: Decoder::for_replies(), config: file, run, instance })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a request; its answer is to be taken by [`Self::answer`].
    pub fn ask(&mut self, request: &Request) -> Result<()> {
        Ok(self.control.write_all(&request.to_call().encode())?)
    }

    pub fn answer(&mut self) -> Result<serde_json::Map<String, serde_json::Value>> {
        let mut buffer = vec![0; 65536];
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                let reply = Reply::decode(&frame)?;
                return match reply.error {
                    Some(error) => Err(format!("{error}: {:?}", reply.parameters).into()),
                    None => Ok(reply.parameters),
                };
            }
            match self.control.read(&mut buffer)? {
                0 => return Err("the daemon closed the connection".into()),
                length => self.decoder.push(&buffer[..length]),
            }
        }
    }

    pub fn call(&mut self, request: &Request) -> Result<serde_json::Map<String, serde_json::Value>> {
        self.ask(request)?;
        self.answer()
    }

    /// The command line, against this daemon.
    pub fn cli(&self, arguments: &[&str]) -> Command {
        let mut command = halsup();
        command.arg("--config").arg(&self.config).args(arguments).stdout(Stdio::null());
        command
    }

    /// Stops it by SIGTERM; its exit code.
    pub fn stop(mut self) -> Result<Option<i32>> {
        let pidfd = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?;
        pidfd_send_signal(&pidfd, Signal::TERM)?;
        if !readable(&pidfd, PATIENCE) {
            self.child.kill()?;
        }
        Ok(self.child.wait()?.code())
    }
}
