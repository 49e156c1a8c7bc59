//! `halsup volume`: named volumes, which outlive workers.

use clap::{Args, Subcommand};

use super::context::Context;
use super::error::Error;
use super::human;
use super::table::{pairs, table};
use super::volume_export;
use crate::protocol::control::{
    CreateVolumeReply, Empty, ListVolumesReply, ListVolumesRequest, Request, VolumeInfo, VolumeRequest,
};
use crate::spec::VolumeName;

/// Look after named volumes, which pools bind by `volumes = ["name:/inside"]`.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    Create(Create),
    Ls(Ls),
    Inspect(Inspect),
    Repair(Repair),
    Rm(Rm),
    Export(volume_export::Export),
    Import(volume_export::Import),
}

/// Make volumes; one that is there stays as it is.
#[derive(Debug, Args)]
pub(super) struct Create {
    /// Lower-case letters, digits and '-', such as hal9000-chromadb.
    #[arg(required = true, value_name = "NAME", value_parser = super::volume_name)]
    names: Vec<VolumeName>,
}

/// List the volumes, and the room that is left for them.
#[derive(Debug, Args)]
pub(super) struct Ls {
    /// Also count what they hold.
    #[arg(short, long)]
    size: bool,
}

/// Show a volume: what it holds, where it is, which pools have it.
#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// The volume.
    #[arg(value_name = "NAME", value_parser = super::volume_name)]
    name: VolumeName,
}

/// Give everything in a volume to whoever has it, where files of other owners were put into it by hand.
#[derive(Debug, Args)]
pub(super) struct Repair {
    /// The volume.
    #[arg(value_name = "NAME", value_parser = super::volume_name)]
    name: VolumeName,
}

/// Remove volumes and all that is in them; refused while a pool has one.
#[derive(Debug, Args)]
pub(super) struct Rm {
    /// The volumes.
    #[arg(required = true, value_name = "NAME", value_parser = super::volume_name)]
    names: Vec<VolumeName>,
}

impl Verb {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        match self {
            Self::Create(verb) => verb.run(context),
            Self::Ls(verb) => verb.run(context),
            Self::Inspect(verb) => verb.run(context),
            Self::Repair(verb) => verb.run(context),
            Self::Rm(verb) => verb.run(context),
            Self::Export(verb) => verb.run(context),
            Self::Import(verb) => verb.run(context),
        }
    }
}

impl Create {
    fn run(self, context: &Context) -> Result<(), Error> {
        let mut client = context.client()?;
        for name in self.names {
            let shown = name.to_string();
            let reply: CreateVolumeReply = client.call(&Request::CreateVolume(VolumeRequest { name }))?;
            context.output.answer(&reply, |_| shown)?;
        }
        Ok(())
    }
}

impl Ls {
    fn run(self, context: &Context) -> Result<(), Error> {
        let request = ListVolumesRequest { name: None, usage: self.size.then_some(true) };
        let reply: ListVolumesReply = context.client()?.call(&Request::ListVolumes(request))?;
        context.output.answer(&reply, render)
    }
}

fn render(reply: &ListVolumesReply) -> String {
    let rows = reply.volumes.iter().map(|volume| {
        [
            volume.name.clone(),
            human::or_dash(volume.usage_bytes, human::bytes),
            human::or_dash(volume.usage_inodes, |count| count.to_string()),
            if volume.pools.is_empty() { "-".to_owned() } else { volume.pools.join(",") },
            volume.created.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    });
    let listed = table(["NAME", "SIZE", "FILES", "POOLS", "CREATED"], rows);
    format!("{listed}free: {} of {}\n", human::bytes(reply.free_bytes), human::bytes(reply.total_bytes))
}

impl Inspect {
    fn run(self, context: &Context) -> Result<(), Error> {
        let request = ListVolumesRequest { name: Some(self.name), usage: Some(true) };
        let reply: ListVolumesReply = context.client()?.call(&Request::ListVolumes(request))?;
        context.output.answer(&reply, |reply| reply.volumes.iter().map(|volume| shown(volume, reply)).collect())
    }
}

fn shown(volume: &VolumeInfo, reply: &ListVolumesReply) -> String {
    let foreign = volume.foreign_inodes.filter(|count| *count > 0);
    pairs([
        ("name", Some(volume.name.clone())),
        ("created", volume.created.clone()),
        ("path", Some(volume.path.clone())),
        ("pools", (!volume.pools.is_empty()).then(|| volume.pools.join(", "))),
        ("size", volume.usage_bytes.map(human::bytes)),
        ("files", volume.usage_inodes.map(|count| count.to_string())),
        ("of other owners", foreign.map(|count| count.to_string())),
        ("free", Some(human::bytes(reply.free_bytes))),
    ])
}

impl Repair {
    fn run(self, context: &Context) -> Result<(), Error> {
        let shown = self.name.to_string();
        let reply: Empty = context.client()?.call(&Request::RepairVolume(VolumeRequest { name: self.name }))?;
        context.output.answer(&reply, |_| shown)
    }
}

impl Rm {
    fn run(self, context: &Context) -> Result<(), Error> {
        let mut client = context.client()?;
        for name in self.names {
            let shown = name.to_string();
            let reply: Empty = client.call(&Request::RemoveVolume(VolumeRequest { name }))?;
            context.output.answer(&reply, |_| shown)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_says_what_is_left() {
        let volume = VolumeInfo {
            name: "data".into(),
            created: None,
            path: "/x".into(),
            pools: vec!["web".into(), "api".into()],
            mapped: false,
            usage_bytes: Some(2048),
            usage_inodes: Some(3),
            foreign_inodes: Some(0),
        };
        let reply = ListVolumesReply {
            volumes: vec![volume],
            total_bytes: 2 << 30,
            free_bytes: 1 << 30,
            total_inodes: 0,
            free_inodes: 0,
        };
        let expected = "NAME  SIZE  FILES  POOLS    CREATED\ndata  2K    3      web,api  -\nfree: 1G of 2G\n";
        assert_eq!(render(&reply), expected);
    }
}
