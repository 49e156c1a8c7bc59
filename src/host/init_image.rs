//! The two sealed memfds of a spawn: the init's program, one for all, and the start image, one for each worker.
//!
//! Nothing of ours that runs inside a worker is executed from a file of the host, so nothing inside can reach the host's
//! binary through `/proc/self/exe` (HARDENING A1).

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use crate::protocol::init::{DEATH_NEVER, FIRST_PASSED_FD, Header, MAGIC, flag};

static INIT_PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/halsup-init"));

/// Largest start image: argument and environment strings, tables and filter together.
const IMAGE_BYTES_MAX: usize = 1 << 20;

/// A start image cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The memfd.
    #[error("make the memfd of {what}")]
    Memfd {
        /// What it is for.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The strings are too long together.
    #[error("command, environment and filter have {bytes} bytes, and at most {IMAGE_BYTES_MAX} can be passed")]
    TooLong {
        /// How long they are.
        bytes: usize,
    },
    /// A NUL inside a string.
    #[error("{what} contains a NUL byte")]
    Nul {
        /// Which string.
        what: String,
        /// Where.
        source: std::ffi::NulError,
    },
}

/// Written and sealed in one go: the kernel seals against writing once every processor has let go of the pages, and it waits for
/// the others. What one of those wrote a while ago was seen to take it half a second.
fn sealed(what: &'static str, bytes: &[u8], flags: MemfdFlags) -> Result<OwnedFd, ImageError> {
    let step = |source: rustix::io::Errno| ImageError::Memfd { what, source: source.into() };
    let flags = flags | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match memfd_create(c"halsup", flags) {
        // EINVAL: a kernel before 6.3, which has no such flags and makes every memfd executable.
        Err(rustix::io::Errno::INVAL) => memfd_create(c"halsup", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING),
        made => made,
    }
    .map_err(step)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(&fd, rest)).map_err(step)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    fcntl_add_seals(&fd, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE).map_err(step)?;
    Ok(fd)
}

/// The init's program as a sealed, executable memfd.
///
/// # Errors
/// [`ImageError::Memfd`].
pub fn init_program() -> Result<OwnedFd, ImageError> {
    sealed("the init's program", INIT_PROGRAM, MemfdFlags::EXEC)
}

/// What a worker's init is to start, and how.
#[derive(Debug, Clone, Default)]
pub struct Start<'a> {
    /// The command: program and arguments, at least the program.
    pub argv: &'a [String],
    /// The whole environment, as `NAME=value`. `PATH` in it is searched for a program without a slash.
    pub env: &'a [String],
    /// Working directory inside.
    pub cwd: &'a str,
    /// Pairs of (RLIMIT_* number, soft and hard limit).
    pub rlimits: &'a [(u32, u64)],
    /// The system call filter, eight bytes an instruction; empty is none.
    pub seccomp: &'a [u8],
    /// How many descriptors from 3 on the program gets.
    pub passed: usize,
    /// How long it goes on without a supervisor; `None` for ever.
    pub death_msec: Option<u64>,
    /// Where in the exit ledger its end is written.
    pub ledger_at: u64,
    /// Its spawn attempt.
    pub generation: u64,
    /// What a later daemon is to know about it.
    pub record: &'a [u8],
    /// What the init does with it.
    pub begins: Begins,
}

/// What an init does with a start image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Begins {
    /// Starts the program, whose output goes to pipes.
    #[default]
    Program,
    /// Starts the program on a terminal of its own, of this size.
    Terminal(Window),
    /// Waits until it is told what to start.
    Parked {
        /// Whether it waits under its filter, which must leave it all calls that an init makes. Putting a program under a filter
        /// costs more than all its other preparations, and is then done before anybody asks for it.
        filtered: bool,
    },
}

/// The size of a terminal, in cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

impl Begins {
    const fn flags(self) -> u64 {
        match self {
            Self::Program => 0,
            Self::Terminal(_) => flag::TERMINAL,
            Self::Parked { filtered: false } => flag::PARKED,
            Self::Parked { filtered: true } => flag::PARKED | flag::FILTERED,
        }
    }

