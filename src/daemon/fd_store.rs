//! Pidfds of workers' first processes in the service manager's store (`FileDescriptorStoreMax=`), from where the next daemon
//! gets them back however this one ends.
//!
//! They are stored when a worker is born and removed when its end is recorded, with `FDPOLL=0`: systemd would drop a pidfd at
//! the exit that it is kept for. Never waits: what the manager's queue has no room for is sent again in a moment. Callers:
//! `birth` and `exit`; `launch` gives what was handed over and forgets at last what nobody took.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;

use super::clock;
use super::log::best_effort;
use super::manager::Manager;
use super::state::Daemon;
use super::timers::Timer;
use crate::spec::{Generation, WorkerId};

/// Descriptors stored at the most, should the manager not say how many it takes.
const STORED_MAX: usize = 10_000;
/// The names of all are one variable of the next daemon's environment, and execve(2) takes no longer one than 128 KiB.
const NAMES_BYTES_MAX: usize = 96 << 10;
/// Pause before what did not fit is sent again.
const PAUSE: Duration = Duration::from_millis(100);

/// What is in the store, and what is on its way there.
#[derive(Debug, Default)]
pub(super) struct FdStore {
    /// How many the manager takes; zero where there is no store.
    most: usize,
    stored: BTreeSet<Generation>,
    names_bytes: usize,
    /// From an earlier daemon, until somebody takes them.
    before: BTreeMap<Generation, OwnedFd>,
    /// What the manager's queue had no room for: to be stored, or `None` to be removed.
    unsent: BTreeMap<Generation, Option<OwnedFd>>,
    /// Somebody will call [`FdStore::send_again`].
    awaited: bool,
    /// How often the queue was full.
    blocked: u64,
}

/// The name of a generation's pidfd. Short, because of [`NAMES_BYTES_MAX`]; a generation is one of all pools.
fn name_of(generation: Generation) -> String {
    format!("w{}", generation.0)
}

/// Which generation's pidfd has this name.
pub(super) fn generation_of(name: &str) -> Option<Generation> {
    let digits = name.strip_prefix('w').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok().map(Generation)
}

impl FdStore {
    /// `before` is what the manager handed over. systemd says how many it takes by `FDSTORE` since version 254; before that
    /// it only shows that this process is its own, by `SYSTEMD_EXEC_PID`.
    pub(super) fn new(env: &BTreeMap<String, String>, pid: u32, before: BTreeMap<Generation, OwnedFd>) -> Self {
        let ours = env.get("SYSTEMD_EXEC_PID").is_some_and(|named| named.parse() == Ok(pid));
        let said = env.get("FDSTORE").map(|text| text.parse().unwrap_or(0));
        let most = said.unwrap_or(if ours { STORED_MAX } else { 0 }).min(STORED_MAX);
        let stored: BTreeSet<Generation> = before.keys().copied().collect();
        let names_bytes = stored.iter().map(|generation| name_of(*generation).len() + 1).sum();
        Self { most, stored, names_bytes, before, ..Self::default() }
    }

    /// The highest generation that has a name here: as with other names, counting goes on from there.
    pub(super) fn last(&self) -> Generation {
        self.stored.last().copied().unwrap_or_default()
    }

    /// What an earlier daemon has stored for this generation. It stays in the store.
    pub(super) fn take(&mut self, generation: Generation) -> Option<OwnedFd> {
        self.before.remove(&generation)
    }

    /// This generation was stored by the program that this process was before.
    pub(super) fn assume(&mut self, generation: Generation) {
        if self.most > 0 && self.stored.insert(generation) {
            self.names_bytes += name_of(generation).len() + 1;
        }
    }

    /// Removes from the store what nobody took.
    fn forget_untaken(&mut self, manager: &Manager) {
        for generation in std::mem::take(&mut self.before).into_keys() {
            self.forget(manager, generation);
        }
    }

    fn keep(&mut self, manager: &Manager, generation: Generation, pidfd: BorrowedFd<'_>) {
        // What was taken over is in the store already.
        self.before.remove(&generation);
        let bytes = name_of(generation).len() + 1;
        let fits = self.stored.len() < self.most && self.names_bytes + bytes <= NAMES_BYTES_MAX;
        if !manager.is_there() || !fits || !self.stored.insert(generation) {
            return;
        }
        self.names_bytes += bytes;
        let message = format!("FDSTORE=1\nFDNAME={}\nFDPOLL=0", name_of(generation));
        match manager.send_with(&message, pidfd) {
            Err(Errno::AGAIN) => {
                self.blocked = self.blocked.saturating_add(1);
                // Without a descriptor to spare this one is not kept, as where there is no store.
                if let Ok(pidfd) = pidfd.try_clone_to_owned() {
                    self.unsent.insert(generation, Some(pidfd));
                }
            }
            sent => best_effort(sent, "then the next daemon has to do without it"),
        }
    }

