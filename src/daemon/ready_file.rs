//! Readiness by a file in the worker's directory, by inotify.
//!
//! The worker owns that directory and may be hostile: nothing is followed out of it, a flood of its changes costs the daemon
//! a bounded share of each turn, and names that nobody waits for cost no system call. Watches are set first and the file
//! looked for after, so that it cannot appear in between. A directory or a link is no file. Where the file is to say the
//! worker's port, no more of it is read than a port is long, and until it says one the worker is not ready.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use mio::Interest;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;

use super::clock;
use super::live::Watched;
use super::sources::{Source, Sources};
use super::state::Daemon;
use super::timers::Timer;
use crate::engine::Input;
use crate::spec::{Generation, Ready, WorkerId};

/// Events read in one turn, give or take a buffer.
const EVENTS_A_TURN: usize = 1_024;
/// Workers looked at in one turn.
const LOOKS_A_TURN: usize = 64;
/// Directories on the way to a file; each is a watch.
const DEPTH_MAX: usize = 32;
const BUFFER_BYTES: usize = 8_192;
/// As much of a file as is read for a port: its digits, and blanks around them.
const PORT_BYTES: usize = 16;
/// How long to wait for a watch that could not be had.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(250);

/// Watches on work directories.
#[derive(Debug, Default)]
pub(super) struct ReadyFiles {
    /// Whether a timer is set for a look without a watch.
    looks_again: bool,
    inotify: Option<Watched>,
    waits: BTreeMap<WorkerId, Wait>,
    /// Which watch is whose.
    watches: BTreeMap<i32, WorkerId>,
    /// Workers to be looked at.
    changed: BTreeSet<WorkerId>,
}

/// A worker that is not ready yet.
#[derive(Debug)]
struct Wait {
    generation: Generation,
    /// Name of its directory below the work directories.
    work_name: String,
    file: PathBuf,
    /// Whether the file is to say a port.
    says_port: bool,
    /// Watches on the directories that exist on the way to the file, from the worker's own, each with the name that is
    /// waited for there.
    watches: Vec<(i32, Vec<u8>)>,
}

/// What there is of a worker's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    /// Nothing that counts.
    Nothing,
    /// The file, of which nothing more is wanted.
    File,
    /// The file, and the port that it says.
    Port(u16),
    /// The file, and no port in it.
    NoPort,
}

impl ReadyFiles {
    /// Waits for a file of a worker; then [`ReadyFiles::look`].
    fn wait(&mut self, worker: WorkerId, wait: Wait) {
        self.end(worker);
        self.waits.insert(worker, wait);
    }

    fn end(&mut self, worker: WorkerId) {
        self.changed.remove(&worker);
        if let Some(wait) = self.waits.remove(&worker) {
            for (watch, _) in wait.watches {
                self.forget(watch);
            }
        }
    }

    fn forget(&mut self, watch: i32) {
        if self.watches.remove(&watch).is_some()
            && let Some(inotify) = &self.inotify
        {
            super::log::best_effort(
                inotify::remove_watch(&inotify.fd, watch),
                "the directory is gone, and its watch with it",
            );
        }
    }

