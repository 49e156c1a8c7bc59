//! `halsup image import`: hands an archive to the daemon as a descriptor, and shows how far it is.
//!
//! The archive is opened here, with the caller's own rights.

use std::fs::File;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::context::Context;
use super::error::Error;
use super::image_layout;
use super::output;
use crate::protocol::control::{ImageImportReply, ImageImportRequest, Request};
use crate::spec::ImageName;

/// Make an image of an archive: a tar of a root file system, what `docker save` wrote, or an OCI layout, as a tar or a
/// directory; gzip and zstd are understood.
#[derive(Debug, Args)]
pub(super) struct Import {
    /// The archive or directory; `-` reads an archive from standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// What to call the image [default: what the archive says, else the file's name].
    #[arg(long, value_name = "NAME", value_parser = image_name)]
    name: Option<ImageName>,
    /// Take the name from the image that has it.
    #[arg(long)]
    replace: bool,
}

/// For clap: the name of an image.
pub(super) fn image_name(text: &str) -> Result<ImageName, String> {
    ImageName::parse(text).map_err(|error| error.to_string())
}

impl Import {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let request = ImageImportRequest {
            default_name: self.name.is_none().then(|| name_of(&self.file)).flatten(),
            name: self.name,
            replace: self.replace.then_some(true),
        };
        if self.file.as_os_str() == "-" {
            return import(context, request, &std::io::stdin(), None);
        }
        let failed = |source| Error::ReadFile { path: self.file.clone(), source };
        let mut file = File::open(&self.file).map_err(failed)?;
        if file.metadata().map_err(failed)?.is_dir() {
            file = image_layout::pack(&self.file)?;
        }
        let found = file.metadata().map_err(failed)?;
        let size = found.is_file().then_some(found.len());
        import(context, request, &file, size)
    }
}

/// Has the daemon import what `archive` leads to; prints the image.
pub(super) fn import(
    context: &Context,
    request: ImageImportRequest,
    archive: &impl std::os::fd::AsFd,
    size: Option<u64>,
) -> Result<(), Error> {
    let bar = bar(context, size);
    let mut last = ImageImportReply::default();
    let done =
        context.client()?.call_more_with(&Request::ImageImport(request), archive.as_fd(), |reply: ImageImportReply| {
            bar.set_position(reply.read_bytes);
            last = reply;
            Ok(())
        });
    bar.finish_and_clear();
    done?;
    for note in &last.notes {
        output::complain_text(note);
    }
    context.output.answer(&last, |reply| match &reply.image {
        Some(image) => format!("imported {} ({})", image.names.join(", "), image.digest),
        None => String::new(),
    })
}

/// A bar for people who look; nothing for programs.
fn bar(context: &Context, size: Option<u64>) -> ProgressBar {
    if context.output.is_json() || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match size {
        Some(size) => (ProgressBar::new(size), "{bar:30} {bytes}/{total_bytes} {bytes_per_sec}"),
        None => (ProgressBar::new_spinner(), "{spinner} {bytes} {bytes_per_sec}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_unreadable) => bar,
    }
}

/// What a file would call its image: its name without what says how it is packed.
fn name_of(file: &Path) -> Option<ImageName> {
    let name = file.file_name()?.to_str()?.to_ascii_lowercase();
    let mut name = name.as_str();
    while let Some(shorter) = [".gz", ".tgz", ".zst", ".tar", ".oci"].iter().find_map(|end| name.strip_suffix(end)) {
        name = shorter;
    }
    ImageName::parse(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_names_its_image() {
        for (file, name) in [
            ("/x/Debian-12.tar.gz", Some("debian-12:latest")),
            ("rootfs.tgz", Some("rootfs:latest")),
            ("a.oci.tar.zst", Some("a:latest")),
            ("plain", Some("plain:latest")),
            ("-", None),
            ("sonder zeichen.tar", None),
            (".tar", None),
        ] {
            assert_eq!(name_of(Path::new(file)).map(String::from).as_deref(), name, "{file}");
        }
    }
}
