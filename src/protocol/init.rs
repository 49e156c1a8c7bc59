//! What the daemon tells a worker's init and what the init reports: fixed structures, no text, no allocation.
//!
//! The start of a worker is one sealed memfd: [`Header`], then tables of offsets, then strings. The init maps it once and
//! turns the offsets into pointers in place. Reports are one [`Report`] a packet on the init's own `SOCK_SEQPACKET`.
//!
//! The init also keeps what a later daemon needs to take the worker over: the image with the worker's birth record at
//! [`IMAGE_FD`], and from [`Header::kept_first`] on the descriptors that [`kept`] names, the daemon's own ends among them.
//! A worker may outlive the build that made it, so [`MAGIC`] changes with every change of the layout, and a daemon
//! takes over only workers whose layout it knows. Needs nothing but `core`.

/// First word of a start image: "halsupi" and the layout's number.
pub const MAGIC: u64 = u64::from_le_bytes(*b"halsupi4");

/// Descriptor on which the init talks to the daemon.
pub const SOCKET_FD: i32 = 3;
/// Descriptor of the start image.
pub const IMAGE_FD: i32 = 4;
/// First of the descriptors that are for the program; it finds them from 3 on.
pub const FIRST_PASSED_FD: i32 = 5;

/// What the init keeps for a later daemon, by its place behind [`Header::kept_first`]. The program never gets any of it.
pub mod kept {
    /// The daemon's end of the init's socket.
    pub const SOCKET: u64 = 0;
    /// The daemon's pidfd: readable when it has ended.
    pub const DAEMON: u64 = 1;
    /// The exit ledger, writable.
    pub const LEDGER: u64 = 2;
    /// The read end of the program's standard output.
    pub const STDOUT: u64 = 3;
    /// The read end of its standard error.
    pub const STDERR: u64 = 4;
    /// The program's pidfd, as soon as it runs; `/dev/null` before.
    pub const MAIN: u64 = 5;
    /// The daemon's end of the channel; `/dev/null` where there is none.
    pub const CHANNEL: u64 = 6;
    /// The notify socket; `/dev/null` where there is none.
    pub const NOTIFY: u64 = 7;
    /// The master end of the main program's terminal; `/dev/null` where it has none.
    pub const TERMINAL: u64 = 8;
    /// The start image of a main program that was started by an order, for the environment that its claim gave it;
    /// `/dev/null` before, and where it began with its worker.
    pub const CLAIM: u64 = 9;
    /// How many there are.
    pub const COUNT: u64 = 10;
}

/// The pid that the program has inside: the first process after the init.
pub const PROGRAM_PID: u32 = 2;

/// `death_msec` for a worker that outlives its supervisor for ever.
pub const DEATH_NEVER: u64 = u64::MAX;

/// Beginning of a start image. All offsets are in bytes from its start; tables are arrays of `u64`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u64,
    /// Size of the image in bytes.
    pub bytes: u64,
    /// Table of offsets of paths to try in turn, ended by 0.
    pub paths: u64,
    /// Table of offsets of arguments, ended by 0.
    pub argv: u64,
    /// Table of offsets of `NAME=value` strings, ended by 0.
    pub envp: u64,
    /// Offset of the working directory.
    pub cwd: u64,
    /// Table of pairs (resource, limit).
    pub rlimits: u64,
    /// How many pairs.
    pub rlimit_count: u64,
    /// Offset of the seccomp filter, eight bytes an instruction.
    pub seccomp: u64,
    /// How many instructions; 0 is no filter.
    pub seccomp_len: u64,
    /// How many descriptors are for the program.
    pub passed: u64,
    /// File mode creation mask.
    pub umask: u64,
    /// How long the worker goes on without a supervisor, in milliseconds; [`DEATH_NEVER`] for ever.
    pub death_msec: u64,
    /// Number of the first descriptor of [`kept`].
    pub kept_first: u64,
    /// Where in the exit ledger its end is written, in bytes.
    pub ledger_at: u64,
    /// Its spawn attempt.
    pub generation: u64,
    /// Offset of its birth record, which is the daemon's and not read here.
    pub record: u64,
    /// Length of that, in bytes.
    pub record_len: u64,
    /// Of [`flag`].
    pub flags: u64,
    /// Size of the terminal: rows in the upper half, columns in the lower.
    pub window: u64,
}

/// Bits of [`Header::flags`].
pub mod flag {
    /// Nothing is started yet: the init says [`super::kind::PARKED`] and waits for a [`super::START`].
    pub const PARKED: u64 = 1;
    /// The program gets a terminal of its own, made in the worker's own devpts.
    pub const TERMINAL: u64 = 2;
    /// The init puts itself under the image's filter before it parks, so that its programs have it from their beginning.
    pub const FILTERED: u64 = 4;
}

impl Header {
    /// The words of a start image's beginning as a header.
    #[must_use]
    pub const fn from_words(words: [u64; size_of::<Self>() / 8]) -> Self {
        let [magic, bytes, paths, argv, envp, cwd, rlimits, rlimit_count, seccomp, seccomp_len, passed, rest @ ..] =
            words;
        let [umask, death_msec, kept_first, ledger_at, generation, record, record_len, flags, window] = rest;
        Self {
            magic,
            bytes,
            paths,
            argv,
            envp,
            cwd,
            rlimits,
            rlimit_count,
            seccomp,
            seccomp_len,
            passed,
            umask,
            death_msec,
            kept_first,
            ledger_at,
            generation,
            record,
            record_len,
            flags,
            window,
        }
    }
}

