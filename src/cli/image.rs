//! `halsup image`: what there is, what one is like, and taking one away. Importing and pulling have files of their own.

use clap::{Args, Subcommand};

use super::context::Context;
use super::error::Error;
use super::human;
use super::image_import::Import;
use super::image_pull::Pull;
use super::table::{pairs, table};
use crate::protocol::control::{
    ImageInfo, ImageInspectReply, ImageListReply, ImageRemoveReply, ImageRequest, NoParameters, Request,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    Import(Import),
    Pull(Pull),
    /// List the images.
    #[command(alias = "list")]
    Ls,
    Rm(Remove),
    Inspect(Inspect),
}

/// Take names away, and with its last name an image; by digest, all of it.
#[derive(Debug, Args)]
pub(super) struct Remove {
    /// Names or digests.
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

/// Show all about an image.
#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// A name, or a digest as sha256:...
    #[arg(value_name = "IMAGE")]
    image: String,
}

impl Verb {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        match self {
            Self::Import(import) => import.run(context),
            Self::Pull(pull) => pull.run(context),
            Self::Ls => {
                let reply: ImageListReply = context.client()?.call(&Request::ImageList(NoParameters {}))?;
                context.output.answer(&reply, |reply| render(&reply.images))
            }
            Self::Rm(remove) => {
                let mut client = context.client()?;
                for image in remove.images {
                    let reply: ImageRemoveReply = client.call(&Request::ImageRemove(request(image)?))?;
                    context.output.answer(&reply, said)?;
                }
                Ok(())
            }
            Self::Inspect(inspect) => {
                let request = request(inspect.image)?;
                let reply: ImageInspectReply = context.client()?.call(&Request::ImageInspect(request))?;
                context.output.answer(&reply, shown)
            }
        }
    }
}

/// What cannot mean an image is a wrong command line.
fn request(image: String) -> Result<ImageRequest, Error> {
    let request = ImageRequest { image };
    if request.is_sound() {
        return Ok(request);
    }
    let reason =
        format!("{:?} is neither the name of an image, such as alpine:3.20, nor a digest, sha256:…", request.image);
    Err(Error::Usage { reason })
}

/// The beginning of a digest, as people tell images apart.
fn short(digest: &str) -> String {
    digest.strip_prefix("sha256:").unwrap_or(digest).chars().take(12).collect()
}

/// A line for each name.
fn render(images: &[ImageInfo]) -> String {
    let rows = images.iter().flat_map(|image| {
        let names = if image.names.is_empty() { vec!["<none>".to_owned()] } else { image.names.clone() };
        names.into_iter().map(|name| {
            let used = if image.used_by.is_empty() { "-".to_owned() } else { image.used_by.join(", ") };
            [name, short(&image.digest), human::bytes(image.size_bytes), image.imported.clone(), used]
        })
    });
    let mut rows: Vec<_> = rows.collect();
    rows.sort();
    table(["NAME", "DIGEST", "SIZE", "IMPORTED", "USED BY"], rows)
}

fn said(reply: &ImageRemoveReply) -> String {
    let mut lines: Vec<String> = reply.names.iter().map(|name| format!("untagged {name}")).collect();
    lines.extend(reply.removed.iter().map(|digest| format!("removed {digest}")));
    lines.join("\n")
}

fn shown(reply: &ImageInspectReply) -> String {
    let (image, config) = (&reply.image, &reply.config);
    let list = |words: &[String]| (!words.is_empty()).then(|| words.join(" "));
    pairs([
        ("names", list(&image.names)),
        ("digest", Some(image.digest.clone())),
        ("size", Some(format!("{} in {} entries", human::bytes(image.size_bytes), image.entries))),
        ("created", config.created.clone()),
        ("imported", Some(image.imported.clone())),
        ("used by", list(&image.used_by)),
        ("entrypoint", list(&config.entrypoint)),
        ("command", list(&config.cmd)),
        ("environment", list(&config.env)),
        ("directory", config.working_dir.clone()),
        ("user", config.user.clone()),
        ("stop signal", config.stop_signal.clone()),
        ("files", Some(reply.root.clone())),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_a_line() {
        let image = ImageInfo {
            names: vec!["b:1".into(), "a:1".into()],
            digest: format!("sha256:{}", "0123456789abcdef".repeat(4)),
            created: None,
            imported: "2026-01-01T00:00:00Z".into(),
            size_bytes: 1536,
            entries: 3,
            used_by: vec!["web".into()],
        };
        let text = render(&[image]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "a:1   0123456789ab  1.5K  2026-01-01T00:00:00Z  web");
        assert!(lines[2].starts_with("b:1"));
    }
}