    fn forget(&mut self, manager: &Manager, generation: Generation) {
        if !self.stored.remove(&generation) {
            return;
        }
        let name = name_of(generation);
        self.names_bytes = self.names_bytes.saturating_sub(name.len() + 1);
        if self.unsent.remove(&generation).is_some() {
            // It never got there.
            return;
        }
        match manager.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}")) {
            Err(Errno::AGAIN) => {
                self.blocked = self.blocked.saturating_add(1);
                self.unsent.insert(generation, None);
            }
            sent => best_effort(sent, "then the next daemon removes it"),
        }
    }

    /// Whether [`FdStore::send_again`] is to be called in a moment, and nobody does yet.
    fn wants_call(&mut self) -> bool {
        let wants = !self.unsent.is_empty() && !self.awaited;
        self.awaited |= wants;
        wants
    }

    /// Sends what did not fit, until it does not fit again.
    fn send_again(&mut self, manager: &Manager) {
        self.awaited = false;
        while let Some((generation, pidfd)) = self.unsent.pop_first() {
            let before = self.unsent.len();
            match &pidfd {
                Some(pidfd) => {
                    self.names_bytes = self.names_bytes.saturating_sub(name_of(generation).len() + 1);
                    self.stored.remove(&generation);
                    self.keep(manager, generation, pidfd.as_fd());
                }
                None => {
                    self.names_bytes += name_of(generation).len() + 1;
                    self.stored.insert(generation);
                    self.forget(manager, generation);
                }
            }
            if self.unsent.len() > before {
                tracing::debug!(target: "worker", blocked = self.blocked, "the service manager's queue is full");
                return;
            }
        }
    }
}

impl Daemon {
    /// Has the service manager keep the pidfd of a worker that was just born.
    pub(super) fn store_pidfd(&mut self, worker: WorkerId) {
        if let Some((generation, process)) =
            self.live.get(&worker).and_then(|live| Some((live.generation, live.process.as_ref()?)))
        {
            self.fd_store.keep(&self.manager, generation, process.fd.as_fd());
            self.catch_up_with_store();
        }
    }

    /// The end of a generation is recorded: nobody needs its pidfd any more.
    pub(super) fn forget_pidfd(&mut self, generation: Generation) {
        self.fd_store.forget(&self.manager, generation);
        self.catch_up_with_store();
    }

    /// Everything that was to be taken over has been: the rest is of workers that are gone.
    pub(super) fn forget_untaken_pidfds(&mut self) {
        self.fd_store.forget_untaken(&self.manager);
        self.catch_up_with_store();
    }

    /// Sends what the manager's queue had no room for.
    pub(super) fn send_pidfds_again(&mut self) {
        self.fd_store.send_again(&self.manager);
        self.catch_up_with_store();
    }

