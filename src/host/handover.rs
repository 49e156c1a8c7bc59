//! Handing this process over to another build of the program: its file, the sealed memfd with what it is to know, and the
//! descriptors that stay open across execve(2).
//!
//! What is handed over stays open and inheritable until the new program is healthy, because the old one needs it again if
//! that never comes: the new program works on copies and closes the originals at the end. Called by `daemon`: the old one
//! [`Program::open`], [`write`], [`Program::become_it`]; the new one [`Handed::take`], then [`Handed::confirm`].

use std::ffi::CString;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{
    FileType, MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create,
};
use rustix::io::{Errno, FdFlags, fcntl_getfd, fcntl_setfd, pread};

use crate::sys::fallback::{self, own};

/// The variable that names the memfd.
pub const HANDED_VARIABLE: &str = "HALSUP_HANDED_FD";
/// The variable that says that this process only tries whether it could take over.
pub const TRIAL_VARIABLE: &str = "HALSUP_TRIAL";
/// A hand-over is never larger.
const BYTES_MAX: usize = 16 << 20;

/// A hand-over cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// A step was refused.
    #[error("{operation}")]
    Step {
        /// What was being done.
        operation: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The program cannot be executed by root with a clear conscience.
    #[error("use {path}: {reason}")]
    Program {
        /// Its path.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

fn step<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> HandoverError {
    move |source| HandoverError::Step { operation, source: source.into() }
}

/// A program to become.
#[derive(Debug)]
pub struct Program {
    file: OwnedFd,
    path: PathBuf,
}

impl Program {
    /// Opens the program at `path`: a regular executable file that belongs to root and that nobody else can write.
    ///
    /// # Errors
    /// [`HandoverError`].
    pub fn open(path: &Path) -> Result<Self, HandoverError> {
        let file =
            rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(step("open the program"))?;
        let stat = fstat(&file).map_err(step("look at the program"))?;
        let refuse = |reason| Err(HandoverError::Program { path: path.display().to_string(), reason });
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return refuse("it is no regular file");
        }
        if stat.st_mode & 0o100 == 0 {
            return refuse("it is not executable");
        }
        if stat.st_uid != 0 || stat.st_mode & 0o022 != 0 {
            return refuse("it has to belong to root and be writable by nobody else");
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// The program that this process runs, whatever has become of its file.
    ///
    /// # Errors
    /// Without /proc.
    pub fn running() -> Result<Self, HandoverError> {
        let path = Path::new("/proc/self/exe");
        let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(step("open the running program"))?;
        Ok(Self { file, path: installed_path().unwrap_or_else(|| path.to_owned()) })
    }

    /// Where it was found.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its file.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Becomes it. Returns only if that failed.
    #[must_use]
    pub fn become_it(&self, argv: &[CString], envp: &[CString]) -> HandoverError {
        let source = fallback::become_program(self.file.as_fd(), argv, envp);
        HandoverError::Step { operation: "execute the program", source }
    }
}

/// Where the running program was started from, also if another file lies there by now.
#[must_use]
pub fn installed_path() -> Option<PathBuf> {
    let path = std::fs::read_link("/proc/self/exe").ok()?;
    let text = path.to_str()?;
    Some(PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(text)))
}

/// Strings as execve(2) takes them; those with a NUL inside are left out, as nobody can have passed them.
#[must_use]
pub fn c_strings<S: AsRef<std::ffi::OsStr>>(strings: impl IntoIterator<Item = S>) -> Vec<CString> {
    use std::os::unix::ffi::OsStrExt as _;
    strings.into_iter().filter_map(|text| CString::new(text.as_ref().as_bytes()).ok()).collect()
}

/// Writes `bytes` into a sealed memfd.
///
/// # Errors
/// [`HandoverError`].
pub fn write(bytes: &[u8]) -> Result<OwnedFd, HandoverError> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = memfd_create(c"halsup-handover", flags).map_err(step("make the memfd of the hand-over"))?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let written = rustix::io::write(&fd, rest).map_err(step("write the hand-over"))?;
        rest = rest.get(written..).unwrap_or_default();
    }
    fcntl_add_seals(&fd, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)
        .map_err(step("seal the hand-over"))?;
    Ok(fd)
}

/// A memfd of one page into which the new program, or its crash, writes why it gave up.
///
/// # Errors
/// [`HandoverError`].
pub fn verdict() -> Result<OwnedFd, HandoverError> {
    memfd_create(c"halsup-verdict", MemfdFlags::CLOEXEC).map_err(step("make the memfd of the verdict"))
}

/// What a verdict says: a signal's number, or a sentence; `None` if nothing was written.
///
/// # Errors
/// [`HandoverError`].
pub fn read_verdict(verdict: BorrowedFd<'_>) -> Result<Option<String>, HandoverError> {
    let mut bytes = [0_u8; 2048];
    let length = pread(verdict, &mut bytes, 0).map_err(step("read the verdict"))?;
    Ok(match bytes.get(..length).unwrap_or_default() {
        [] => None,
        [signal] => Some(match signal {
            14 => "it was not healthy in time".to_owned(),
            signal => format!("it crashed with signal {signal}"),
        }),
        text => Some(String::from_utf8_lossy(text).into_owned()),
    })
}

