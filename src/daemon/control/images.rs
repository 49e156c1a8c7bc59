//! Calls about images: what they are answered with. What is done is in `daemon/images.rs`.

use std::os::fd::OwnedFd;

use super::super::state::Daemon;
use super::client::Task;
use super::dispatch::{Asked, Outcome};
use crate::protocol::control::{
    DaemonState, Error, EventKind, ImageImportRequest, ImageInspectReply, ImageListReply, ImageRemoveReply,
    ImageRequest,
};
use crate::protocol::varlink::Reply;

impl Daemon {
    pub(super) fn ordered_import(
        &mut self,
        asked: Asked,
        request: ImageImportRequest,
        archive: Option<OwnedFd>,
    ) -> Outcome {
        if self.state == DaemonState::Stopping {
            return Error::ShuttingDown {}.into();
        }
        let Some(archive) = archive else {
            return Error::Refused { reason: "the archive has to come along as a descriptor".into() }.into();
        };
        if asked.oneway {
            return Error::Refused { reason: "an import without a reply cannot be cancelled".into() }.into();
        }
        let name = request.name.as_ref().or(request.default_name.as_ref()).map(ToString::to_string);
        let what = format!("import image {}", name.as_deref().unwrap_or("by the name in its archive"));
        self.record_order(asked, EventKind::Order, what);
        match self.begin_import(request, &archive, asked) {
            Ok(number) => Outcome::Wait(Task::Import(number, asked.more.then_some(0))),
            Err(error) => error.into(),
        }
    }

    pub(super) fn told_images(&self) -> ImageListReply {
        ImageListReply { images: self.images.all().map(|image| self.image_info(image)).collect() }
    }

    pub(super) fn inspected_image(&self, request: &ImageRequest) -> Outcome {
        let Some(image) = self.images.find(&request.image) else {
            return Error::NotFound { what: format!("image {}", request.image) }.into();
        };
        Outcome::Reply(Reply::last(&ImageInspectReply {
            image: self.image_info(image),
            config: image.config.clone(),
            root: self.images.store.root(&image.digest).display().to_string(),
        }))
    }

    pub(super) fn ordered_image_removal(&mut self, asked: Asked, request: &ImageRequest) -> Outcome {
        self.record_order(asked, EventKind::Order, format!("remove image {}", request.image));
        match self.forget_image(&request.image) {
            Ok((names, removed)) => {
                self.audit_order(asked, "image_remove", &request.image);
                Outcome::Reply(Reply::last(&ImageRemoveReply { names, removed }))
            }
            Err(error) => error.into(),
        }
    }
}
