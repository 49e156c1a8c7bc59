//! Has the workers that write volumes frozen for the time of a copy, so that it is of one moment.
//!
//! The daemon lets them go on when the connection ends, however that comes about. Should the daemon be the one that ends
//! meanwhile, this does it.

use std::path::PathBuf;

use super::client::Client;
use super::context::Context;
use super::error::Error;
use crate::protocol::control::{HoldVolumesReply, HoldVolumesRequest, Request};
use crate::spec::VolumeName;

/// Holds them for as long as it lives.
#[derive(Debug)]
pub(super) struct Hold(Option<Held>);

#[derive(Debug)]
struct Held {
    client: Client,
    cgroups: Vec<PathBuf>,
}

impl Hold {
    /// Freezes whoever writes these volumes, all where none is named; nobody where no daemon runs or `live` says so.
    pub(super) fn take(context: &Context, volumes: &[VolumeName], live: bool) -> Result<Self, Error> {
        if live {
            return Ok(Self(None));
        }
        let mut client = match context.client() {
            Ok(client) => client,
            Err(Error::Unreachable { .. }) => return Ok(Self(None)),
            Err(error) => return Err(error),
        };
        let names = volumes.iter().map(ToString::to_string).collect();
        let reply: HoldVolumesReply = client.first(&Request::HoldVolumes(HoldVolumesRequest { names }))?;
        let cgroups = reply.cgroups.into_iter().map(PathBuf::from).collect();
        Ok(Self(Some(Held { client, cgroups })))
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// They did not stand still all the time.
    pub(super) fn release(mut self) -> Result<(), Error> {
        let Some(held) = &mut self.0 else { return Ok(()) };
        if held.client.is_silent() {
            return Ok(());
        }
        Err(Error::Helper { sentence: "workers did not stand still all the time: try again, or say --live".into() })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(held) = &mut self.0 else { return };
        if held.client.is_silent() {
            return;
        }
        for cgroup in &held.cgroups {
            // One that has ended has no such file any more.
            std::fs::write(cgroup.join("cgroup.freeze"), "0").unwrap_or_default();
        }
    }
}
