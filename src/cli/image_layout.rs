//! An OCI layout that is a directory, as one file without a name that can be handed over.
//!
//! Read here, with the caller's own rights: what the daemon gets is an archive like any other, and is believed no more.

use std::fs::{self, File};
use std::io::{BufWriter, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::error::Error;
use crate::archive::Packer;

/// Where the file lies: on a disk, which /tmp may not be.
const DIRECTORY: &str = "/var/tmp";

/// Packs a layout.
///
/// # Errors
/// The directory is none, or cannot be read.
pub(super) fn pack(dir: &Path) -> Result<File, Error> {
    if !dir.join("oci-layout").is_file() {
        let shown = dir.display();
        let reason = format!(
            "{shown} is a directory without `oci-layout`: a root file system goes as a tar, as in `tar -C {shown} -c . | halsup image import - --name NAME`"
        );
        return Err(Error::Usage { reason });
    }
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let made = openat(CWD, DIRECTORY, flags, Mode::RUSR | Mode::WUSR);
    let file = File::from(made.map_err(|errno| Error::WriteFile { path: DIRECTORY.into(), source: errno.into() })?);
    let mut packer = Packer::new(BufWriter::new(file));
    for name in ["oci-layout", "index.json"] {
        add(&mut packer, dir, name)?;
    }
    let blobs = dir.join("blobs/sha256");
    let failed = |source| Error::ReadFile { path: blobs.clone(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(&blobs).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name());
    }
    names.sort();
    for name in names {
        add(&mut packer, dir, &format!("blobs/sha256/{}", name.to_string_lossy()))?;
    }
    let written = |source| Error::WriteFile { path: PathBuf::from(DIRECTORY), source };
    let mut file = packer.finish().map_err(written)?.into_inner().map_err(|error| written(error.into_error()))?;
    file.seek(SeekFrom::Start(0)).map_err(written)?;
    Ok(file)
}

fn add(packer: &mut Packer<BufWriter<File>>, dir: &Path, name: &str) -> Result<(), Error> {
    let path = dir.join(name);
    let failed = |source| Error::ReadFile { path: path.clone(), source };
    let file = File::open(&path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    packer.file(name, size, file).map_err(failed)
}
