//! Volumes as they are asked for and told of.

use serde::{Deserialize, Serialize};

use crate::spec::VolumeName;

/// Parameters of `ListVolumes`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListVolumesRequest {
    /// Only this one.
    #[serde(with = "volume_name_option", default, skip_serializing_if = "Option::is_none")]
    pub name: Option<VolumeName>,
    /// Whether what they hold is to be counted, which may take a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<bool>,
}

/// Parameters of `CreateVolume`, `RepairVolume` and `RemoveVolume`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRequest {
    /// Which.
    #[serde(with = "volume_name")]
    pub name: VolumeName,
}

/// Parameters of `HoldVolumes`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoldVolumesRequest {
    /// Which; none is all.
    pub names: Vec<String>,
}

impl HoldVolumesRequest {
    /// Whether all names are of the grammar, and not too many.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.names.len() <= 256 && self.names.iter().all(|name| VolumeName::parse(name).is_ok())
    }
}

/// The answer of `HoldVolumes`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldVolumesReply {
    /// How many workers stand still.
    pub held: u32,
    /// Their cgroups, by absolute path.
    pub cgroups: Vec<String>,
}

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// When it was made; RFC 3339.
    pub created: Option<String>,
    /// Where its data is on the host.
    pub path: String,
    /// The pools that have it.
    pub pools: Vec<String>,
    /// Whether every pool that has it has a root of its own inside, so that files may be others' than root's.
    pub mapped: bool,
    /// What it takes of the disk; `None` where it was not counted.
    pub usage_bytes: Option<u64>,
    /// Its files and directories, itself among them.
    pub usage_inodes: Option<u64>,
    /// Of them, those that are not root's on the disk.
    pub foreign_inodes: Option<u64>,
}

/// The answer of `ListVolumes`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListVolumesReply {
    /// By name.
    pub volumes: Vec<VolumeInfo>,
    /// Of the file system they are on.
    pub total_bytes: u64,
    /// Of them, what can still be written.
    pub free_bytes: u64,
    /// Files that the file system can have; 0 where it does not say.
    pub total_inodes: u64,
    /// Of them, those that can still be made.
    pub free_inodes: u64,
}

/// The answer of `CreateVolume`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateVolumeReply {
    /// Whether there was none of that name.
    pub created: bool,
    /// Where its data is on the host.
    pub path: String,
}

mod volume_name {
    //! A volume's name as JSON: the grammar of `spec`, nothing else.

    use serde::{Deserialize, Deserializer, Serializer};

    use crate::spec::VolumeName;

    pub(super) fn serialize<S: Serializer>(name: &VolumeName, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(name.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<VolumeName, D::Error> {
        VolumeName::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

mod volume_name_option {
    //! The same, where it may be missing.

    use serde::{Deserialize, Deserializer, Serializer};

    use crate::spec::VolumeName;

    pub(super) fn serialize<S: Serializer>(name: &Option<VolumeName>, serializer: S) -> Result<S::Ok, S::Error> {
        match name {
            Some(name) => serializer.serialize_some(name.as_str()),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<VolumeName>, D::Error> {
        Option::<String>::deserialize(deserializer)?
            .map(|name| VolumeName::parse(&name).map_err(serde::de::Error::custom))
            .transpose()
    }
}
