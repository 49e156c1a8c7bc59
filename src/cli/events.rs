//! `halsup events`: what happened, a line each.

use clap::Args;

use super::context::Context;
use super::error::Error;
use crate::protocol::control::{Event, EventsReply, EventsRequest, LAST_DEFAULT, LAST_MAX, Request};
use crate::protocol::escape;

/// Show what happened.
#[derive(Debug, Args)]
pub(super) struct Events {
    /// Go on with what happens from now.
    #[arg(short, long)]
    pub(super) follow: bool,
    /// How many of the last events.
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = LAST_DEFAULT,
          value_parser = clap::value_parser!(u32).range(..=i64::from(LAST_MAX)))]
    pub(super) last: u32,
    /// Instead of these everything that happens from now on, by name, with numbers.
    #[arg(long, conflicts_with_all = ["follow", "last"])]
    pub(super) telemetry: bool,
}

impl Events {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let request = Request::Events(if self.telemetry {
            EventsRequest { last: None, follow: Some(true), telemetry: Some(true), pool: None }
        } else {
            EventsRequest { last: Some(self.last), follow: Some(self.follow), telemetry: None, pool: None }
        });
        context.client()?.call_more(&request, |reply: EventsReply| {
            if reply.missed > 0 {
                super::output::complain_text(&format!("{} events were missed", reply.missed));
            }
            if context.output.is_json() {
                return reply.events.iter().try_for_each(|event| context.output.json_line(event));
            }
            let text: String = reply.events.iter().map(line).collect();
            context.output.text(&text)
        })
    }
}

/// `2026-01-01T00:00:00Z death web.3 exited 1: … (by uid 0)`.
fn line(event: &Event) -> String {
    let about = event.worker.as_ref().or(event.pool.as_ref()).map_or("-", String::as_str);
    let json = |fields: Option<&serde_json::Map<String, serde_json::Value>>| {
        let text = fields.and_then(|fields| serde_json::to_string(fields).ok());
        text.map_or_else(String::new, |text| format!(" {}", escape::text(&text)))
    };
    let said = json(event.measurements.as_ref()) + &json(event.metadata.as_ref());
    let by = event.asked_by.as_ref().map_or_else(String::new, |who| format!(" (by {})", escape::text(who)));
    format!(
        "{} {:<6} {:<12} {}{said}{by}\n",
        escape::text(&event.time),
        event.kind.to_string(),
        escape::text(about),
        escape::text(&event.text)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::control::{Cause, EventKind};

    #[test]
    fn an_event_is_one_line() {
        let event = Event {
            sequence: 1,
            time: "2026-01-01T00:00:00Z".into(),
            kind: EventKind::Death,
            pool: Some("web".into()),
            worker: Some("web.3".into()),
            generation: Some(7),
            state: None,
            cause: Some(Cause::Exited(1)),
            asked_by: Some("uid 0 (pid 1)".into()),
            text: "exited 1\nx".into(),
            name: None,
            measurements: None,
            metadata: None,
        };
        assert_eq!(line(&event), "2026-01-01T00:00:00Z death  web.3        exited 1\\nx (by uid 0 (pid 1))\n");
    }
}
