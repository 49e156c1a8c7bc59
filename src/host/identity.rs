//! Who workers run as: private uids, private ranges for user namespaces, users of the host.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};

use crate::sys::spawn::IdRange;

/// How many ids a `mapped` worker has.
pub const MAPPED_RANGE: u32 = 65_536;

/// An identity cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The host has no such user.
    #[error("there is no user {name:?} on this host")]
    NoUser {
        /// The name.
        name: String,
    },
    /// Looking the user up failed.
    #[error("look up user {name:?}")]
    Lookup {
        /// The name.
        name: String,
        /// The library's reason.
        source: nix::Error,
    },
    /// The kernel refused a user namespace.
    #[error("make a user namespace over uids {base}..{}", base + MAPPED_RANGE)]
    UserNamespace {
        /// First uid of the range.
        base: u32,
        /// The kernel's reason.
        source: io::Error,
    },
    /// More workers at once than there are ids.
    #[error("all {count} private ids are in use")]
    Exhausted {
        /// How many there are.
        count: u32,
    },
}

/// A user of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostUser {
    /// Its uid.
    pub uid: u32,
    /// Its primary gid.
    pub gid: u32,
}

/// Looks a user up by name or number. Reads the host's user database and may block on it: at start and reload only.
///
/// The C library looks: glibc wherever `nsswitch.conf` says, musl, which the static program is linked with, in `/etc/passwd`.
/// A host or container without that file has no users by name.
///
/// # Errors
/// [`IdentityError::NoUser`], [`IdentityError::Lookup`].
pub fn host_user(name: &str) -> Result<HostUser, IdentityError> {
    let found = match name.parse::<u32>() {
        Ok(uid) => nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)),
        Err(_not_a_number) => nix::unistd::User::from_name(name),
    };
    let found = match found {
        Ok(found) => found,
        Err(nix::Error::ENOENT) => None,
        Err(source) => return Err(IdentityError::Lookup { name: name.to_owned(), source }),
    };
    match (found, name.parse::<u32>()) {
        (Some(user), _) => Ok(HostUser { uid: user.uid.as_raw(), gid: user.gid.as_raw() }),
        // A number needs no entry in the database.
        (None, Ok(id)) => Ok(HostUser { uid: id, gid: id }),
        (None, Err(_not_a_number)) => Err(IdentityError::NoUser { name: name.to_owned() }),
    }
}

/// Makes a user namespace in which ids 0..65,536 are `base`.. outside.
///
/// # Errors
/// [`IdentityError::UserNamespace`].
pub fn user_namespace(base: u32) -> Result<OwnedFd, IdentityError> {
    let refused = |source| IdentityError::UserNamespace { base, source };
    let range = IdRange { inside: 0, outside: base, count: MAPPED_RANGE };
    id_namespace(range, range).map_err(refused)
}

/// Makes a user namespace by which a mount shows what belongs to one user of the host as another's: `from` on the disk is `to`.
///
/// # Errors
/// [`IdentityError::UserNamespace`].
pub fn owner_namespace(from: HostUser, to: HostUser) -> Result<OwnedFd, IdentityError> {
    let one = |inside, outside| IdRange { inside, outside, count: 1 };
    let made = id_namespace(one(from.uid, to.uid), one(from.gid, to.gid));
    made.map_err(|source| IdentityError::UserNamespace { base: to.uid, source })
}

fn id_namespace(uids: IdRange, gids: IdRange) -> io::Result<OwnedFd> {
    let proc_dir = open("/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    crate::sys::spawn::user_namespace(uids, gids, proc_dir.as_fd())
}

/// Gives out numbers 0..`count`, each to one holder at a time, the one that has been free for longest first, so that a
/// file left behind under an id does not meet its next holder soon.
#[derive(Debug)]
pub struct IdPool {
    count: u32,
    start: u32,
    fresh: u32,
    free: std::collections::VecDeque<u32>,
    /// Held since before this pool began, and not come by yet.
    reserved: std::collections::BTreeSet<u32>,
}

impl IdPool {
    /// A pool of `count` numbers, given out from one that `seed` chooses, so that a new daemon does not begin with those
    /// that its predecessor used last.
    #[must_use]
    pub fn new(count: u32, seed: u64) -> Self {
        let start = u32::try_from(seed % u64::from(count.max(1))).unwrap_or(0);
        let (free, reserved) = (std::collections::VecDeque::new(), std::collections::BTreeSet::new());
        Self { count, start, fresh: 0, free, reserved }
    }

    /// Marks a number as held by somebody who was there before. To be called before the first is taken.
    pub fn reserve(&mut self, id: u32) {
        if id < self.count {
            self.reserved.insert(id);
        }
    }

    /// Takes a number.
    ///
    /// # Errors
    /// [`IdentityError::Exhausted`].
    pub fn take(&mut self) -> Result<u32, IdentityError> {
        while self.fresh < self.count {
            self.fresh += 1;
            let id = (self.start + (self.fresh - 1)) % self.count;
            if !self.reserved.remove(&id) {
                return Ok(id);
            }
        }
        self.free.pop_front().ok_or(IdentityError::Exhausted { count: self.count })
    }

    /// Gives a number back, once nothing runs under it any more.
    pub fn give_back(&mut self, id: u32) {
        debug_assert!(id < self.count && !self.free.contains(&id), "an id is given back once");
        // One that was reserved and not come by yet is among the fresh ones from now on.
        if !self.reserved.remove(&id) {
            self.free.push_back(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_id_is_given_out_only_when_it_was_given_back() {
        let mut pool = IdPool::new(4, 0);
        pool.reserve(1);
        pool.reserve(3);
        pool.reserve(77);
        assert_eq!([pool.take().unwrap(), pool.take().unwrap()], [0, 2]);
        pool.give_back(3);
        assert_eq!(pool.take().unwrap(), 3);
        assert!(pool.take().is_err());
        pool.give_back(1);
        assert_eq!(pool.take().unwrap(), 1);
    }

    #[test]
    fn an_id_has_one_holder() {
        let mut pool = IdPool::new(3, 4);
        let taken = [pool.take().unwrap(), pool.take().unwrap(), pool.take().unwrap()];
        assert_eq!(taken, [1, 2, 0]);
        assert!(matches!(pool.take(), Err(IdentityError::Exhausted { count: 3 })));
        pool.give_back(1);
        assert_eq!(pool.take().unwrap(), 1);
    }
}
