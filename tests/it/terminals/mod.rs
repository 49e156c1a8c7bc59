//! Terminals of workers, as an operator has them: `halsup attach` on a terminal of the test's own.

mod claimed;
mod ends;
mod exec;
mod hostile;
pub(crate) mod operator;
mod programs;
mod sending;
mod viewers;

use crate::fixture::Daemon;
use crate::look::wait_healthy;

/// The pool of one worker with a terminal that runs `command` in `sh`; keys of `more` are the pool's. The command is a
/// literal string of TOML.
fn pool(name: &str, command: &str, more: &str) -> String {
    format!(
        "[pool.{name}]\nterminal = true\ncommand = ['sh', '-c', '''{command}''']\nenv = {{ TERM = 'xterm' }}\n{more}\n"
    )
}

/// A daemon with one worker that runs `command` in `sh` on a terminal, `web.0`.
#[track_caller]
fn daemon(command: &str) -> Daemon {
    let mut daemon = Daemon::start(&pool("web", command, ""));
    wait_healthy(&mut daemon, 1);
    daemon
}

/// The text of the screen of `web.0`.
#[track_caller]
fn captured(daemon: &Daemon) -> String {
    let output = daemon.cli(&["capture", "web.0"]);
    assert_eq!(output.status, 0, "{output:?}");
    output.stdout
}