    const fn window(self) -> u64 {
        match self {
            Self::Terminal(Window { rows, columns }) => (rows as u64) << 32 | columns as u64,
            Self::Program | Self::Parked { .. } => 0,
        }
    }
}

/// The file mode creation mask of every worker.
const UMASK: u64 = 0o022;
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Directories of `PATH` that are searched.
const PATH_ENTRIES_MAX: usize = 64;

/// Builds the start image.
///
/// # Errors
/// [`ImageError`].
pub fn start_image(start: &Start<'_>) -> Result<OwnedFd, ImageError> {
    let bytes = lay_out(start)?;
    sealed("the start image", &bytes, MemfdFlags::NOEXEC_SEAL)
}

/// The environment in a start image that [`start_image`] has made, as `NAME=value`.
///
/// # Errors
/// [`ImageError::Memfd`], with `InvalidData` where it is none.
pub fn environment_of(image: BorrowedFd<'_>) -> Result<Vec<String>, ImageError> {
    let failed = |source: io::Error| ImageError::Memfd { what: "a program that runs", source };
    let mut bytes = vec![0; IMAGE_BYTES_MAX];
    let length = rustix::io::retry_on_intr(|| rustix::io::pread(image, bytes.as_mut_slice(), 0));
    bytes.truncate(length.map_err(|errno| failed(errno.into()))?);
    strings_of(&bytes).ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))
}

/// The strings of an image's environment; `None` where its offsets lead nowhere.
fn strings_of(bytes: &[u8]) -> Option<Vec<String>> {
    let word = |at: u64| {
        let at = usize::try_from(at).ok()?;
        Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
    };
    if word(0)? != MAGIC {
        return None;
    }
    let mut strings = Vec::new();
    let mut slot = word(std::mem::offset_of!(Header, envp) as u64)?;
    loop {
        let at = word(slot)?;
        if at == 0 {
            return Some(strings);
        }
        let text = CStr::from_bytes_until_nul(bytes.get(usize::try_from(at).ok()?..)?).ok()?;
        strings.push(text.to_str().ok()?.to_owned());
        slot = slot.checked_add(8)?;
    }
}

fn lay_out(start: &Start<'_>) -> Result<Vec<u8>, ImageError> {
    let mut layout = Layout { bytes: vec![0; size_of::<Header>()] };
    let paths = search_paths(start);
    let header = Header {
        magic: MAGIC,
        paths: layout.table(&paths, "a path")?,
        argv: layout.table(start.argv, "an argument")?,
        envp: layout.table(start.env, "an environment variable")?,
        cwd: layout.string(start.cwd, "the working directory")?,
        rlimits: layout.words(start.rlimits.iter().flat_map(|(resource, value)| [u64::from(*resource), *value])),
        rlimit_count: start.rlimits.len() as u64,
        seccomp: layout.raw(start.seccomp),
        seccomp_len: (start.seccomp.len() / 8) as u64,
        passed: start.passed as u64,
        umask: UMASK,
        death_msec: start.death_msec.unwrap_or(DEATH_NEVER),
        kept_first: u64::from(FIRST_PASSED_FD.unsigned_abs()) + start.passed as u64,
        ledger_at: start.ledger_at,
        generation: start.generation,
        record: layout.raw(start.record),
        record_len: start.record.len() as u64,
        flags: start.begins.flags(),
        window: start.begins.window(),
        bytes: 0,
    };
    // A NUL at the very end, whatever the last piece was.
    layout.bytes.extend_from_slice(&[0; 8]);
    let header = Header { bytes: layout.bytes.len() as u64, ..header };
    if layout.bytes.len() > IMAGE_BYTES_MAX {
        return Err(ImageError::TooLong { bytes: layout.bytes.len() });
    }
    let words = [
        header.magic,
        header.bytes,
        header.paths,
        header.argv,
        header.envp,
        header.cwd,
        header.rlimits,
        header.rlimit_count,
        header.seccomp,
        header.seccomp_len,
        header.passed,
        header.umask,
        header.death_msec,
        header.kept_first,
        header.ledger_at,
        header.generation,
        header.record,
        header.record_len,
        header.flags,
        header.window,
    ];
    const { assert!(size_of::<Header>() == 20 * 8, "the words above are the whole header") };
    for (slot, word) in layout.bytes.chunks_exact_mut(8).zip(words) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    Ok(layout.bytes)
}

