//! An image in a bundle: which manifest, which configuration, which layers; each believed only as far as it is unambiguous.
//!
//! Of a configuration only the fields of [`Runtime`] are read, and `spec` has a grammar for each (HARDENING F7, F8).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::bundle::{Bundle, blob, check, json};
use super::refusal::Refusal;
use super::stream::Compression;
use crate::spec::ImageConfig;

/// Most layers of an image.
const LAYERS_MAX: usize = 500;
/// Indexes may lie in indexes this deep.
const INDEXES_MAX: usize = 3;
/// This machine in the words of images.
const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// A layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layer {
    /// The part of the bundle that has it.
    pub(super) part: String,
    /// Its digest as it lies there; `None` where only that of its content is known.
    pub(super) digest: Option<String>,
    /// The digest of its content without compression.
    pub(super) diff_id: String,
    /// What it is compressed with; `None` where nothing says so.
    pub(super) compression: Option<Compression>,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Image {
    /// The digest of its configuration.
    pub(super) digest: String,
    pub(super) names: Vec<String>,
    pub(super) config: ImageConfig,
    /// The lowest first.
    pub(super) layers: Vec<Layer>,
}

#[derive(Debug, Deserialize)]
struct Layout {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// An index or a manifest, whatever it says that it is.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<IgnoredAny>,
}

/// One image of `docker save`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Configuration {
    created: Option<String>,
    architecture: String,
    os: String,
    config: Option<Runtime>,
    rootfs: RootFs,
}

/// All that is ever read of what an image says about the program in it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Runtime {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Vec<String>,
}

/// Finds the image of a bundle.
///
/// # Errors
/// [`Refusal`]: there is none, or more than one, or it is not what it says it is.
pub(super) fn find(bundle: &Bundle) -> Result<Image, Refusal> {
    if bundle.has("oci-layout") { of_layout(bundle) } else { of_saved(bundle) }
}

fn of_layout(bundle: &Bundle) -> Result<Image, Refusal> {
    let layout: Layout = json("oci-layout", &bundle.text("oci-layout")?.0)?;
    if layout.version != "1.0.0" {
        return Err(Refusal::part("oci-layout", "it is of another version than 1.0.0"));
    }
    let mut document: Document = json("index.json", &bundle.text("index.json")?.0)?;
    let mut part = "index.json".to_owned();
    let mut names = Vec::new();
    for _ in 0..INDEXES_MAX {
        let chosen = chosen(&part, document.index(&part)?)?;
        names.extend(names_of(&chosen));
        part = blob(&chosen.digest)?;
        document = read(bundle, &chosen)?;
        match chosen.media_type.as_str() {
            OCI_INDEX | DOCKER_INDEX => {}
            OCI_MANIFEST | DOCKER_MANIFEST => return of_manifest(bundle, &part, document, names),
            _ => return Err(Refusal::part(&part, "it is of a media type that is no manifest's")),
        }
    }
    Err(Refusal::part(&part, "its indexes lie more than three deep"))
}

/// Reads what a descriptor names, and holds it against every word of the descriptor.
fn read(bundle: &Bundle, descriptor: &Descriptor) -> Result<Document, Refusal> {
    let part = blob(&descriptor.digest)?;
    let text = verified(bundle, descriptor)?;
    let document: Document = json(&part, &text)?;
    if document.schema_version != 2 || document.fs_layers.is_some() {
        return Err(Refusal::part(&part, "it is of another schema version than 2"));
    }
    if document.media_type.as_ref().is_some_and(|own| *own != descriptor.media_type) {
        return Err(Refusal::part(&part, "it is of another media type than what leads to it says"));
    }
    Ok(document)
}

fn verified(bundle: &Bundle, descriptor: &Descriptor) -> Result<Vec<u8>, Refusal> {
    let part = blob(&descriptor.digest)?;
    let (text, digest) = bundle.text(&part)?;
    check(&descriptor.digest, digest)?;
    if text.len() as u64 != descriptor.size {
        return Err(Refusal::part(&part, "it is of another size than what leads to it says"));
    }
    Ok(text)
}

impl Document {
    /// Its manifests, if it can be nothing but an index.
    fn index(self, part: &str) -> Result<Vec<Descriptor>, Refusal> {
        match self {
            Self {
                manifests: Some(manifests), config: None, layers: None, fs_layers: None, schema_version: 2, ..
            } => Ok(manifests),
            _ => Err(Refusal::part(part, "it is no index, or something else too")),
        }
    }
}

/// The manifest for this machine.
fn chosen(part: &str, manifests: Vec<Descriptor>) -> Result<Descriptor, Refusal> {
    let fits =
        |one: &Descriptor| one.platform.as_ref().is_none_or(|it| it.os == "linux" && it.architecture == ARCHITECTURE);
    let mut fitting = manifests.into_iter().filter(fits);
    let first = fitting.next();
    match (first, fitting.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(Refusal::part(part, "none of its images is for this machine")),
        (Some(_), Some(_)) => Err(Refusal::part(part, "it holds several images: take the one out that is meant")),
    }
}