    /// Watches what there is of the way to a worker's file, and says what there is of the file.
    fn look(&mut self, work_dirs: BorrowedFd<'_>, sources: &mut Sources, worker: WorkerId) -> Result<Sight, Errno> {
        let Some(wait) = self.waits.get(&worker) else { return Ok(Sight::Nothing) };
        let inotify = begun(&mut self.inotify, sources)?;
        let root = open(work_dirs, Path::new(&wait.work_name), OFlags::DIRECTORY)?;
        let mut found: Vec<(i32, Vec<u8>)> = Vec::new();
        let mut parts = wait.file.iter().take(DEPTH_MAX);
        let mut way = PathBuf::new();
        let mut dir = root.try_clone().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::MFILE))?;
        let outcome = loop {
            let Some(part) = parts.next() else { break Ok(()) };
            match watch(inotify, &dir, wait.says_port) {
                Ok(watch) => found.push((watch, part.as_bytes().to_vec())),
                Err(error) => break Err(error),
            }
            way.push(part);
            match open(root.as_fd(), &way, OFlags::DIRECTORY) {
                Ok(next) => dir = next,
                // Not there yet, no directory, or a link: whatever takes its place will be seen.
                Err(_) => break Ok(()),
            }
        };
        let sight = match (is_file(root.as_fd(), &wait.file), wait.says_port) {
            (false, _) => Sight::Nothing,
            (true, false) => Sight::File,
            (true, true) => port_in(root.as_fd(), &wait.file).map_or(Sight::NoPort, Sight::Port),
        };
        let Some(wait) = self.waits.get_mut(&worker) else { return Ok(Sight::Nothing) };
        let before = std::mem::replace(&mut wait.watches, found);
        let kept: BTreeSet<i32> = wait.watches.iter().map(|(watch, _)| *watch).collect();
        self.watches.extend(kept.iter().map(|&watch| (watch, worker)));
        // A directory that was moved out of the way keeps its watch otherwise, and the worker can make any number of them.
        for (watch, _) in before.into_iter().filter(|(watch, _)| !kept.contains(watch)) {
            self.forget(watch);
        }
        outcome.map(|()| sight)
    }

    /// Reads events; `true` if there may be more.
    fn read(&mut self) -> bool {
        let Some(inotify) = &self.inotify else { return false };
        let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
        let mut reader = Reader::new(&inotify.fd, &mut buffer);
        let mut count = 0;
        // What was read is also looked at: the reader forgets it.
        while count < EVENTS_A_TURN || !reader.is_buffer_empty() {
            let Ok(event) = reader.next() else { return false };
            count += 1;
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                self.changed.extend(self.waits.keys());
            } else if event.events().contains(ReadFlags::IGNORED) {
                if let Some(worker) = self.watches.remove(&event.wd()) {
                    self.changed.insert(worker);
                }
            } else if let Some(worker) = self.watches.get(&event.wd())
                && let Some(wait) = self.waits.get(worker)
            {
                let name = event.file_name().map(std::ffi::CStr::to_bytes);
                if wait.watches.iter().any(|(watch, part)| *watch == event.wd() && Some(part.as_slice()) == name) {
                    self.changed.insert(*worker);
                }
            }
        }
        true
    }
}

impl Daemon {
    /// Watches for the file that makes a worker ready; it may be there already.
    pub(super) fn watch_ready_file(&mut self, worker: WorkerId, generation: Generation, file: &Path, says_port: bool) {
        let Some(live) = self.live_mut(worker, generation) else { return };
        let work_name = live.work_name.clone();
        let wait = Wait { generation, work_name, file: file.to_owned(), says_port, watches: Vec::new() };
        self.ready_files.wait(worker, wait);
        self.look_for_ready_file(worker);
    }

    /// A worker that was taken over has said its port to the daemon before this one.
    pub(super) fn learn_port(&mut self, worker: WorkerId) {
        let Some(live) = self.live.get_mut(&worker) else { return };
        let Some(Ready::PortFile(file)) = self.pools.get(&live.pool).map(|pool| &pool.spec.ready) else { return };
        let root = open(self.shared.work_dirs.as_fd(), Path::new(&live.work_name), OFlags::DIRECTORY);
        live.told.port = root.ok().and_then(|root| port_in(root.as_fd(), file)).or(live.told.port);
    }

    /// Some watched directory changed.
    pub(super) fn on_files(&mut self) {
        let mut more = self.ready_files.read();
        for _ in 0..LOOKS_A_TURN {
            let Some(worker) = self.ready_files.changed.pop_first() else { break };
            self.look_for_ready_file(worker);
        }
        more |= !self.ready_files.changed.is_empty();
        if more && let Some(inotify) = &self.ready_files.inotify {
            self.sources.again(inotify.token);
        }
    }

    /// Looks at every worker that waits once more, because a watch could not be had.
    pub(super) fn look_for_files(&mut self) {
        self.ready_files.looks_again = false;
        self.ready_files.changed.extend(self.ready_files.waits.keys());
        self.on_files();
    }

    /// Ends the watch of a worker that is ready or has ended.
    pub(super) fn end_ready_file(&mut self, worker: WorkerId) {
        self.ready_files.end(worker);
    }

