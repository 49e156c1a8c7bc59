//! What is asked and told about images. An archive comes as a descriptor beside the call, never as a path: the caller's own
//! rights decide what may be read.

use serde::{Deserialize, Serialize};

use crate::spec::{ImageConfig, ImageName, is_image_digest};

/// Parameters of `ImageImport`. One descriptor goes with the call: a file or pipe with the archive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageImportRequest {
    /// What the image is to be called, instead of what the archive says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<ImageName>,
    /// What it is to be called where nobody says anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_name: Option<ImageName>,
    /// Whether another image loses the name to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace: Option<bool>,
}

/// Parameters of `ImageInspect` and `ImageRemove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRequest {
    /// A name, or a digest as `sha256:…`.
    pub image: String,
}

impl ImageRequest {
    /// Whether it can mean anything.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        is_image_digest(&self.image) || ImageName::parse(&self.image).is_ok()
    }
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// What it is called.
    pub names: Vec<String>,
    /// As `sha256:…`.
    pub digest: String,
    /// When it was made, as it says itself.
    pub created: Option<String>,
    /// When it was imported; RFC 3339.
    pub imported: String,
    /// Bytes of its files.
    pub size_bytes: u64,
    /// How many files, directories and links.
    pub entries: u64,
    /// Pools and services whose root it is.
    pub used_by: Vec<String>,
}

/// One answer of `ImageImport`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageImportReply {
    /// Bytes of the archive that were read.
    pub read_bytes: u64,
    /// Bytes that were written of it.
    pub written_bytes: u64,
    /// Entries that were read.
    pub entries: u64,
    /// The image; only in the last answer.
    pub image: Option<ImageInfo>,
    /// What was left out of it, for people; only in the last answer.
    pub notes: Vec<String>,
}

/// The answer of `ImageList`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageListReply {
    /// By digest.
    pub images: Vec<ImageInfo>,
}

/// The answer of `ImageInspect`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInspectReply {
    /// The image.
    pub image: ImageInfo,
    /// What it says of the program in it.
    pub config: ImageConfig,
    /// Where its files are.
    pub root: String,
}

/// The answer of `ImageRemove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRemoveReply {
    /// The names that were taken away.
    pub names: Vec<String>,
    /// The digest of the image, if it is gone; it stays while it has other names.
    pub removed: Option<String>,
}