/// Goes back to the program that handed this process over, if [`Handed::arm`] was called and [`Handed::confirm`] was not.
pub fn fall_back(reason: &str) {
    fallback::fall_back_now(reason);
}

/// Lets signals through that the program before this one has blocked across execve(2).
///
/// # Errors
/// None in practice.
pub fn unblock_signals() -> io::Result<()> {
    fallback::unblock_signals()
}

/// Says whether a descriptor outlives execve(2).
///
/// # Errors
/// EBADF.
pub fn set_inherited(fd: BorrowedFd<'_>, inherited: bool) -> io::Result<()> {
    let mut flags = fcntl_getfd(fd)?;
    flags.set(FdFlags::CLOEXEC, !inherited);
    Ok(fcntl_setfd(fd, flags)?)
}

/// What another build of this program has handed over.
///
/// Dropping it closes nothing: whoever gives up goes back to the other program, which needs all of it again.
#[derive(Debug)]
pub struct Handed {
    memfd: ManuallyDrop<OwnedFd>,
    /// The bytes that were written for this process.
    pub bytes: Vec<u8>,
    /// Descriptors that the other program may need again.
    kept: ManuallyDrop<Vec<OwnedFd>>,
}

impl Handed {
    /// Takes what the variable names, if there is anything. What is no sealed memfd is not believed.
    ///
    /// # Errors
    /// [`HandoverError`].
    pub fn take() -> Result<Option<Self>, HandoverError> {
        let Some(named) = std::env::var(HANDED_VARIABLE).ok().and_then(|text| text.parse::<RawFd>().ok()) else {
            return Ok(None);
        };
        let Some(memfd) = own(named) else {
            return Err(step("open the hand-over")(io::Error::from(Errno::BADF)));
        };
        let seals = fcntl_get_seals(&memfd).map_err(step("look at the hand-over"))?;
        if !seals.contains(SealFlags::WRITE | SealFlags::SEAL) {
            return Err(step("look at the hand-over")(io::Error::from(Errno::PERM)));
        }
        let size = usize::try_from(fstat(&memfd).map_err(step("look at the hand-over"))?.st_size).unwrap_or(0);
        let mut bytes = vec![0; size.min(BYTES_MAX)];
        let length = pread(&memfd, &mut bytes, 0).map_err(step("read the hand-over"))?;
        bytes.truncate(length);
        Ok(Some(Self { memfd: ManuallyDrop::new(memfd), bytes, kept: ManuallyDrop::new(Vec::new()) }))
    }

    /// A copy of a descriptor that was handed over, for this process alone; the original stays until [`Self::confirm`].
    ///
    /// # Errors
    /// EBADF, EMFILE.
    pub fn copy(&mut self, number: RawFd) -> Result<OwnedFd, HandoverError> {
        let Some(original) = own(number) else {
            return Err(step("take a descriptor that was handed over")(io::Error::from(Errno::BADF)));
        };
        let copy = original.try_clone().map_err(step("take a descriptor that was handed over"));
        self.kept.push(original);
        copy
    }

    /// The descriptors that have to stay open until then, by number: what else is open was inherited by accident.
    pub fn numbers(&self) -> impl Iterator<Item = RawFd> {
        self.kept.iter().chain([&*self.memfd]).map(AsRawFd::as_raw_fd)
    }

    /// From now on a crash, or `patience` without [`Self::confirm`], makes this process the program `old` again, with the
    /// same hand-over; why is written to `verdict`, which was copied before. Both are numbers that were handed over. Without
    /// `patience` it only keeps them.
    ///
    /// # Errors
    /// [`HandoverError`].
    pub fn arm(
        &mut self,
        (old, verdict): (RawFd, RawFd),
        argv: &[CString],
        envp: &[CString],
        patience: Option<Duration>,
    ) -> Result<(), HandoverError> {
        let missing = || step("take a descriptor that was handed over")(io::Error::from(Errno::BADF));
        self.kept.extend([own(old).ok_or_else(missing)?]);
        let find = |number: RawFd| self.kept.iter().find(|fd| fd.as_raw_fd() == number).ok_or_else(missing);
        let Some(patience) = patience else {
            // The alarm of the program that failed goes on across execve(2).
            return fallback::disarm().map_err(step("give up the way back"));
        };
        fallback::arm(find(old)?.as_fd(), find(verdict)?.as_fd(), argv, envp, patience)
            .map_err(step("prepare the way back"))
    }

    /// Number of the memfd itself.
    #[must_use]
    pub fn memfd_number(&self) -> RawFd {
        self.memfd.as_raw_fd()
    }

    /// This process is healthy: nobody needs the originals any more.
    ///
    /// # Errors
    /// None in practice.
    pub fn confirm(self) -> Result<(), HandoverError> {
        fallback::disarm().map_err(step("give up the way back"))?;
        drop((ManuallyDrop::into_inner(self.memfd), ManuallyDrop::into_inner(self.kept)));
        Ok(())
    }
}