    fn look_for_ready_file(&mut self, worker: WorkerId) {
        match self.ready_files.look(self.shared.work_dirs.as_fd(), &mut self.sources, worker) {
            Ok(Sight::Nothing) => {}
            Ok(Sight::NoPort) => {
                // It may still be writing: it is looked at again when it has closed the file or put another in its place.
                tracing::debug!(target: "worker", worker = self.worker_name(worker), "its file says no port yet");
            }
            Ok(sight @ (Sight::File | Sight::Port(_))) => {
                if let Some(wait) = self.ready_files.waits.get(&worker) {
                    let generation = wait.generation;
                    if let (Sight::Port(port), Some(live)) = (sight, self.live_mut(worker, generation)) {
                        live.told.port = Some(port);
                    }
                    self.inputs.push(Input::BecameReady(worker, generation));
                }
                self.ready_files.end(worker);
            }
            Err(error) => {
                let worker_name = self.worker_name(worker);
                tracing::warn!(target: "worker", worker = worker_name, %error, "watch for the file that makes it ready");
                // The kernel has no watch to give now; until it has, this looks by itself.
                if !std::mem::replace(&mut self.ready_files.looks_again, true) {
                    self.timers.set(clock::after(self.now, LOOK_AGAIN), Timer::LookForFiles);
                }
            }
        }
    }
}

/// The one inotify descriptor, made when it is first needed.
fn begun<'a>(inotify: &'a mut Option<Watched>, sources: &mut Sources) -> Result<&'a OwnedFd, Errno> {
    if inotify.is_none() {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let token = sources
            .add(fd.as_fd(), Source::Files, Interest::READABLE)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::NOMEM))?;
        *inotify = Some(Watched { fd, token });
    }
    inotify.as_ref().map(|watched| &watched.fd).ok_or(Errno::BADF)
}

/// Watches exactly the directory that is open, whatever its name leads to by now.
fn watch(inotify: &OwnedFd, dir: &OwnedFd, says_port: bool) -> Result<i32, Errno> {
    let written = if says_port { WatchFlags::CLOSE_WRITE } else { WatchFlags::empty() };
    let flags = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR | written;
    inotify::add_watch(inotify, format!("/proc/self/fd/{}", dir.as_raw_fd()), flags)
}

/// Something below `dir`, neither through a link nor across a mount, and without opening what it is.
fn open(dir: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    openat2(dir, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC | flags, Mode::empty(), resolve)
}

fn is_file(dir: BorrowedFd<'_>, path: &Path) -> bool {
    let stat = open(dir, path, OFlags::empty()).and_then(fstat);
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
}

