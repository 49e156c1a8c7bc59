//! One volume into an archive, and an archive into a volume.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{RenameFlags, renameat_with};
use serde::Serialize;

use super::hand::InHand;
use super::{Error, Nameless, Place, pack, step, unpack};
use crate::archive::{Pack, Packed, Totals};
use crate::daemon::clock;
use crate::host::volume::DATA;
use crate::spec::{DaemonSpec, VolumeName};

/// What an import has made.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Imported {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// Whether there was a volume of that name before.
    pub replaced: bool,
}

/// Packs the content of a volume: into a file that is not there yet, or, where `path` is `None`, into `out`.
///
/// # Errors
/// [`Error`]; then there is no file.
pub fn export(spec: &DaemonSpec, name: &VolumeName, path: Option<&Path>, out: &impl AsFd) -> Result<Packed, Error> {
    let place = Place::open(spec)?;
    let data = place.store.data(name)?;
    let Some(path) = path else { return pack(spec, data.as_fd(), out.as_fd(), Pack::default()) };
    let file = Nameless::make(path)?;
    let packed = pack(spec, data.as_fd(), file.file.as_fd(), Pack::default())?;
    file.appear()?;
    Ok(packed)
}

/// Makes a volume of an archive. One of that name is replaced, in one step, if that is said.
///
/// # Errors
/// [`Error`]; then everything is as it was.
pub fn import(spec: &DaemonSpec, name: &VolumeName, archive: &impl AsFd, replace: bool) -> Result<Imported, Error> {
    let place = Place::open(spec)?;
    let exists = place.store.exists(name)?;
    if exists && !replace {
        return Err(Error::refused(format!("volume {name} is there already: --replace gives up what is in it")));
    }
    let hand = InHand::make(place.store.dir(), format!(".importing-{name}"))?;
    let made = fill(spec, &place, &hand, name, archive, exists);
    // After an exchange this is what was there before.
    let discarded = if made.as_ref().is_ok_and(|_| !exists) { Ok(()) } else { hand.discard() };
    let totals = made?;
    discarded?;
    Ok(Imported { entries: totals.entries, bytes: totals.bytes, replaced: exists })
}

fn fill(
    spec: &DaemonSpec,
    place: &Place,
    hand: &InHand<'_>,
    name: &VolumeName,
    archive: &impl AsFd,
    exists: bool,
) -> Result<Totals, Error> {
    let store = &place.store;
    let data = store.furnish(hand.dir().as_fd(), clock::wall())?;
    let totals = unpack(spec, archive.as_fd(), data.as_fd())?;
    rustix::fs::syncfs(&data).map_err(step("write", name))?;
    if exists {
        let (ours, theirs) = (format!("{}/{DATA}", hand.name()), format!("{name}/{DATA}"));
        renameat_with(store.dir(), ours, store.dir(), theirs, RenameFlags::EXCHANGE).map_err(step("replace", name))?;
    } else {
        renameat_with(store.dir(), hand.name(), store.dir(), name.as_str(), RenameFlags::NOREPLACE)
            .map_err(step("make", name))?;
    }
    rustix::fs::fsync(store.dir()).map_err(step("write", name))?;
    Ok(totals)
}
