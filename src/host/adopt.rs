//! Finds the init of a worker that an earlier daemon started, and fetches from it what that daemon held.
//!
//! Identity is the cgroup and a pidfd: the init is the first process of a pid namespace directly below the daemon's own,
//! in the worker's cgroup, looked at again after its pidfd was opened; no pid, name or command line is trusted. What is
//! fetched is the init's own (`protocol::init::kept`), which its program cannot reach. The program can do nothing here but
//! make its cgroup's list of processes long, so that is bounded.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, SealFlags, fcntl_get_seals, fstat};
use rustix::io::{Errno, pread, retry_on_intr};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::cgroup::{CgroupError, WorkerCgroup};
use super::init_orders::order;
use super::spawn::has_ended;
use crate::protocol::init::{FIRST_PASSED_FD, Header, IMAGE_FD, MAGIC, Order, SUPERVISOR, kept};

/// Processes of one cgroup that are looked at; the init is the oldest and so among the first.
const PROCESSES_MAX: usize = 4096;
/// What of `/proc/<pid>/status` is read: the line that is wanted is near its beginning.
const STATUS_BYTES_MAX: usize = 4096;

/// A worker that is there cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// Its cgroup.
    #[error("look into its cgroup")]
    Cgroup(#[from] CgroupError),
    /// There is no init.
    #[error("find its init: none of the processes in its cgroup is one")]
    NoInit,
    /// The init is still in the hands of the daemon that started it: it has not executed.
    #[error("read its start image: it has not begun")]
    Unborn,
    /// Its image is of another build's layout.
    #[error("read its start image: it is of a build that this one does not understand")]
    Layout,
    /// Something of it cannot be had.
    #[error("{operation}")]
    Step {
        /// What was being done.
        operation: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}

fn step<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> AdoptError {
    move |source| AdoptError::Step { operation, source: source.into() }
}

/// A worker's init and all that it keeps for a daemon.
#[derive(Debug)]
pub struct Adopted {
    /// Names the init.
    pub pidfd: OwnedFd,
    /// Its pid, for people.
    pub pid: u32,
    /// Its spawn attempt, by its start image.
    pub generation: u64,
    /// Where its end is written in the exit ledger.
    pub ledger_at: u64,
    /// What the daemon that started it wrote down about it.
    pub record: Vec<u8>,
    /// The daemon's end of its socket.
    pub socket: OwnedFd,
    /// Read end of the program's standard output.
    pub stdout: OwnedFd,
    /// Read end of its standard error.
    pub stderr: OwnedFd,
    /// The program's pidfd, if it has begun.
    pub main: Option<OwnedFd>,
    /// The daemon's end of the channel, or `/dev/null`.
    pub channel: OwnedFd,
    /// The notify socket, or `/dev/null`.
    pub notify: OwnedFd,
    /// The master end of the main program's terminal, or `/dev/null`.
    pub terminal: OwnedFd,
    /// The start image of a program that a claim has started.
    pub claim: Option<OwnedFd>,
    /// The exit ledger that it writes to.
    pub ledger: OwnedFd,
    passed: u64,
}

impl Adopted {
    /// Finds the init in `cgroup`; `None` if no process is left in it.
    ///
    /// # Errors
    /// [`AdoptError`]; [`AdoptError::Unborn`] will be another answer in a moment.
    pub fn find(cgroup: &WorkerCgroup) -> Result<Option<Self>, AdoptError> {
        let pids = cgroup.pids(PROCESSES_MAX)?.pids;
        if pids.is_empty() {
            return Ok(None);
        }
        let depth = own_depth()?;
        for pid in pids {
            let Some(pidfd) = open_init(pid, depth)? else { continue };
            // Until its pidfd is readable the number is its own, so what the list says of the number is true of it.
            let still = cgroup.pids(PROCESSES_MAX)?.pids.contains(&pid) && !has_ended(&pidfd);
            if still {
                return Self::fetch(pidfd, pid).map(Some);
            }
        }
        if cgroup.populated()? { Err(AdoptError::NoInit) } else { Ok(None) }
    }

    fn fetch(pidfd: OwnedFd, pid: u32) -> Result<Self, AdoptError> {
        let get = |number: i32| {
            pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty())
                .map_err(step("fetch a descriptor from its init (which needs CAP_SYS_PTRACE)"))
        };
        let image = get(IMAGE_FD).map_err(|error| match &error {
            AdoptError::Step { source, .. } if source.raw_os_error() == Some(Errno::BADF.raw_os_error()) => {
                AdoptError::Unborn
            }
            AdoptError::Cgroup(_)
            | AdoptError::NoInit
            | AdoptError::Unborn
            | AdoptError::Layout
            | AdoptError::Step { .. } => error,
        })?;
        if !executes_init(pid).map_err(step("look at what its init executes"))? {
            return Err(AdoptError::Unborn);
        }
        let header = read_header(image.as_fd())?;
        let record = read_record(image.as_fd(), &header)?;
        let number = |place: u64| {
            i32::try_from(header.kept_first.saturating_add(place)).map_err(|_too_large| AdoptError::Layout)
        };
        let keep = |place: u64| get(number(place)?);
        let main = keep(kept::MAIN)?;
        // By what it is, not by whether it lives: a program that has ended has begun.
        let stat = fstat(&main).map_err(step("look at the pidfd of its program"))?;
        let has_begun = FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice;
        Ok(Self {
            pid,
            generation: header.generation,
            ledger_at: header.ledger_at,
            record,
            socket: keep(kept::SOCKET)?,
            stdout: keep(kept::STDOUT)?,
            stderr: keep(kept::STDERR)?,
            main: has_begun.then_some(main),
            channel: keep(kept::CHANNEL)?,
            notify: keep(kept::NOTIFY)?,
            terminal: keep(kept::TERMINAL)?,
            claim: Some(keep(kept::CLAIM)?).filter(|image| fcntl_get_seals(image).is_ok()),
            ledger: keep(kept::LEDGER)?,
            passed: header.passed,
            pidfd,
        })
    }

    /// What its program was handed as descriptor `place` from 3 on: its pool's listeners come first.
    ///
    /// # Errors
    /// When it was handed fewer, or the init does not give it.
    pub fn passed(&self, place: usize) -> Result<OwnedFd, AdoptError> {
        if u64::try_from(place).is_ok_and(|place| place >= self.passed) {
            return Err(AdoptError::Step { operation: "fetch a listener from its init", source: Errno::BADF.into() });
        }
        let number = i32::try_from(place).unwrap_or(i32::MAX).saturating_add(FIRST_PASSED_FD);
        pidfd_getfd(&self.pidfd, number, PidfdGetfdFlags::empty()).map_err(step("fetch a listener from its init"))
    }

    /// Tells the init that `daemon`, by its pidfd, watches over it from now on.
    ///
    /// # Errors
    /// EPIPE when it has just ended.
    pub fn announce(&self, daemon: BorrowedFd<'_>) -> Result<(), AdoptError> {
        order(self.socket.as_fd(), Order { what: SUPERVISOR, program: 0 }, &[daemon]).map_err(step("tell its init"))
    }
}

