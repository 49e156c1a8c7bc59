//! What halsup is held against: the same conversations over bare unix sockets, in processes of their own.
//!
//! `echo` says again what it hears, from any number of callers, in one thread. `relay` gives what it hears to whoever of some
//! `echo` is free and passes the answers back: what any dispatcher must do at least. `turn` takes bytes that are copied through
//! its socket and sends as many back; `lend` does the same in memory that is lent to it.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};

use super::memory::{Taker, pass, receive, sum};
use crate::Result;

/// The longest message of `echo` and `relay`.
const MESSAGE_BYTES: usize = 256;

/// A process that serves at a socket; ended on drop.
pub struct Server {
    child: Child,
    pub path: PathBuf,
}

impl Server {
    /// Starts `what` at `path` and waits until it listens.
    pub fn start(what: &str, path: PathBuf, more: &[PathBuf]) -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg(what).arg(&path).args(more).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut ready = [0];
        child.stdout.take().ok_or("no pipe")?.read_exact(&mut ready)?;
        Ok(Self { child, path })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("end a server: {error}");
        }
    }
}

fn listen(path: &Path) -> Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    println!(".");
    Ok(listener)
}

/// Serves as one of these; `None` if `what` is none of them.
pub fn serve(what: &str, arguments: &[String]) -> Option<Result<()>> {
    let path = |at: usize| Path::new(arguments.get(at).map_or("", String::as_str)).to_owned();
    match what {
        "echo" => Some(echo(&path(0))),
        "relay" => Some(relay(&path(0), &arguments[1..])),
        "turn" => Some(turn(&path(0))),
        "lend" => Some(lend(&path(0))),
        _ => None,
    }
}

/// What is ready of these.
fn ready(all: &[UnixStream], listener: &UnixListener) -> Result<(Vec<usize>, bool)> {
    let mut polled: Vec<PollFd<'_>> = all.iter().map(|stream| PollFd::new(stream, PollFlags::IN)).collect();
    polled.push(PollFd::new(listener, PollFlags::IN));
    poll(&mut polled, None)?;
    let mut ready: Vec<usize> = (0..polled.len()).filter(|at| !polled[*at].revents().is_empty()).collect();
    let joins = ready.pop_if(|at| *at == all.len()).is_some();
    Ok((ready, joins))
}

fn echo(path: &Path) -> Result<()> {
    let listener = listen(path)?;
    let mut callers: Vec<UnixStream> = Vec::new();
    let mut message = [0; MESSAGE_BYTES];
    loop {
        let (ready, joins) = ready(&callers, &listener)?;
        for at in ready.into_iter().rev() {
            match callers[at].read(&mut message) {
                Ok(0) | Err(_) => drop(callers.swap_remove(at)),
                Ok(length) => callers[at].write_all(&message[..length])?,
            }
        }
        if joins {
            callers.push(listener.accept()?.0);
        }
    }
}

fn relay(path: &Path, servers: &[String]) -> Result<()> {
    // The servers come first, then the callers.
    let mut all = servers.iter().map(UnixStream::connect).collect::<std::io::Result<Vec<_>>>()?;
    let servers = all.len();
    let listener = listen(path)?;
    let mut free: VecDeque<usize> = (0..servers).collect();
    let mut serves: Vec<usize> = vec![0; servers];
    let mut waiting: VecDeque<(usize, Vec<u8>)> = VecDeque::new();
    let (mut message, mut left) = ([0; MESSAGE_BYTES], Vec::new());
    loop {
        let (ready, joins) = ready(&all, &listener)?;
        for at in ready {
            match all[at].read(&mut message) {
                // Whoever leaves keeps its number, for others have numbers beyond it, and a place in which nothing is said.
                Ok(0) | Err(_) => {
                    let (quiet, other) = UnixStream::pair()?;
                    all[at] = quiet;
                    left.push(other);
                }
                Ok(length) if at < servers => {
                    all[serves[at]].write_all(&message[..length])?;
                    free.push_back(at);
                }
                Ok(length) => waiting.push_back((at, message[..length].to_vec())),
            }
        }
        while let Some(server) = free.front().copied().filter(|_| !waiting.is_empty()) {
            if let Some((caller, asked)) = waiting.pop_front() {
                free.pop_front();
                serves[server] = caller;
                all[server].write_all(&asked)?;
            }
        }
        if joins {
            all.push(listener.accept()?.0);
        }
    }
}

fn turn(path: &Path) -> Result<()> {
    let listener = listen(path)?;
    let (mut stream, _) = listener.accept()?;
    let (mut taken, mut own) = (Vec::new(), Vec::new());
    let mut word = [0; 8];
    loop {
        match stream.read_exact(&mut word) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        let length = usize::try_from(u64::from_ne_bytes(word))?;
        taken.resize(length, 0);
        own.resize(length, 7);
        stream.read_exact(&mut taken)?;
        stream.write_all(&sum(&taken).to_ne_bytes())?;
        stream.write_all(&own)?;
    }
}

fn lend(path: &Path) -> Result<()> {
    let listener = listen(path)?;
    let (stream, _) = listener.accept()?;
    let (mut taker, mut word) = (Taker::default(), [0; 8]);
    while let (8, Some(fd)) = receive(&stream, &mut word)? {
        let read = taker.turn(fd, usize::try_from(u64::from_ne_bytes(word))?, true)?;
        pass(&stream, &read.to_ne_bytes(), None)?;
    }
    Ok(())
}