/// The port that a file says, if it is one and does.
fn port_in(dir: BorrowedFd<'_>, path: &Path) -> Option<u16> {
    // What it is was looked at before it is opened: a pipe would be waited for.
    let found = open(dir, path, OFlags::empty()).ok()?;
    FileType::from_raw_mode(fstat(&found).ok()?.st_mode).is_file().then_some(())?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(format!("/proc/self/fd/{}", found.as_raw_fd()), flags, Mode::empty()).ok()?;
    let mut bytes = [0; PORT_BYTES];
    let length = rustix::io::read(&file, &mut bytes).ok()?;
    let text = std::str::from_utf8(bytes.get(..length)?).ok()?.trim();
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::spec::PoolId;

    const WORKER: WorkerId = WorkerId { pool: PoolId(1), slot: 0 };

    struct World {
        files: ReadyFiles,
        sources: Sources,
        dirs: OwnedFd,
        /// The worker's directory.
        work: PathBuf,
        _temporary: tempfile::TempDir,
        _poll: mio::Poll,
    }

    impl World {
        fn waiting_for(file: &str) -> Self {
            let temporary = tempfile::tempdir().unwrap();
            let work = temporary.path().join("w-1");
            fs::create_dir(&work).unwrap();
            let poll = mio::Poll::new().unwrap();
            let mut world = Self {
                files: ReadyFiles::default(),
                sources: Sources::new(poll.registry().try_clone().unwrap()),
                dirs: fs::File::open(temporary.path()).unwrap().into(),
                work,
                _temporary: temporary,
                _poll: poll,
            };
            world.wait(file, false);
            world
        }

        fn wait(&mut self, file: &str, says_port: bool) {
            let (work_name, file) = ("w-1".to_owned(), PathBuf::from(file));
            let wait = Wait { generation: Generation(1), work_name, file, says_port, watches: Vec::new() };
            self.files.wait(WORKER, wait);
        }

        fn sight(&mut self) -> Sight {
            self.files.look(self.dirs.as_fd(), &mut self.sources, WORKER).unwrap()
        }

        fn look(&mut self) -> bool {
            self.sight() != Sight::Nothing
        }

        /// Reads events and looks if one of them says so; `None` if none does.
        fn news(&mut self) -> Option<bool> {
            while self.files.read() {}
            self.files.changed.pop_first().map(|_| self.look())
        }
    }

    #[test]
    fn a_file_that_is_there_already_is_seen_at_once() {
        let mut world = World::waiting_for("ready");
        fs::write(world.work.join("ready"), "").unwrap();
        assert!(world.look());
    }

    #[test]
    fn a_file_is_seen_when_it_is_made_and_when_it_is_moved_there() {
        let mut world = World::waiting_for("ready");
        assert!(!world.look());
        fs::write(world.work.join("other"), "").unwrap();
        assert_eq!(world.news(), None, "a name that nobody waits for is not looked at");
        fs::rename(world.work.join("other"), world.work.join("ready")).unwrap();
        assert_eq!(world.news(), Some(true));
    }

    #[test]
    fn directories_on_the_way_may_come_later_and_be_replaced_without_leaving_watches() {
        let mut world = World::waiting_for("a/b/ready");
        assert!(!world.look());
        for round in 0..5 {
            fs::create_dir_all(world.work.join("a/b")).unwrap();
            assert_eq!(world.news(), Some(false));
            assert_eq!(world.files.watches.len(), 3);
            fs::rename(world.work.join("a"), world.work.join(format!("gone{round}"))).unwrap();
        }
        fs::create_dir_all(world.work.join("a/b")).unwrap();
        assert_eq!(world.news(), Some(false));
        fs::write(world.work.join("a/b/ready"), "").unwrap();
        assert_eq!(world.news(), Some(true));
        world.files.end(WORKER);
        assert!(world.files.watches.is_empty() && world.files.waits.is_empty());
    }

    #[test]
    fn a_port_is_read_when_it_is_whole() {
        let mut world = World::waiting_for("ready");
        world.wait("ready", true);
        assert_eq!(world.sight(), Sight::Nothing);
        let path = world.work.join("ready");
        let mut file = fs::File::create(&path).unwrap();
        assert_eq!(world.news(), Some(true), "the file is there");
        assert_eq!(world.sight(), Sight::NoPort, "and says nothing yet");
        std::io::Write::write_all(&mut file, b"50051\n").unwrap();
        drop(file);
        assert_eq!(world.news(), Some(true), "closing it is news");
        assert_eq!(world.sight(), Sight::Port(50_051));
        for wrong in ["", "0", "65536", "-1", "+1", "0x10", "80 80", "port", "00000000000000000080"] {
            fs::write(&path, wrong).unwrap();
            assert_eq!(world.sight(), Sight::NoPort, "{wrong:?}");
        }
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert_eq!(world.sight(), Sight::Nothing, "a pipe is neither a file nor waited for");
    }

    #[test]
    fn links_lead_nowhere_and_a_directory_is_no_file() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("ready"), "").unwrap();
        let mut world = World::waiting_for("a/ready");
        symlink(outside.path(), world.work.join("a")).unwrap();
        assert!(!world.look());
        assert_eq!(world.files.watches.len(), 1, "the directory outside is not watched");
        fs::remove_file(world.work.join("a")).unwrap();
        fs::create_dir(world.work.join("a")).unwrap();
        assert_eq!(world.news(), Some(false));
        symlink(outside.path().join("ready"), world.work.join("a/ready")).unwrap();
        assert_eq!(world.news(), Some(false));
        fs::remove_file(world.work.join("a/ready")).unwrap();
        fs::create_dir(world.work.join("a/ready")).unwrap();
        assert_eq!(world.news(), Some(false));
    }

    #[test]
    fn a_flood_is_read_a_share_at_a_time() {
        let mut world = World::waiting_for("ready");
        assert!(!world.look());
        for number in 0..2 * EVENTS_A_TURN {
            fs::write(world.work.join(format!("{number}")), "").unwrap();
        }
        assert!(world.files.read(), "the budget is spent before the flood is read");
        assert!(world.files.changed.is_empty());
    }

    #[test]
    fn a_directory_that_is_removed_takes_its_watch_along() {
        let mut world = World::waiting_for("a/ready");
        fs::create_dir(world.work.join("a")).unwrap();
        assert!(!world.look());
        assert_eq!(world.files.watches.len(), 2);
        fs::remove_dir(world.work.join("a")).unwrap();
        assert_eq!(world.news(), Some(false));
        assert_eq!(world.files.watches.len(), 1);
    }
}
