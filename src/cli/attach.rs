//! `halsup attach`: a session's terminal on the operator's own.

use clap::Args;

use super::context::Context;
use super::error::Error;
use super::sessions;
use super::terminal::{DETACH_DEFAULT, DetachKeys, Left, Relay, code_of};
use crate::protocol::control::{AttachReply, AttachRequest, Request, WatchRequest};

/// Show the terminal of a session and type into it.
///
/// The detach keys leave it and it goes on. When its program ends, its exit status is that of this command.
#[derive(Debug, Args)]
pub(super) struct Attach {
    /// Only look: nothing that is typed reaches the session, and it keeps its size.
    #[arg(short, long)]
    pub(super) read_only: bool,
    /// Type even if somebody else does, who then only sees.
    #[arg(long, conflicts_with = "read_only")]
    pub(super) steal: bool,
    /// Keys that leave the session, separated by commas.
    #[arg(long, value_name = "KEYS", default_value = DETACH_DEFAULT)]
    pub(super) detach_keys: DetachKeys,
    /// Do not show what was written before.
    #[arg(long)]
    pub(super) no_replay: bool,
    /// A session; it may be left out where there is only one.
    #[arg(value_name = "NAME")]
    pub(super) name: Option<String>,
}

impl Attach {
    /// As it is without options.
    pub(super) fn to(name: String) -> Self {
        let detach_keys = DetachKeys::default();
        Self { read_only: false, steal: false, detach_keys, no_replay: false, name: Some(name) }
    }

    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let mut client = context.client()?;
        let (target, name) = sessions::pick(&mut client, self.name.as_deref())?;
        let replay = Some(!self.no_replay);
        let request = if self.read_only {
            Request::Watch(WatchRequest { target, replay })
        } else {
            Request::Attach(AttachRequest { target, steal: Some(self.steal), replay })
        };
        let (_, connection) =
            client.upgrade::<AttachReply>(&request).map_err(|error| sessions::not_found(error, &name))?;
        let relay = Relay::begin("attach", connection, Some(self.detach_keys), !self.read_only)?;
        match relay.run(!self.no_replay)? {
            Left::Ended(ended) => match code_of(ended) {
                0 => Ok(()),
                code => Err(Error::Ended { code }),
            },
            Left::Detached => {
                super::output::complain_text(&format!("detached from {name}, which goes on: halsup attach {name}"));
                Ok(())
            }
            Left::Lost => Err(Error::SessionLost { name }),
        }
    }
}
