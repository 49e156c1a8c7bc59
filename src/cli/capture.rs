//! `halsup capture`: what a session's terminal shows, as text.

use std::io::IsTerminal as _;

use clap::Args;
use serde::Serialize;

use super::context::Context;
use super::error::Error;
use super::sessions;
use super::terminal::{Screen, replay};
use crate::protocol::control::{AttachReply, Request, WatchRequest};
use crate::protocol::escape;

/// Print what the terminal of a session shows.
#[derive(Debug, Args)]
pub(super) struct Capture {
    /// The last so many lines, those that have left the screen included, instead of the screen.
    #[arg(short = 'n', long, value_name = "COUNT", conflicts_with = "raw")]
    pub(super) lines: Option<usize>,
    /// The bytes that the session has written last, at most 256 KiB, as they are.
    #[arg(long)]
    pub(super) raw: bool,
    /// A session; it may be left out where there is only one.
    #[arg(value_name = "NAME")]
    pub(super) name: Option<String>,
}

/// As JSON prints it.
#[derive(Serialize)]
struct Captured {
    session: String,
    columns: u16,
    rows: u16,
    lines: Vec<String>,
}

impl Capture {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        if self.raw && std::io::stdout().is_terminal() {
            let reason = "--raw prints what drives a terminal: redirect it to a file, or see the session with `halsup attach --read-only`";
            return Err(Error::Usage { reason: reason.into() });
        }
        let mut client = context.client()?;
        let (target, name) = sessions::pick(&mut client, self.name.as_deref())?;
        let request = Request::Watch(WatchRequest { target, replay: Some(true) });
        let (reply, connection) =
            client.upgrade::<AttachReply>(&request).map_err(|error| sessions::not_found(error, &name))?;
        let (written, how, size) = replay(connection)?;
        if self.raw {
            return context.output.bytes(&written);
        }
        let mut screen = Screen::after(&written, how, size);
        let lines = match self.lines {
            Some(count) => {
                let all = screen.lines();
                all.into_iter().rev().take(count).rev().collect()
            }
            None => screen.text(),
        };
        let captured = Captured { session: reply.worker, columns: size.columns, rows: size.rows, lines };
        context.output.answer(&captured, |captured| {
            captured.lines.iter().map(|line| format!("{}\n", escape::line(line))).collect()
        })
    }
}