    fn catch_up_with_store(&mut self) {
        if self.fd_store.wants_call() {
            self.timers.set(clock::after(self.now, PAUSE), Timer::FdStore);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;
    use std::mem::MaybeUninit;
    use std::os::unix::net::UnixDatagram;

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

    use super::*;

    struct Listening {
        _dir: tempfile::TempDir,
        socket: UnixDatagram,
        manager: Manager,
    }

    fn listening() -> Listening {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let env = [("NOTIFY_SOCKET".to_owned(), path.to_str().unwrap().to_owned())].into();
        Listening { _dir: dir, socket, manager: Manager::from_environment(&env) }
    }

    fn store(pairs: &[(&str, &str)]) -> FdStore {
        let env = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        FdStore::new(&env, 7, BTreeMap::new())
    }

    /// The next message, and how many descriptors came with it.
    fn heard(socket: &UnixDatagram) -> Option<(String, usize)> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut text = [0; 256];
        let got = recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
        let fds = control.drain().map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.count(),
            RecvAncillaryMessage::ScmCredentials(_) | _ => 0,
        });
        Some((String::from_utf8(text[..got.bytes].to_vec()).unwrap(), fds.sum()))
    }

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_pidfd_is_stored_without_being_polled_and_removed_by_its_name() {
        let listening = listening();
        let mut store = store(&[("FDSTORE", "100")]);
        store.keep(&listening.manager, Generation(12), null().as_fd());
        store.forget(&listening.manager, Generation(12));
        store.forget(&listening.manager, Generation(12));
        assert_eq!(heard(&listening.socket), Some(("FDSTORE=1\nFDNAME=w12\nFDPOLL=0".to_owned(), 1)));
        assert_eq!(heard(&listening.socket), Some(("FDSTOREREMOVE=1\nFDNAME=w12".to_owned(), 0)));
        assert_eq!(heard(&listening.socket), None, "it is removed once");
        assert_eq!(store.names_bytes, 0);
    }

    #[test]
    fn there_is_a_store_where_systemd_says_so_or_shows_itself() {
        for (pairs, most) in [
            (&[("FDSTORE", "3")][..], 3),
            (&[("FDSTORE", "0"), ("SYSTEMD_EXEC_PID", "7")], 0),
            (&[("SYSTEMD_EXEC_PID", "7")], STORED_MAX),
            (&[("SYSTEMD_EXEC_PID", "8")], 0),
            (&[], 0),
        ] {
            assert_eq!(store(pairs).most, most, "{pairs:?}");
        }
        let listening = listening();
        let mut store = store(&[("FDSTORE", "1")]);
        store.keep(&listening.manager, Generation(1), null().as_fd());
        store.keep(&listening.manager, Generation(2), null().as_fd());
        store.forget(&listening.manager, Generation(2));
        assert!(heard(&listening.socket).is_some());
        assert_eq!(heard(&listening.socket), None, "there is no room for more");
    }

    #[test]
    fn the_names_of_all_fit_one_variable() {
        let listening = listening();
        let mut store = store(&[("SYSTEMD_EXEC_PID", "7")]);
        (0..10_000).for_each(|number| {
            store.keep(&listening.manager, Generation(number), null().as_fd());
            store.unsent.clear();
        });
        assert_eq!(store.stored.len(), 10_000, "as many as there may be workers");
        let longest = FdStore { most: STORED_MAX, ..FdStore::default() };
        let mut store = longest;
        (0..10_000).for_each(|number| {
            store.keep(&listening.manager, Generation(u64::MAX - number), null().as_fd());
            store.unsent.clear();
        });
        let names: Vec<String> = store.stored.iter().map(|generation| name_of(*generation)).collect();
        assert!(names.len() < 10_000 && names.join(":").len() < 128 << 10, "{}", names.len());
    }

    #[test]
    fn what_does_not_fit_is_sent_again_and_never_waited_for() {
        let listening = listening();
        let mut store = store(&[("SYSTEMD_EXEC_PID", "7")]);
        (0..2_000).for_each(|number| store.keep(&listening.manager, Generation(number), null().as_fd()));
        assert!(store.blocked > 0 && store.wants_call() && !store.wants_call(), "one call is enough");
        // One that did not get there and one that did end meanwhile.
        store.forget(&listening.manager, Generation(1_999));
        store.forget(&listening.manager, Generation(0));
        let mut there = BTreeSet::new();
        loop {
            while let Some((text, fds)) = heard(&listening.socket) {
                let (verb, name) = (text.starts_with("FDSTORE=1"), text.split("FDNAME=").nth(1).unwrap());
                let name = name.lines().next().unwrap().to_owned();
                assert_eq!(fds, usize::from(verb), "{text}");
                assert!(if verb { there.insert(name) } else { there.remove(&name) }, "{text}");
            }
            if store.unsent.is_empty() {
                break;
            }
            store.send_again(&listening.manager);
        }
        assert_eq!(there, (1..1_999).map(|number| name_of(Generation(number))).collect());
        assert_eq!(there.len(), store.stored.len());
    }

    #[test]
    fn what_was_handed_over_is_taken_or_removed() {
        let listening = listening();
        let before = [1, 2].map(|number| (Generation(number), null())).into();
        let mut store = FdStore::new(&BTreeMap::new(), 7, before);
        assert!(store.take(Generation(1)).is_some() && store.take(Generation(1)).is_none());
        store.forget_untaken(&listening.manager);
        assert_eq!(heard(&listening.socket), Some(("FDSTOREREMOVE=1\nFDNAME=w2".to_owned(), 0)));
        store.forget(&listening.manager, Generation(1));
        assert_eq!(heard(&listening.socket), Some(("FDSTOREREMOVE=1\nFDNAME=w1".to_owned(), 0)), "at its end");
        assert_eq!(store.names_bytes, 0);
    }

    #[test]
    fn names_are_read_back_as_written() {
        assert_eq!(generation_of(&name_of(Generation(u64::MAX))), Some(Generation(u64::MAX)));
        for other in ["", "w", "w+1", "w-1", "x1", "w99999999999999999999999", "control"] {
            assert_eq!(generation_of(other), None, "{other}");
        }
    }
}