/// What a descriptor calls its image.
fn names_of(descriptor: &Descriptor) -> Vec<String> {
    let annotations = descriptor.annotations.as_ref();
    let of = |key: &str| annotations.and_then(|all| all.get(key));
    // The first is a whole name; the second may be one, or a tag of nothing.
    let named = of("io.containerd.image.name")
        .or_else(|| of("org.opencontainers.image.ref.name").filter(|name| name.contains(['/', ':'])));
    named.map(|name| plain_name(name)).into_iter().collect()
}

/// A name without what Docker puts before those that nobody has qualified.
fn plain_name(name: &str) -> String {
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    name.strip_prefix("library/").unwrap_or(name).to_owned()
}

fn of_manifest(bundle: &Bundle, part: &str, document: Document, names: Vec<String>) -> Result<Image, Refusal> {
    let Document { manifests: None, config: Some(config), layers: Some(layers), .. } = document else {
        return Err(Refusal::part(part, "it is no manifest, or something else too"));
    };
    if !CONFIGS.contains(&config.media_type.as_str()) {
        return Err(Refusal::part(part, "its configuration is of an unknown media type: it is no image"));
    }
    let configuration: Configuration = json(&config.digest, &verified(bundle, &config)?)?;
    let diff_ids = configuration.layers(&config.digest, layers.len())?;
    let mut found = Vec::new();
    for (layer, diff_id) in layers.into_iter().zip(diff_ids) {
        let part = blob(&layer.digest)?;
        let compression = compression(&layer.media_type).ok_or_else(|| {
            Refusal::part(&part, "it is a layer of an unknown media type, or one that lies elsewhere")
        })?;
        if bundle.part(&part)?.size != layer.size {
            return Err(Refusal::part(&part, "it is of another size than its manifest says"));
        }
        found.push(Layer { part, digest: Some(layer.digest), diff_id, compression: Some(compression) });
    }
    let own = configuration.image_config(&config.digest)?;
    Ok(Image { digest: config.digest, names, config: own, layers: found })
}

fn compression(media_type: &str) -> Option<Compression> {
    match media_type {
        "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
            Some(Compression::None)
        }
        "application/vnd.oci.image.layer.v1.tar+gzip" | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
            Some(Compression::Gzip)
        }
        "application/vnd.oci.image.layer.v1.tar+zstd" | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
            Some(Compression::Zstd)
        }
        _ => None,
    }
}

fn of_saved(bundle: &Bundle) -> Result<Image, Refusal> {
    const MANIFEST: &str = "manifest.json";
    if !bundle.has(MANIFEST) {
        return Err(Refusal::form("it has parts of an image, but neither manifest.json nor oci-layout"));
    }
    let saved: Vec<Saved> = json(MANIFEST, &bundle.text(MANIFEST)?.0)?;
    let saved = match <[Saved; 1]>::try_from(saved) {
        Ok([saved]) => saved,
        Err(none) if none.is_empty() => return Err(Refusal::part(MANIFEST, "it holds no image")),
        Err(_several) => return Err(Refusal::part(MANIFEST, "it holds several images: save the one that is meant")),
    };
    let (text, digest) = bundle.text(&saved.config)?;
    // A configuration is named by its digest, in every version of Docker.
    let named = saved.config.strip_prefix("blobs/sha256/").unwrap_or(&saved.config);
    check(&format!("sha256:{}", named.strip_suffix(".json").unwrap_or(named)), digest.clone())?;
    let configuration: Configuration = json(&saved.config, &text)?;
    let diff_ids = configuration.layers(&saved.config, saved.layers.len())?;
    let layers = saved.layers.into_iter().zip(diff_ids);
    let layers = layers.map(|(part, diff_id)| Layer { part, digest: None, diff_id, compression: None }).collect();
    let names = saved.repo_tags.unwrap_or_default().iter().map(|name| plain_name(name)).collect();
    Ok(Image { digest, names, config: configuration.image_config(&saved.config)?, layers })
}

impl Configuration {
    /// The digests of its layers' contents, one for each of `count`.
    fn layers(&self, part: &str, count: usize) -> Result<Vec<String>, Refusal> {
        if self.os != "linux" || self.architecture != ARCHITECTURE {
            return Err(Refusal::part(part, "it is for another machine"));
        }
        if self.rootfs.kind != "layers" || self.rootfs.diff_ids.len() != count {
            return Err(Refusal::part(part, "it has another number of layers than its manifest"));
        }
        if count > LAYERS_MAX {
            return Err(Refusal::TooMuch { what: "layers", most: LAYERS_MAX as u64 });
        }
        for diff_id in &self.rootfs.diff_ids {
            blob(diff_id)?;
        }
        Ok(self.rootfs.diff_ids.clone())
    }

    fn image_config(self, part: &str) -> Result<ImageConfig, Refusal> {
        let runtime = self.config.unwrap_or_default();
        let said = |text: Option<String>| text.filter(|text| !text.is_empty());
        let config = ImageConfig {
            created: said(self.created),
            entrypoint: runtime.entrypoint.unwrap_or_default(),
            cmd: runtime.cmd.unwrap_or_default(),
            env: runtime.env.unwrap_or_default(),
            working_dir: said(runtime.working_dir),
            user: said(runtime.user),
            stop_signal: said(runtime.stop_signal),
        };
        config.check().map_err(|rule| Refusal::part(part, rule))?;
        Ok(config)
    }
}
