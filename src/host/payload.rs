//! Payloads: memory that travels beside a request or an answer as a descriptor, and is passed on without being read.
//!
//! Decides what may be passed on (HARDENING M4): only a sealed memfd, whose size nobody can change any more, so that whoever
//! maps it cannot be hit by a truncation; one that is not lent cannot be written either. Never maps or reads one.

use std::os::fd::AsFd;

use rustix::fs::{FileType, OFlags, SealFlags, fcntl_get_seals, fcntl_getfl, fstat, fstatfs};
use rustix::io::Errno;

/// What a payload has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadKind {
    /// Nobody can write it.
    Immutable,
    /// Its owner lends it: whoever has it can write it.
    Lent,
}

/// A descriptor is no payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// The kernel does not say what it is.
    #[error("look at the payload")]
    Look(#[source] Errno),
    /// Not memory made by `memfd_create`, or a descriptor that cannot be used.
    #[error("the payload is no sealed memfd")]
    NoMemfd,
    /// Some seal is missing.
    #[error("the payload's memfd is not sealed against {against}")]
    Unsealed {
        /// What could still be done to it.
        against: &'static str,
    },
    /// It cannot be read and written, which one that is lent has to be.
    #[error("the lent payload cannot be both read and written")]
    Access,
    /// It is smaller than it was said to be.
    #[error("the payload has {size} bytes, not {bytes}")]
    Short {
        /// What was said.
        bytes: u64,
        /// What there is.
        size: u64,
    },
}

/// `TMPFS_MAGIC`: what a memfd lies on, unless it is of huge pages.
const TMPFS: u64 = 0x0102_1994;

/// Checks that `fd` is a payload of this kind with at least so many bytes. Its size.
///
/// # Errors
/// [`PayloadError`] says what is wrong with it.
pub fn check_payload(fd: impl AsFd, bytes: u64, kind: PayloadKind) -> Result<u64, PayloadError> {
    let fd = fd.as_fd();
    let stat = fstat(fd).map_err(PayloadError::Look)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(PayloadError::NoMemfd);
    }
    // Only memory of `memfd_create` takes seals: a file of any file system says EINVAL or has none but the last.
    let seals = fcntl_get_seals(fd).map_err(|_not_one| PayloadError::NoMemfd)?;
    // One of huge pages takes them too, and kills whoever touches it where the host has none left (SIGBUS).
    let lies_on = fstatfs(fd).map_err(PayloadError::Look)?.f_type;
    if u64::try_from(lies_on).ok() != Some(TMPFS) {
        return Err(PayloadError::NoMemfd);
    }
    let mut wanted =
        vec![(SealFlags::SHRINK, "shrinking"), (SealFlags::GROW, "growing"), (SealFlags::SEAL, "further seals")];
    if kind == PayloadKind::Immutable {
        wanted.push((SealFlags::WRITE, "writing"));
    }
    if let Some((_, against)) = wanted.into_iter().find(|(seal, _)| !seals.contains(*seal)) {
        return Err(PayloadError::Unsealed { against });
    }
    let access = fcntl_getfl(fd).map_err(PayloadError::Look)? & OFlags::RWMODE;
    if kind == PayloadKind::Lent && access != OFlags::RDWR {
        return Err(PayloadError::Access);
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size < bytes { Err(PayloadError::Short { bytes, size }) } else { Ok(size) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::fs::{MemfdFlags, Mode, fcntl_add_seals, ftruncate, memfd_create, open};

    use super::*;

    const LENT: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);
    const ALL: SealFlags = LENT.union(SealFlags::WRITE);

    fn memory(size: u64, seals: SealFlags) -> OwnedFd {
        let fd = memfd_create("payload", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, size).unwrap();
        fcntl_add_seals(&fd, seals).unwrap();
        fd
    }

    #[test]
    fn a_sealed_memfd_is_one() {
        assert_eq!(check_payload(memory(10, ALL), 10, PayloadKind::Immutable), Ok(10));
        assert_eq!(check_payload(memory(10, ALL), 0, PayloadKind::Immutable), Ok(10));
        assert_eq!(check_payload(memory(10, LENT), 7, PayloadKind::Lent), Ok(10));
    }

    #[test]
    fn whatever_lacks_a_seal_or_a_byte_is_none() {
        for (seal, against) in [
            (SealFlags::SHRINK, "shrinking"),
            (SealFlags::GROW, "growing"),
            (SealFlags::SEAL, "further seals"),
            (SealFlags::WRITE, "writing"),
        ] {
            let refused = check_payload(memory(10, ALL.difference(seal)), 10, PayloadKind::Immutable);
            assert_eq!(refused, Err(PayloadError::Unsealed { against }));
        }
        let short = check_payload(memory(10, ALL), 11, PayloadKind::Immutable);
        assert_eq!(short, Err(PayloadError::Short { bytes: 11, size: 10 }));
    }

    #[test]
    fn memory_of_huge_pages_is_none() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
        // A kernel without huge pages makes none.
        let Ok(fd) = memfd_create("payload", flags) else { return };
        ftruncate(&fd, 2 << 20).unwrap();
        fcntl_add_seals(&fd, ALL).unwrap();
        assert_eq!(check_payload(fd, 10, PayloadKind::Immutable), Err(PayloadError::NoMemfd));
    }

    #[test]
    fn other_descriptors_are_none() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "content").unwrap();
        let opened = |path: &std::path::Path, flags| open(path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let (pipe, _end) = rustix::pipe::pipe().unwrap();
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let path = |path: &str| std::path::PathBuf::from(path);
        let all: Vec<OwnedFd> = vec![
            opened(&dir.path().join("file"), OFlags::RDONLY),
            opened(dir.path(), OFlags::RDONLY),
            opened(&path("/dev/zero"), OFlags::RDWR),
            opened(&path("/proc/self/mem"), OFlags::RDONLY),
            opened(&path("/proc/self/status"), OFlags::RDONLY),
            opened(&dir.path().join("file"), OFlags::PATH),
            pipe,
            socket.into(),
        ];
        for (number, fd) in all.into_iter().enumerate() {
            for kind in [PayloadKind::Immutable, PayloadKind::Lent] {
                assert!(check_payload(&fd, 0, kind).is_err(), "descriptor {number}, {kind:?}");
            }
        }
        let shm = opened(&path("/dev/shm"), OFlags::RDWR | OFlags::TMPFILE);
        assert!(check_payload(shm, 0, PayloadKind::Lent).is_err(), "a file of a tmpfs that nobody has sealed");
    }
}