/// A pidfd of this process, for inits to watch.
///
/// # Errors
/// EMFILE, ENOMEM.
pub fn own_pidfd() -> io::Result<OwnedFd> {
    Ok(pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?)
}

/// How many pid namespaces deep this process sees itself.
fn own_depth() -> Result<usize, AdoptError> {
    let status = read_status("self").map_err(step("read /proc/self/status"))?;
    Ok(namespace_pids(&status).map_or(1, |pids| pids.len()))
}

/// The pidfd of `pid` if that is the first process of a pid namespace right below this one.
fn open_init(pid: u32, depth: usize) -> Result<Option<OwnedFd>, AdoptError> {
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    let pidfd = match pidfd_open(number, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        // It has just ended, or is a thread.
        Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
        Err(errno) => return Err(step("open a pidfd of its init")(errno)),
    };
    let status = match read_status(&pid.to_string()) {
        Ok(status) => status,
        Err(Errno::NOENT | Errno::SRCH) => return Ok(None),
        Err(errno) => return Err(step("look at a process of its cgroup")(errno)),
    };
    let is_init = namespace_pids(&status).is_some_and(|pids| pids.len() == depth + 1 && pids.last() == Some(&1));
    Ok((is_init && !has_ended(&pidfd)).then_some(pidfd))
}

fn read_status(process: &str) -> Result<String, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(format!("/proc/{process}/status"), flags, Mode::empty())?;
    let mut bytes = [0_u8; STATUS_BYTES_MAX];
    let length = retry_on_intr(|| pread(&file, &mut bytes, 0))?;
    Ok(String::from_utf8_lossy(bytes.get(..length).unwrap_or_default()).into_owned())
}

/// Whether a process that is an init by its place has executed: before, its descriptors are still the daemon's that cloned it,
/// and some of them may be in place and others not.
fn executes_init(pid: u32) -> Result<bool, Errno> {
    match rustix::fs::readlink(format!("/proc/{pid}/exe"), Vec::new()) {
        Ok(path) => Ok(path.as_bytes().starts_with(b"/memfd:halsup")),
        // It has just ended, which the next look shows.
        Err(Errno::NOENT | Errno::SRCH) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// The pids of a process in each namespace from ours down. Its name comes first in the file and cannot hold a line end.
fn namespace_pids(status: &str) -> Option<Vec<u32>> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().map(|pid| pid.parse().ok()).collect()
}

fn read_header(image: BorrowedFd<'_>) -> Result<Header, AdoptError> {
    const WORDS: usize = size_of::<Header>() / 8;
    let mut bytes = [0_u8; size_of::<Header>()];
    // What is there before the image is put in place is the earlier daemon's, and no memfd.
    let Ok(seals) = fcntl_get_seals(image) else { return Err(AdoptError::Unborn) };
    if !seals.contains(SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL) {
        return Err(AdoptError::Unborn);
    }
    let length = retry_on_intr(|| pread(image, &mut bytes, 0)).map_err(step("read its start image"))?;
    let mut words = [0_u64; WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = bytes.try_into().map_or(0, u64::from_le_bytes);
    }
    if length < bytes.len() || words.first() != Some(&MAGIC) {
        return Err(AdoptError::Layout);
    }
    Ok(Header::from_words(words))
}

fn read_record(image: BorrowedFd<'_>, header: &Header) -> Result<Vec<u8>, AdoptError> {
    let size = u64::try_from(fstat(image).map_err(step("read its start image"))?.st_size).unwrap_or(0);
    if header.record.checked_add(header.record_len).is_none_or(|end| end > size) {
        return Err(AdoptError::Layout);
    }
    let mut record = vec![0; usize::try_from(header.record_len).map_err(|_too_large| AdoptError::Layout)?];
    let length = retry_on_intr(|| pread(image, &mut record, header.record)).map_err(step("read its birth record"))?;
    if length == record.len() { Ok(record) } else { Err(AdoptError::Layout) }
}
