//! `halsup doctor`: what the host has of what halsup needs; from the daemon, or where none runs, found out here.

use clap::Args;

use super::context::Context;
use super::error::Error;
use crate::protocol::control::{Check, DoctorReply, NoParameters, Request};
use crate::protocol::escape;

/// Show what the host has of what halsup needs, and what to do about the rest.
#[derive(Debug, Args)]
pub(super) struct Doctor {}

impl Doctor {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let reply = match context.client() {
            Ok(mut client) => client.call(&Request::Doctor(NoParameters {}))?,
            Err(Error::Unreachable { .. } | Error::Denied { .. }) => DoctorReply { checks: crate::daemon::doctor() },
            Err(error) => return Err(error),
        };
        context.output.answer(&reply, |reply| render(&reply.checks))?;
        match reply.checks.iter().filter(|check| !check.ok).count() {
            0 => Ok(()),
            count => Err(Error::Unwell { count }),
        }
    }
}

/// A line for each check, and one below it for what to do.
fn render(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let verdict = match (check.ok, &check.fix) {
            (true, None) => "ok  ",
            // Not there, and not needed: what that costs stands in place of what to do.
            (true, Some(_)) => "part",
            (false, _) => "MISS",
        };
        text.push_str(&format!("{verdict}  {}: {}\n", escape::text(&check.name), escape::text(&check.found)));
        if let Some(fix) = &check.fix {
            let what = if check.ok { "without" } else { "to do" };
            text.push_str(&format!("      {what}: {}\n", escape::text(fix)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_says_what_to_do() {
        let check = |ok, found: &str, fix: Option<&str>| Check {
            name: "memory".into(),
            ok,
            found: found.into(),
            fix: fix.map(str::to_owned),
        };
        let checks =
            [check(true, "there", None), check(true, "missing", Some("b")), check(false, "missing", Some("c"))];
        let expected =
            "ok    memory: there\npart  memory: missing\n      without: b\nMISS  memory: missing\n      to do: c\n";
        assert_eq!(render(&checks), expected);
    }
}
