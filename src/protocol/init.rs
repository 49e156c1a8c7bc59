//! What the daemon tells a worker's init and what the init reports: fixed structures, no text, no allocation.
//!
//! The start of a worker is one sealed memfd: [`Header`], then tables of offsets, then strings. The init maps it once and
//! turns the offsets into pointers in place. Reports are one [`Report`] a packet on the init's own `SOCK_SEQPACKET`.
//! Both ends come from one build, so there is no version but [`MAGIC`]. Needs nothing but `core`.

/// First word of a start image: "halsupi" and the layout's number.
pub const MAGIC: u64 = u64::from_le_bytes(*b"halsupi1");

/// Descriptor on which the init talks to the daemon.
pub const SOCKET_FD: i32 = 3;
/// Descriptor of the start image.
pub const IMAGE_FD: i32 = 4;
/// First of the descriptors that are for the program; it finds them from 3 on.
pub const FIRST_PASSED_FD: i32 = 5;

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
}

/// What a report is about.
pub mod kind {
    /// The program runs. The packet carries its pidfd.
    pub const STARTED: u64 = 1;
    /// The program could not be started: `a` is the step, `b` the error number. The init exits.
    pub const NOT_STARTED: u64 = 2;
    /// The main process ended: `a` is 0 for an exit and 1 for a signal, `b` its number, `c` and `d` its microseconds in
    /// user and system mode, `e` its largest resident size in KiB.
    pub const MAIN_EXITED: u64 = 3;
    /// All that the main process left behind is gone: `a` processes. The init exits.
    pub const SWEPT: u64 = 4;
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
