//! `halsup exec`: a further program in a running worker, in the foreground.

use clap::Args;

use super::context::Context;
use super::error::Error;
use super::sessions;
use super::terminal::{Input, Left, Relay, code_of, pipe_relay, size_of_terminal};
use crate::exit_code::ExitCode;
use crate::protocol::attach::Ended;
use crate::protocol::control::{AttachReply, ExecRequest, Request};

/// Run a further program in a running worker, and return its exit status.
///
/// It has the worker's user, limits and environment. It is killed when this command ends before it does. 127: it was not
/// found; 126: it cannot be executed; 125: it could not be started for another reason.
#[derive(Debug, Args)]
pub(super) struct Exec {
    /// Give it a terminal of its own.
    #[arg(short, long)]
    pub(super) terminal: bool,
    /// Pass standard input on; a terminal always gets it.
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// A variable for its environment, NAME=VALUE.
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(super) env: Vec<String>,
    /// A session or worker.
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// The program and its arguments.
    #[arg(value_name = "COMMAND", required = true, allow_hyphen_values = true, trailing_var_arg = true)]
    pub(super) command: Vec<String>,
}

impl Exec {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let program = self.command.first().cloned().unwrap_or_default();
        match self.carry_out(context) {
            Ok(Left::Ended(Ended::Exited(0))) => Ok(()),
            Ok(Left::Ended(ended @ Ended::NotStarted(errno))) => {
                Err(Error::NotRun { program, errno, code: code_of(ended) })
            }
            Ok(Left::Ended(ended)) => Err(Error::Ended { code: code_of(ended) }),
            Ok(Left::Detached) => Err(Error::Ended { code: ExitCode::RunFailed as u8 }),
            Ok(Left::Lost) => Err(Error::Run { source: Box::new(Error::Lost { method: "Exec" }) }),
            Err(error @ (Error::Usage { .. } | Error::OutputClosed)) => Err(error),
            Err(error) => Err(Error::Run { source: Box::new(error) }),
        }
    }

    fn carry_out(self, context: &Context) -> Result<Left, Error> {
        if let Some(wrong) =
            self.env.iter().find(|variable| variable.split_once('=').is_none_or(|(name, _)| name.is_empty()))
        {
            return Err(Error::Usage { reason: format!("--env takes NAME=VALUE, not {wrong}") });
        }
        let mut client = context.client()?;
        let (target, name) = sessions::pick(&mut client, Some(&self.name))?;
        let size = if self.terminal { Some(size_of_terminal("exec --terminal")?) } else { None };
        let request = Request::Exec(ExecRequest {
            target,
            command: self.command,
            env: Some(self.env),
            terminal: Some(self.terminal),
            columns: size.map(|size| size.columns),
            rows: size.map(|size| size.rows),
        });
        let (_, connection) =
            client.upgrade::<AttachReply>(&request).map_err(|error| sessions::not_found(error, &name))?;
        if self.terminal {
            return Relay::begin("exec --terminal", connection, None, false)?.run(false);
        }
        pipe_relay(connection, if self.interactive { Input::Passed } else { Input::Closed })
    }
}