/// First word of an entry of the exit ledger: "halsupx" and the layout's number.
pub const ENTRY_MAGIC: u64 = u64::from_le_bytes(*b"halsupx1");

/// The end of a worker as its init writes it down, whether or not a daemon is there to be told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Entry {
    /// [`ENTRY_MAGIC`].
    pub magic: u64,
    /// The spawn attempt that ended.
    pub generation: u64,
    /// One of [`how`].
    pub how: u64,
    /// Exit code or signal; for [`how::NOT_STARTED`] the step in the upper half and the error number in the lower.
    pub value: u64,
    /// Microseconds in user mode.
    pub user_usec: u64,
    /// Microseconds in system mode.
    pub system_usec: u64,
    /// Largest resident size in KiB.
    pub max_rss_kib: u64,
    /// [`Entry::sum`] of the rest.
    pub sum: u64,
}

/// How a worker ended, in the exit ledger.
pub mod how {
    /// The main process called exit.
    pub const EXITED: u64 = 1;
    /// The main process was ended by a signal.
    pub const SIGNALLED: u64 = 2;
    /// The init ended it because no daemon had come back in time.
    pub const ABANDONED: u64 = 3;
    /// The program never ran.
    pub const NOT_STARTED: u64 = 4;
}

impl Entry {
    /// A checksum of all words but the last: an entry that was torn or never written does not have it.
    #[must_use]
    pub const fn sum(&self) -> u64 {
        let words =
            [self.magic, self.generation, self.how, self.value, self.user_usec, self.system_usec, self.max_rss_kib];
        let (mut sum, mut n) = (0xcbf2_9ce4_8422_2325_u64, 0);
        while n < words.len() {
            sum = (sum ^ words[n]).wrapping_mul(0x0100_0000_01b3).rotate_left(29);
            n += 1;
        }
        sum
    }
}

/// What a daemon says to an init: one [`Order`] a packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Order {
    /// [`SUPERVISOR`] or [`START`].
    pub what: u64,
    /// For [`START`]: number of the program, [`MAIN`] or the daemon's own choice.
    pub program: u64,
}

/// The daemon is there from now on. Carries the daemon's pidfd.
pub const SUPERVISOR: u64 = u64::from_le_bytes(*b"halsupd1");

/// A program is to be started. Carries a start image, and for one without a terminal that is not the main program its three
/// standard descriptors.
pub const START: u64 = u64::from_le_bytes(*b"halsups1");

/// The number of the main program. A parked init starts it at the first [`START`]; there is no second one.
pub const MAIN: u64 = 0;
/// How many programs beside the main one can run at once; a further one is refused with EAGAIN.
pub const PROGRAMS_MAX: usize = 16;
/// How many descriptors come with an [`Order`] at most.
pub const ORDER_FDS_MAX: usize = 4;

/// What a report is about.
pub mod kind {
    /// Program `a` runs. The packet carries its pidfd.
    pub const STARTED: u64 = 1;
    /// Program `c` could not be started: `a` is the step, `b` the error number. If it was the main one, the init exits.
    pub const NOT_STARTED: u64 = 2;
    /// The main process ended: `a` is 0 for an exit and 1 for a signal, `b` its number, `c` and `d` its microseconds in
    /// user and system mode, `e` its largest resident size in KiB.
    pub const MAIN_EXITED: u64 = 3;
    /// All that the main process left behind is gone: `a` processes. The init exits.
    pub const SWEPT: u64 = 4;
    /// The init is parked and waits for a program. Said again to each daemon.
    pub const PARKED: u64 = 5;
    /// Program `a`, which is about to start, has a terminal. The packet carries its master end.
    pub const TERMINAL: u64 = 6;
    /// Program `a`, which is not the main one, ended: `b` is 0 for an exit and 1 for a signal, `c` its number.
    pub const PROGRAM_ENDED: u64 = 7;
}

/// Steps of starting the program, for [`kind::NOT_STARTED`].
pub mod step {
    /// The image is not what it should be.
    pub const IMAGE: u64 = 1;
    /// Cloning the program's process.
    pub const CLONE: u64 = 2;
    /// Putting the descriptors in their places.
    pub const DESCRIPTORS: u64 = 3;
    /// Setting a resource limit.
    pub const RLIMIT: u64 = 4;
    /// Entering the working directory.
    pub const CWD: u64 = 5;
    /// Installing the system call filter.
    pub const SECCOMP: u64 = 6;
    /// Executing the program.
    pub const EXEC: u64 = 7;
    /// Making its terminal.
    pub const TERMINAL: u64 = 8;
}

/// One packet from the init.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Report {
    /// One of [`kind`].
    pub kind: u64,
    /// See [`kind`].
    pub a: u64,
    /// See [`kind`].
    pub b: u64,
    /// See [`kind`].
    pub c: u64,
    /// See [`kind`].
    pub d: u64,
    /// See [`kind`].
    pub e: u64,
}
