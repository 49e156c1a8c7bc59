//! Every status that `halsup` can return, in one place; README's table is held against it by a test.

/// How a run of the `halsup` program ended, as its exit status.
///
/// `halsup run` and `halsup exec` in the foreground return the child's own code instead, or 128 + its signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ExitCode {
    /// Everything that was asked for was done.
    Done = 0,
    /// The daemon refused, or the operation failed.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// No daemon answers on the control socket.
    Unreachable = 3,
    /// The pool is saturated, or the deadline passed.
    Saturated = 4,
    /// The named pool, worker or file does not exist.
    NotFound = 5,
    /// `run`/`exec`: halsup itself failed before the program could run.
    RunFailed = 125,
    /// `run`/`exec`: the program was found but cannot be executed.
    NotExecutable = 126,
    /// `run`/`exec`: the program was not found.
    CommandNotFound = 127,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}
