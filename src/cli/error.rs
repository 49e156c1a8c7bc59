//! How a run of the program can fail, what it says then, and which exit status that is.

use std::path::PathBuf;

use crate::exit_code::ExitCode;
use crate::protocol::control::{CallFailure, Error as ControlError, Failure};
use crate::protocol::escape;
use crate::protocol::service::ServiceError;

/// How many failed workers one error names.
const FAILURES_SHOWN_MAX: usize = 5;

/// Why a verb did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("no halsup daemon answers on {}: start one with `halsup daemon start`", path.display())]
    Unreachable { path: PathBuf },
    #[error("permission denied on {}: ask as root, or have the daemon's configuration give you a role", path.display())]
    Denied { path: PathBuf },
    #[error("connect to {}", path.display())]
    Connect { path: PathBuf, source: std::io::Error },
    #[error("the daemon went away before it answered {method}")]
    Lost { method: &'static str },
    #[error("the daemon has not answered {method} within {seconds} s")]
    Silent { method: &'static str, seconds: u64 },
    #[error("call {method}")]
    Call { method: &'static str, source: std::io::Error },
    #[error("the daemon's answer to {method} is not understood: {reason}; `halsup daemon status` shows its version")]
    Answer { method: &'static str, reason: String },
    #[error("{}", refusal(.0))]
    Refused(CallFailure),
    #[error("{}", incomplete(what, *achieved, *wanted, failures))]
    Incomplete { what: String, achieved: u32, wanted: u32, failures: Vec<Failure> },
    #[error("{what} after {}: {progress}", humantime::format_duration(*after))]
    NotInTime { what: String, after: std::time::Duration, progress: String },
    #[error("{reason}")]
    Usage { reason: String },
    #[error("directory {} does not exist", path.display())]
    NoDirectory { path: PathBuf },
    #[error("{reason}")]
    NoClaims { reason: String },
    #[error("configuration {} does not exist: name one with --config, or write it", path.display())]
    FileMissing { path: PathBuf },
    #[error("{} does not exist: it is written when a daemon first runs", path.display())]
    FileMissingYet { path: PathBuf },
    #[error("read {}", path.display())]
    ReadFile { path: PathBuf, source: std::io::Error },
    #[error("write {}", path.display())]
    WriteFile { path: PathBuf, source: std::io::Error },
    /// One line for each thing that is wrong.
    #[error("{}", located(path, lines))]
    Config { path: Option<PathBuf>, lines: Vec<String> },
    #[error(transparent)]
    Daemon(#[from] crate::daemon::Error),
    #[error(transparent)]
    Recovery(#[from] crate::daemon::recovery::Error),
    #[error("start the daemon: {operation}")]
    Spawn { operation: &'static str, source: std::io::Error },
    /// The daemon's own sentence, or the best that is known instead.
    #[error("{sentence}")]
    NotStarted { sentence: String, code: ExitCode },
    #[error("the daemon (pid {pid}) has not ended {seconds} s after its last answer")]
    StillRuns { pid: u32, seconds: i64 },
    #[error("the daemon has ended, but not all of its workers: stuck are {}", workers.join(", "))]
    Stuck { workers: Vec<String> },
    #[error("wait for the daemon")]
    Wait { source: std::io::Error },
    #[error("not ready: {reason}")]
    NotReady { reason: String },
    #[error("{count} checks are not ok")]
    Unwell { count: usize },
    #[error("{verb} needs a terminal on standard input and output; `halsup capture` prints what a session shows")]
    NoTerminal { verb: &'static str },
    #[error("use the terminal")]
    Terminal { source: std::io::Error },
    #[error("{sentence}")]
    Dashboard { sentence: String },
    #[error("{sentence}")]
    NoSessions { sentence: &'static str },
    #[error("Session not found: {name}")]
    SessionNotFound { name: String },
    #[error("the daemon went away and {name} goes on: `halsup attach {name}` once a daemon runs")]
    SessionLost { name: String },
    /// The program that was run in the foreground has ended with this status: no error of ours.
    #[error("the program ended with status {code}")]
    Ended { code: u8 },
    #[error("{}", not_run(program, *errno))]
    NotRun { program: String, errno: u32, code: u8 },
    /// halsup itself failed before or while a program ran in the foreground.
    #[error(transparent)]
    Run { source: Box<Self> },
    #[error("read standard input")]
    Input { source: std::io::Error },
    #[error("pull {name}: skopeo: {reason}")]
    Pull { name: String, reason: String },
    #[error(
        "pull {name}: skopeo is not installed: install it, or import an archive of the image by `halsup image import FILE --name {name}`"
    )]
    NoSkopeo { name: String },
    #[error("{sentence}")]
    Helper { sentence: String },
    #[error("write the answer")]
    Output { source: std::io::Error },
    /// Who read our output has gone: no error of ours.
    #[error("nobody reads the output")]
    OutputClosed,
}

impl Error {
    /// Writing to stdout failed.
    pub(super) fn output(source: std::io::Error) -> Self {
        if source.kind() == std::io::ErrorKind::BrokenPipe { Self::OutputClosed } else { Self::Output { source } }
    }

    /// The exit status for it, as DESIGN 7 and the README list them.
    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            Self::OutputClosed => ExitCode::Done,
            Self::Unreachable { .. } | Self::Lost { .. } | Self::SessionLost { .. } => ExitCode::Unreachable,
            Self::Usage { .. } | Self::Config { .. } => ExitCode::Usage,
            Self::NotRun { .. } | Self::Run { .. } => ExitCode::RunFailed,
            Self::FileMissing { .. }
            | Self::FileMissingYet { .. }
            | Self::NoDirectory { .. }
            | Self::NoSessions { .. }
            | Self::SessionNotFound { .. } => ExitCode::NotFound,
            Self::Recovery(error) if error.is_missing() => ExitCode::NotFound,
            Self::Silent { .. } | Self::NotInTime { .. } => ExitCode::Saturated,
            Self::NotStarted { code, .. } => *code,
            Self::Refused(failure) => match failure {
                CallFailure::Control(error) => match error {
                    ControlError::NotFound { .. } => ExitCode::NotFound,
                    ControlError::RequestFailed(failure) => of_request(&failure.reason),
                    ControlError::Saturated {} => ExitCode::Saturated,
                    ControlError::Refused { .. }
                    | ControlError::Exists { .. }
                    | ControlError::ShuttingDown {}
                    | ControlError::Failed { .. } => ExitCode::Failed,
                },
                CallFailure::Service(_) | CallFailure::Unknown { .. } => ExitCode::Failed,
            },
            Self::Denied { .. }
            | Self::Connect { .. }
            | Self::NoClaims { .. }
            | Self::Call { .. }
            | Self::Answer { .. }
            | Self::Incomplete { .. }
            | Self::ReadFile { .. }
            | Self::WriteFile { .. }
            | Self::Daemon(_)
            | Self::Recovery(_)
            | Self::Spawn { .. }
            | Self::StillRuns { .. }
            | Self::Stuck { .. }
            | Self::Wait { .. }
            | Self::NotReady { .. }
            | Self::Unwell { .. }
            | Self::NoTerminal { .. }
            | Self::Terminal { .. }
            | Self::Ended { .. }
            | Self::Input { .. }
            | Self::Pull { .. }
            | Self::NoSkopeo { .. }
            | Self::Dashboard { .. }
            | Self::Helper { .. }
            | Self::Output { .. } => ExitCode::Failed,
        }
    }

    /// The status of a program that was not run, where it tells more than ours.
    pub(super) const fn code_of_program(&self) -> Option<u8> {
        if let Self::NotRun { code, .. } = self { Some(*code) } else { None }
    }

    /// The error with all its causes, as it is printed: `set memory.max of web.3: Invalid argument`.
    pub(super) fn sentence(&self) -> String {
        let mut sentence = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            sentence.push_str(": ");
            sentence.push_str(&error.to_string());
            cause = error.source();
        }
        sentence
    }
}

fn refusal(failure: &CallFailure) -> String {
    match failure {
        CallFailure::Service(ServiceError::PermissionDenied {}) => {
            "permission denied: ask as root, or have the daemon's configuration give you a role".into()
        }
        CallFailure::Service(ServiceError::MethodNotFound { method }) => {
            format!("the daemon does not know {method}: it is of another version than this program")
        }
        CallFailure::Service(
            ServiceError::InterfaceNotFound { .. }
            | ServiceError::MethodNotImplemented { .. }
            | ServiceError::InvalidParameter { .. }
            | ServiceError::ExpectedMore {},
        )
        | CallFailure::Control(_)
        | CallFailure::Unknown { .. } => failure.to_string(),
    }
}

fn not_run(program: &str, errno: u32) -> String {
    let reason = match i32::try_from(errno) {
        Ok(0) | Err(_) => "it could not be started; the daemon's log says why".to_owned(),
        Ok(2) => "not found in the worker".to_owned(),
        Ok(errno) => std::io::Error::from_raw_os_error(errno).to_string(),
    };
    format!("run {program}: {reason}")
}

fn incomplete(what: &str, achieved: u32, wanted: u32, failures: &[Failure]) -> String {
    let mut sentence = format!("{what}: {achieved} of {wanted} done");
    for failure in failures.iter().take(FAILURES_SHOWN_MAX) {
        sentence.push_str(&format!("; {}: {}", failure.worker, failure.reason));
    }
    if failures.len() > FAILURES_SHOWN_MAX {
        sentence.push_str(&format!("; and {} more", failures.len() - FAILURES_SHOWN_MAX));
    }
    sentence
}

fn located(path: &Option<PathBuf>, lines: &[String]) -> String {
    // Lines are printed one by one: a path must not begin a line of its own.
    let begin = path.as_ref().map_or_else(String::new, |path| format!("{}: ", escape::text(&path.to_string_lossy())));
    let located: Vec<_> = lines.iter().map(|line| format!("{begin}{line}")).collect();
    located.join("\n")
}

/// The exit status of a request that has no result: whoever waits a little may have one.
fn of_request(reason: &str) -> ExitCode {
    match reason {
        "pool_saturated" | "queue_timeout" | "worker_timeout" | "worker_busy" | "circuit_open" => ExitCode::Saturated,
        _ => ExitCode::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_sentence_with_its_causes_and_its_code() {
        let denied = std::io::Error::from_raw_os_error(13);
        let not_found = ControlError::NotFound { what: "worker web.9".into() };
        let failure = |worker: &str| Failure { worker: worker.into(), reason: "exec: not found".into() };
        for (error, sentence, code) in [
            (
                Error::Unreachable { path: "/run/halsup/control.sock".into() },
                "no halsup daemon answers on /run/halsup/control.sock: start one with `halsup daemon start`",
                ExitCode::Unreachable,
            ),
            (
                Error::ReadFile { path: "/x".into(), source: denied },
                "read /x: Permission denied (os error 13)",
                ExitCode::Failed,
            ),
            (Error::Refused(CallFailure::Control(not_found)), "worker web.9 does not exist", ExitCode::NotFound),
            (
                Error::Refused(CallFailure::Control(ControlError::Saturated {})),
                "saturated: the queue is full or the deadline passed",
                ExitCode::Saturated,
            ),
            (
                Error::Incomplete {
                    what: "scale web".into(),
                    achieved: 0,
                    wanted: 7,
                    failures: ["web.0", "web.1", "web.2", "web.3", "web.4", "web.5", "web.6"].map(failure).into(),
                },
                "scale web: 0 of 7 done; web.0: exec: not found; web.1: exec: not found; web.2: exec: not found; \
                 web.3: exec: not found; web.4: exec: not found; and 2 more",
                ExitCode::Failed,
            ),
            (
                Error::Config { path: Some("a.toml".into()), lines: vec!["line 1: x".into(), "line 2: y".into()] },
                "a.toml: line 1: x\na.toml: line 2: y",
                ExitCode::Usage,
            ),
            (
                Error::FileMissing { path: "/x".into() },
                "configuration /x does not exist: name one with --config, or write it",
                ExitCode::NotFound,
            ),
        ] {
            assert_eq!(error.sentence(), sentence);
            assert_eq!(error.exit_code(), code, "{sentence}");
        }
        let closed = Error::output(std::io::ErrorKind::BrokenPipe.into());
        assert_eq!(closed.exit_code(), ExitCode::Done);
    }
}
