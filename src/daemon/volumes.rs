//! Volumes as pools use them and as callers ask for them: a mount for each birth, and the calls of `halsup volume`.
//!
//! What takes long (counting, removing) is done by helpers; see `jobs`.

use std::ffi::CString;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::birth::{BirthError, Ids, step};
use super::clock;
use super::control::{Asked, Outcome};
use super::jobs::{Job, JobKind};
use super::state::Daemon;
use crate::host::identity::{HostUser, owner_namespace};
use crate::host::spawn::ExtraMount;
use crate::host::volume::{Mapped, Store, VolumeError, tree};
use crate::protocol::control::{
    CreateVolumeReply, Error, EventKind, ListVolumesReply, ListVolumesRequest, VolumeInfo, VolumeRequest,
};
use crate::protocol::varlink::Reply;
use crate::spec::{Identity, VolumeMount, VolumeName};

/// The mounts of a worker's volumes, ready to be attached.
pub(super) fn mounts(store: &Store, wanted: &[VolumeMount], ids: &Ids) -> Result<Vec<ExtraMount>, BirthError> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let own = match &ids.userns {
        None if ids.uid != 0 => {
            Some(owner_namespace(HostUser { uid: 0, gid: 0 }, HostUser { uid: ids.uid, gid: ids.gid })?)
        }
        Some(_) | None => None,
    };
    let mapped = match (&ids.userns, &own) {
        (Some(userns), _) => Mapped::Through(userns.as_fd()),
        (None, Some(own)) => Mapped::Through(own.as_fd()),
        (None, None) => Mapped::No,
    };
    let mount = |volume: &VolumeMount| {
        let data = store.data_made(&volume.name, clock::wall())?;
        let tree = tree(volume.name.as_str(), data.as_fd(), volume.writable, mapped)?;
        let directories = ways(&volume.target).map(text).collect::<Result<_, _>>()?;
        Ok(ExtraMount { tree, directories, target: text(&volume.target)? })
    };
    wanted.iter().map(mount).collect()
}

/// Every directory on the way to `target`, outermost first, and itself.
fn ways(target: &Path) -> impl Iterator<Item = &Path> {
    let mut all: Vec<&Path> = target.ancestors().filter(|way| way.parent().is_some()).collect();
    all.reverse();
    all.into_iter()
}

fn text(path: &Path) -> Result<CString, BirthError> {
    CString::new(path.as_os_str().as_bytes()).map_err(step("name the place of its volume"))
}

impl Daemon {
    /// The pools that have a volume, by name; those that are being stopped too.
    pub(super) fn pools_with(&self, volume: &VolumeName) -> Vec<String> {
        let has = |pool: &&super::pool::Pool| pool.spec.volumes.iter().any(|mount| mount.name == *volume);
        self.pools.values().filter(has).map(|pool| pool.spec.name.to_string()).collect()
    }

    /// Whether all pools that have a volume have a root of their own inside.
    fn is_mapped(&self, volume: &VolumeName) -> bool {
        let mut users =
            self.pools.values().filter(|pool| pool.spec.volumes.iter().any(|mount| mount.name == *volume)).peekable();
        users.peek().is_some() && users.all(|pool| pool.spec.identity == Identity::Mapped)
    }

    pub(super) fn create_volume(&mut self, asked: Asked, request: &VolumeRequest) -> Outcome {
        match self.shared.volumes.create(&request.name, clock::wall()) {
            Ok(created) => {
                if created {
                    self.audit_order(asked, "volume_create", request.name.as_str());
                    self.record_order(asked, EventKind::Order, format!("create volume {}", request.name));
                }
                Outcome::Reply(Reply::last(&CreateVolumeReply { created, path: self.volume_path(&request.name) }))
            }
            Err(error) => failed("create", &request.name, &error),
        }
    }

    pub(super) fn list_volumes(&mut self, asked: Asked, request: &ListVolumesRequest) -> Outcome {
        let reply = match self.volumes(request.name.as_ref()) {
            Ok(reply) => reply,
            Err(error) => return Error::from(error).into(),
        };
        if request.usage != Some(true) || reply.volumes.is_empty() {
            return Outcome::Reply(Reply::last(&reply));
        }
        let names: Vec<String> = reply.volumes.iter().map(|volume| volume.name.clone()).collect();
        self.begin_job(Job { asked: (asked.place, asked.number), kind: JobKind::Usage(reply) }, "volume-usage", &names)
    }

