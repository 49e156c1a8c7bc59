//! `halsup image pull`: has skopeo fetch an image into a file, then imports that like any other archive.
//!
//! halsup speaks to no registry itself. skopeo runs with the caller's own rights and configuration, in a directory of its own.

#![expect(clippy::disallowed_types, reason = "runs skopeo, which is no worker, and waits for it")]

use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;

use super::context::Context;
use super::error::Error;
use super::image_import::{image_name, import};
use crate::protocol::control::ImageImportRequest;
use crate::spec::ImageName;

/// Where images are put on their way: on a disk, which /tmp may not be.
const DIRECTORY: &str = "/var/tmp";

/// Fetch an image from a registry through skopeo, where it is installed, and import it.
#[derive(Debug, Args)]
pub(super) struct Pull {
    /// Such as alpine:3.20 or ghcr.io/owner/name:tag; the image is called the same here.
    #[arg(value_name = "NAME", value_parser = image_name)]
    name: ImageName,
    /// Take the name from the image that has it.
    #[arg(long)]
    replace: bool,
}

/// A directory that goes with its value.
struct Directory(PathBuf);

impl Directory {
    fn make() -> Result<Self, Error> {
        let path = Path::new(DIRECTORY).join(format!("halsup-pull-{}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => Ok(Self(path)),
            Err(source) => Err(Error::WriteFile { path, source }),
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // In /var/tmp, where what is left is cleared some day.
        std::fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

impl Pull {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        // Nothing is fetched for a daemon that does not answer.
        drop(context.client()?);
        let directory = Directory::make()?;
        let archive = directory.0.join("image.tar");
        fetch(&self.name, &archive)?;
        let failed = |source| Error::ReadFile { path: archive.clone(), source };
        let file = File::open(&archive).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let replace = self.replace.then_some(true);
        let request = ImageImportRequest { name: Some(self.name), default_name: None, replace };
        import(context, request, &file, Some(size))
    }
}

fn fetch(name: &ImageName, to: &Path) -> Result<(), Error> {
    let run = Command::new("skopeo")
        .args(["copy", "--quiet", &format!("docker://{name}"), &format!("oci-archive:{}", to.display())])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output();
    match run {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let reason = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it did not say why").to_owned();
            Err(Error::Pull { name: name.to_string(), reason })
        }
        Err(source) if source.kind() == ErrorKind::NotFound => Err(Error::NoSkopeo { name: name.to_string() }),
        Err(source) => Err(Error::Pull { name: name.to_string(), reason: source.to_string() }),
    }
}
