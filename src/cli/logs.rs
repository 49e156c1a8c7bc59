//! `halsup logs`: what workers wrote, escaped so that it cannot drive the terminal it is shown on.

use clap::Args;

use super::context::Context;
use super::error::Error;
use super::session::Named;
use crate::protocol::control::{LOG_LINES_DEFAULT, LOG_LINES_MAX, LogEntry, LogsReply, LogsRequest, Request, Target};
use crate::protocol::escape;

/// Show what a worker wrote to its standard output and error.
#[derive(Debug, Args)]
pub(super) struct Logs {
    /// Go on with what is written from now.
    #[arg(short, long)]
    pub(super) follow: bool,
    /// How many of the last lines.
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = LOG_LINES_DEFAULT,
          value_parser = clap::value_parser!(u32).range(..=i64::from(LOG_LINES_MAX)))]
    pub(super) lines: u32,
    /// Begin each line with its time.
    #[arg(short, long)]
    pub(super) timestamps: bool,
    /// A worker such as web.3, a session, or a pool or service.
    #[arg(value_name = "TARGET", value_parser = super::target)]
    pub(super) worker: Named,
}

impl Logs {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let mut client = context.client()?;
        let (lines, follow) = (Some(self.lines), Some(self.follow));
        let name = self.worker.to_string();
        let (names, request) = if let Some((_, pool)) = super::session::find_kept(&mut client, &name)? {
            (false, LogsRequest { worker: pool, lines, follow: None, session: Some(name) })
        } else {
            let worker = self.worker.meant(&mut client)?;
            (!matches!(worker, Target::Worker(..)), LogsRequest { worker, lines, follow, session: None })
        };
        let layout = Layout { timestamps: self.timestamps, names };
        let request = Request::Logs(request);
        client.call_more(&request, |reply: LogsReply| {
            if context.output.is_json() {
                return reply.entries.iter().try_for_each(|entry| context.output.json_line(entry));
            }
            let text: String = reply.entries.iter().map(|entry| layout.line(entry)).collect();
            context.output.text(&text)
        })
    }
}

/// What stands before each line.
#[derive(Debug, Clone, Copy)]
struct Layout {
    timestamps: bool,
    names: bool,
}

impl Layout {
    fn line(self, entry: &LogEntry) -> String {
        let mut line = String::new();
        if self.timestamps {
            line.push_str(&escape::text(&entry.time));
            line.push(' ');
        }
        if self.names {
            line.push_str(&escape::text(&entry.worker));
            line.push_str(" | ");
        }
        line.push_str(&escape::line(&entry.text));
        line.push('\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::control::Stream;

    #[test]
    fn a_line_is_what_was_written_made_safe() {
        let entry = LogEntry {
            worker: "web.3".into(),
            stream: Stream::Stdout,
            time: "2026-01-01T00:00:00Z".into(),
            text: "\tx \u{1b}[2J\nforged".into(),
        };
        let line = |timestamps, names| Layout { timestamps, names }.line(&entry);
        assert_eq!(line(false, false), "\tx \\x1b[2J\\nforged\n");
        assert_eq!(line(true, true), "2026-01-01T00:00:00Z web.3 | \tx \\x1b[2J\\nforged\n");
    }
}
