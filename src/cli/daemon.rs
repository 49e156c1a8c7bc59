//! `halsup daemon …`: the daemon itself.

use clap::Subcommand;

use super::context::Context;
use super::error::Error;
use super::{daemon_reexec, daemon_reset, daemon_run, daemon_start, daemon_stop, status};
use crate::protocol::control::{NoParameters, ReloadReply, Request, StatusReply};
use crate::protocol::escape;

/// Run, start, stop and look after the daemon itself.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Be the daemon, in the foreground; what a service manager runs.
    Run(daemon_run::Run),
    /// Start the daemon in the background; waits until it is ready. Does nothing where one runs.
    Start(daemon_start::Start),
    /// End all workers, then the daemon; waits until it is gone. Does nothing where none runs.
    Stop(daemon_stop::Stop),
    /// Show the daemon itself.
    Status,
    /// Stop the daemon and start it again.
    Restart(Restart),
    /// Go on as the program that is installed now: same pid, same workers. If the new one fails, the old one goes on.
    Reexec(daemon_reexec::Reexec),
    /// Hold the cgroup of `halsup-workers.service` for the workers of daemons that come and go.
    #[command(hide = true)]
    HoldCgroup,
    Reset(daemon_reset::Reset),
    /// Read the configuration again; all of it is taken or nothing, and only what differs is changed.
    Reload,
}

/// What `stop` and `start` take.
#[derive(Debug, clap::Args)]
pub(super) struct Restart {
    #[command(flatten)]
    stop: daemon_stop::Stop,
}

impl Verb {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        match self {
            Self::Run(verb) => verb.run(context),
            Self::Start(verb) => verb.run(context),
            Self::Stop(verb) => verb.run(context),
            Self::HoldCgroup => Ok(crate::daemon::hold_cgroup()?),
            Self::Status => {
                let reply: StatusReply = context.client()?.call(&Request::Status(NoParameters {}))?;
                context.output.answer(&reply, status::render_daemon)
            }
            Self::Restart(Restart { stop }) => {
                // A configuration that is wrong must not end a daemon that runs.
                context.refuse_socket()?;
                context.daemon_config()?;
                let stopped = stop.run(context);
                // Workers that are stuck are reported, and keep nobody from a new daemon.
                if !matches!(stopped, Ok(()) | Err(Error::Stuck { .. })) {
                    return stopped;
                }
                daemon_start::Start::default().run(context)?;
                stopped
            }
            Self::Reexec(verb) => verb.run(context),
            Self::Reset(verb) => verb.run(context),
            Self::Reload => {
                let reply: ReloadReply = context.client()?.call(&Request::Reload(NoParameters {}))?;
                context.output.answer(&reply, render_reload)
            }
        }
    }
}

fn render_reload(reply: &ReloadReply) -> String {
    let lists = [("added", &reply.added), ("changed", &reply.changed), ("removed", &reply.removed)];
    let parts: Vec<_> = lists
        .into_iter()
        .filter(|(_, pools)| !pools.is_empty())
        .map(|(what, pools)| format!("{what} {}", escape::text(&pools.join(", "))))
        .collect();
    if parts.is_empty() { "reloaded: nothing differs".into() } else { format!("reloaded: {}", parts.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reload_says_what_differs() {
        assert_eq!(render_reload(&ReloadReply::default()), "reloaded: nothing differs");
        let reply =
            ReloadReply { added: vec!["a".into(), "b".into()], removed: vec!["c".into()], ..Default::default() };
        assert_eq!(render_reload(&reply), "reloaded: added a, b; removed c");
    }
}
