//! `halsup doctor`: what the host has of what halsup needs; from the daemon, or where none runs, found out here.

use clap::Args;

use super::client::Client;
use super::context::Context;
use super::error::Error;
use crate::protocol::control::{
    Check, DoctorReply, ListVolumesReply, ListVolumesRequest, NoParameters, Request, VolumeInfo,
};
use crate::protocol::escape;

/// Show what the host has of what halsup needs, and what to do about the rest.
#[derive(Debug, Args)]
pub(super) struct Doctor {}

impl Doctor {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let reply = match context.client() {
            Ok(mut client) => {
                match client.call::<DoctorReply>(&Request::Doctor(NoParameters {})) {
                    Ok(mut reply) => {
                        reply.checks.extend(owners(&mut client)?);
                        reply
                    }
                    // It ends just now.
                    Err(error @ Error::Lost { .. }) => without_daemon(context, &error)?,
                    Err(error) => return Err(error),
                }
            }
            Err(error @ (Error::Unreachable { .. } | Error::Denied { .. })) => without_daemon(context, &error)?,
            Err(error) => return Err(error),
        };
        context.output.answer(&reply, |reply| render(&reply.checks))?;
        match reply.checks.iter().filter(|check| !check.ok).count() {
            0 => Ok(()),
            count => Err(Error::Unwell { count }),
        }
    }
}

/// Volumes with files that their workers cannot change.
fn owners(client: &mut Client) -> Result<impl Iterator<Item = Check> + use<>, Error> {
    let request = ListVolumesRequest { name: None, usage: Some(true) };
    let listed: ListVolumesReply = client.call(&Request::ListVolumes(request))?;
    let foreign = |volume: VolumeInfo| {
        let count = volume.foreign_inodes.filter(|count| *count > 0 && !volume.mapped && !volume.pools.is_empty())?;
        Some(Check {
            name: format!("owners in {}", volume.name),
            ok: false,
            found: format!("permission denied to its workers: {count} files of {} are not root's", volume.path),
            fix: Some(format!("halsup volume repair {}", volume.name)),
        })
    };
    Ok(listed.volumes.into_iter().filter_map(foreign))
}

/// What can be said where no daemon answers: first that none does.
fn without_daemon(context: &Context, error: &Error) -> Result<DoctorReply, Error> {
    let bad = |name: &str, sentence: String| {
        let (found, fix) = sentence.split_once(": ").map_or((&*sentence, "halsup check"), |(found, fix)| (found, fix));
        Check { name: name.to_owned(), ok: false, found: found.to_owned(), fix: Some(fix.to_owned()) }
    };
    let mut checks = Vec::new();
    let config = match context.config_or_default() {
        Ok(config) => config,
        Err(error) => {
            let fix = Some("halsup check says all that is wrong with it".to_owned());
            checks.push(Check { name: "configuration".to_owned(), ok: false, found: error.sentence(), fix });
            context.default_config_of_instance()?
        }
    };
    checks.extend(crate::daemon::doctor(&config));
    checks.push(bad("daemon", error.sentence()));
    Ok(DoctorReply { checks })
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