    fn volumes(&self, only: Option<&VolumeName>) -> Result<ListVolumesReply, VolumeError> {
        let store = &self.shared.volumes;
        let names = match only {
            Some(name) if store.exists(name)? => vec![name.clone()],
            Some(name) => return Err(VolumeError::Missing { name: name.to_string() }),
            None => store.names()?,
        };
        let room = store.room()?;
        let volumes = names.iter().map(|name| VolumeInfo {
            name: name.to_string(),
            created: store.created(name),
            path: self.volume_path(name),
            pools: self.pools_with(name),
            mapped: self.is_mapped(name),
            usage_bytes: None,
            usage_inodes: None,
            foreign_inodes: None,
        });
        Ok(ListVolumesReply {
            volumes: volumes.collect(),
            total_bytes: room.total_bytes,
            free_bytes: room.free_bytes,
            total_inodes: room.total_inodes,
            free_inodes: room.free_inodes,
        })
    }

    pub(super) fn repair_volume(&mut self, asked: Asked, request: &VolumeRequest) -> Outcome {
        match self.shared.volumes.data(&request.name) {
            Ok(_) => {
                self.audit_order(asked, "volume_repair", request.name.as_str());
                self.record_order(asked, EventKind::Order, format!("repair volume {}", request.name));
                let kind = JobKind::Plain { operation: "repair", object: format!("volume {}", request.name) };
                let job = Job { asked: (asked.place, asked.number), kind };
                self.begin_job(job, "volume-repair", &[request.name.to_string()])
            }
            Err(error) => failed("repair", &request.name, &error),
        }
    }

    pub(super) fn remove_volume(&mut self, asked: Asked, request: &VolumeRequest) -> Outcome {
        let users = self.pools_with(&request.name);
        if !users.is_empty() {
            let them = users.join(", ");
            let reason = format!(
                "volume {} is in use by {}: take it out of their `volumes` and reload first",
                request.name, them
            );
            return Error::Refused { reason }.into();
        }
        match self.shared.volumes.set_aside(&request.name) {
            Ok(aside) => {
                self.audit_order(asked, "volume_remove", request.name.as_str());
                self.record_order(asked, EventKind::Order, format!("remove volume {}", request.name));
                let kind = JobKind::Plain { operation: "remove", object: format!("volume {}", request.name) };
                self.begin_job(Job { asked: (asked.place, asked.number), kind }, "volume-remove", &[aside])
            }
            Err(error) => failed("remove", &request.name, &error),
        }
    }

    /// Removes what a daemon that was killed was about to remove or to make.
    pub(super) fn sweep_volumes(&mut self) {
        let left = match self.shared.volumes.unfinished() {
            Ok(left) => left,
            Err(error) => return tracing::warn!(target: "volume", "{}", super::birth::chain(&error)),
        };
        if !left.is_empty() {
            // Nobody waits for it: place and number of no client.
            let job = Job {
                asked: (u32::MAX, u64::MAX),
                kind: JobKind::Plain { operation: "remove", object: "volumes".to_owned() },
            };
            super::log::best_effort(self.try_job(job, "volume-remove", &left), "the next start tries again");
        }
    }

    fn volume_path(&self, name: &VolumeName) -> String {
        self.spec.state_dir.join("volumes").join(name.as_str()).join("data").display().to_string()
    }
}

impl From<VolumeError> for Error {
    fn from(error: VolumeError) -> Self {
        match &error {
            VolumeError::Missing { name } => Self::NotFound { what: format!("volume {name}") },
            VolumeError::Step { .. }
            | VolumeError::Store { .. }
            | VolumeError::TooMany
            | VolumeError::NoIdMapping { .. } => Self::Failed {
                operation: "look at".to_owned(),
                object: "volumes".to_owned(),
                cause: super::birth::chain(&error),
            },
        }
    }
}

fn failed(operation: &str, name: &VolumeName, error: &VolumeError) -> Outcome {
    if let VolumeError::Missing { name } = error {
        return Error::NotFound { what: format!("volume {name}") }.into();
    }
    Error::Failed {
        operation: operation.to_owned(),
        object: format!("volume {name}"),
        cause: super::birth::chain(error),
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_made_from_the_outermost_on() {
        let all: Vec<&Path> = ways(Path::new("/data/chromadb")).collect();
        assert_eq!(all, [Path::new("/data"), Path::new("/data/chromadb")]);
    }
}