/// The paths to try: the program itself if it names one, else it in every directory of `PATH`.
fn search_paths(start: &Start<'_>) -> Vec<String> {
    let program = start.argv.first().map_or("", String::as_str);
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    let path = start.env.iter().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let absolute = path.split(':').filter(|dir| dir.starts_with('/')).take(PATH_ENTRIES_MAX);
    absolute.map(|dir| format!("{}/{program}", dir.trim_end_matches('/'))).collect()
}

struct Layout {
    bytes: Vec<u8>,
}

impl Layout {
    fn at(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }

    fn string(&mut self, text: &str, what: &str) -> Result<u64, ImageError> {
        let named = |source| ImageError::Nul { what: what.to_owned(), source };
        let text = CString::new(text).map_err(named)?;
        let at = self.at();
        self.bytes.extend_from_slice(text.as_bytes_with_nul());
        Ok(at)
    }

    fn words(&mut self, words: impl IntoIterator<Item = u64>) -> u64 {
        self.align();
        let at = self.at();
        for word in words {
            self.bytes.extend_from_slice(&word.to_le_bytes());
        }
        at
    }

    fn raw(&mut self, bytes: &[u8]) -> u64 {
        self.align();
        let at = self.at();
        self.bytes.extend_from_slice(bytes);
        at
    }

    fn table(&mut self, strings: &[String], what: &str) -> Result<u64, ImageError> {
        let mut offsets = Vec::with_capacity(strings.len() + 1);
        for text in strings {
            offsets.push(self.string(text, what)?);
        }
        offsets.push(0);
        Ok(self.words(offsets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_holds_what_was_put_in() {
        let argv = ["sleep".to_owned(), "5".to_owned()];
        let env = ["PATH=/bin:relative:/usr/bin/".to_owned()];
        let start = Start { argv: &argv, env: &env, cwd: "/", rlimits: &[(7, 64)], ..Start::default() };
        let bytes = lay_out(&start).unwrap();
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let text = |at: u64| {
            let at = usize::try_from(at).unwrap();
            std::ffi::CStr::from_bytes_until_nul(&bytes[at..]).unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(word(0), MAGIC);
        assert_eq!(word(8), bytes.len() as u64);
        let paths = usize::try_from(word(16)).unwrap();
        assert_eq!(
            (text(word(paths)), text(word(paths + 8)), word(paths + 16)),
            ("/bin/sleep".into(), "/usr/bin/sleep".into(), 0)
        );
        let argv_at = usize::try_from(word(24)).unwrap();
        assert_eq!((text(word(argv_at)), text(word(argv_at + 8))), ("sleep".into(), "5".into()));
        assert_eq!(strings_of(&bytes).unwrap(), env);
        // None that was cut or changed leads astray.
        for length in 0..bytes.len() {
            assert_ne!(strings_of(&bytes[..length]), Some(Vec::new()), "{length}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0xff;
            strings_of(&changed);
        }
    }

    #[test]
    fn the_environment_is_read_back_from_what_was_sealed() {
        use std::os::fd::AsFd as _;
        let (argv, env) = (["x".to_owned()], ["A=b c".to_owned(), "EMPTY=".to_owned(), "Ü=ü".to_owned()]);
        let image = start_image(&Start { argv: &argv, env: &env, cwd: "/", ..Start::default() }).unwrap();
        assert_eq!(environment_of(image.as_fd()).unwrap(), env);
        let other = std::fs::File::open("/dev/null").unwrap();
        assert!(environment_of(other.as_fd()).is_err());
    }

    #[test]
    fn a_nul_is_refused() {
        let argv = ["a\0b".to_owned()];
        assert!(matches!(lay_out(&Start { argv: &argv, cwd: "/", ..Start::default() }), Err(ImageError::Nul { .. })));
    }
}
