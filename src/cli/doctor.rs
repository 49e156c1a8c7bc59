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
        let verdict = if check.ok { "ok  " } else { "MISS" };
        text.push_str(&format!("{verdict}  {}: {}\n", escape::text(&check.name), escape::text(&check.found)));
        if let Some(fix) = check.fix.as_ref().filter(|_| !check.ok) {
            text.push_str(&format!("      to do: {}\n", escape::text(fix)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_says_what_to_do() {
        let check = |ok| Check {
            name: "memory controller".into(),
            ok,
            found: if ok { "available" } else { "missing" }.into(),
            fix: Some("boot with cgroup_enable=memory".into()),
        };
        let expected = "ok    memory controller: available\nMISS  memory controller: missing\n      to do: boot with \
                        cgroup_enable=memory\n";
        assert_eq!(render(&[check(true), check(false)]), expected);
    }
}
