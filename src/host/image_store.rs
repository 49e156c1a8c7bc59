//! Imported images on the disk: `<state_dir>/images`, a directory for each, by its digest.
//!
//! An image is `sha256-<hex>/` with `root/` (its files, under the ids that they have inside) and `image.json` (what it is
//! called and says of itself). It comes to be by one rename of a directory that was finished in `tmp/`, and goes by one rename
//! back: whatever is in `tmp/` when a daemon starts is nobody's (HARDENING F13). Nothing here reads what is below a root.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, fstat, fsync, mkdirat, open, openat, renameat, renameat_with,
    statat,
};
use rustix::io::{Errno, retry_on_intr};
use serde::{Deserialize, Serialize};

use crate::spec::{ImageConfig, ImageName, is_image_digest};

/// The directory's name in the state directory.
pub const IMAGES: &str = "images";
/// Where what is not finished is, below it.
pub const UNFINISHED: &str = "tmp";
/// A record is never longer, in bytes.
const RECORD_BYTES_MAX: usize = 1 << 20;
/// What record layout this program writes.
const FORMAT: u32 = 1;
/// More images are not looked at.
const IMAGES_MAX: usize = 4_096;

/// An image, as its record has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    format: u32,
    /// `sha256:…`.
    pub digest: String,
    /// What it is called; an image that lost its last name to another one has none.
    pub names: Vec<ImageName>,
    /// When it was imported, RFC 3339.
    pub imported: String,
    /// Bytes of its files.
    pub size_bytes: u64,
    /// How many files, directories and links.
    pub entries: u64,
    /// What it says of the program in it.
    pub config: ImageConfig,
}

/// The store cannot do something.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {object}")]
pub struct StoreError {
    operation: &'static str,
    object: String,
    source: io::Error,
}

fn failed<E: Into<io::Error>>(operation: &'static str, object: &str) -> impl FnOnce(E) -> StoreError + use<E> {
    let object = object.to_owned();
    move |source| StoreError { operation, object, source: source.into() }
}

type Result<T> = std::result::Result<T, StoreError>;

impl Image {
    /// One that was just unpacked.
    #[must_use]
    pub fn new(digest: String, imported: String, (size_bytes, entries): (u64, u64), config: ImageConfig) -> Self {
        Self { format: FORMAT, digest, names: Vec::new(), imported, size_bytes, entries, config }
    }

    /// Whether `wanted`, a name or a digest, means it.
    #[must_use]
    pub fn is(&self, wanted: &str) -> bool {
        self.digest == wanted || ImageName::parse(wanted).is_ok_and(|name| self.names.contains(&name))
    }

    /// Whether what was read can be believed.
    fn is_sound(&self, dir: &str) -> bool {
        self.format == FORMAT
            && is_image_digest(&self.digest)
            && directory(&self.digest) == dir
            && self.config.check().is_ok()
    }
}

/// The name of an image's directory.
fn directory(digest: &str) -> String {
    digest.replace(':', "-")
}

/// The images.
#[derive(Debug)]
pub struct ImageStore {
    dir: OwnedFd,
    unfinished: OwnedFd,
    path: PathBuf,
    next: u64,
}

impl ImageStore {
    /// Of a state directory; makes what is missing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(state: BorrowedFd<'_>, path: &Path) -> Result<Self> {
        let dir = below(state, IMAGES)?;
        let unfinished = below(dir.as_fd(), UNFINISHED)?;
        Ok(Self { dir, unfinished, path: path.join(IMAGES), next: 0 })
    }

    /// Where unfinished ones are.
    #[must_use]
    pub fn unfinished(&self) -> BorrowedFd<'_> {
        self.unfinished.as_fd()
    }

    /// Every image, by digest. What is damaged is left out, and named in `damaged`.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self, damaged: &mut Vec<String>) -> Result<Vec<Image>> {
        list(self.dir.as_fd(), damaged)
    }

    /// Makes a directory for an image that is to be: its name, and the empty directory of its files.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn begin(&mut self) -> Result<(String, OwnedFd)> {
        let name = self.fresh()?;
        mkdirat(&self.unfinished, &name, Mode::RWXU).map_err(failed("make", &name))?;
        let made = openat(&self.unfinished, &name, FLAGS, Mode::empty()).map_err(failed("open", &name))?;
        mkdirat(&made, "root", Mode::RWXU).map_err(failed("make", "root"))?;
        let root = openat(&made, "root", FLAGS, Mode::empty()).map_err(failed("open", "root"))?;
        // The archive may say otherwise; without its word this is what `/` is like.
        rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755)).map_err(failed("change the mode of", "root"))?;
        Ok((name, root))
    }

    /// A name in `tmp/` that nothing has.
    fn fresh(&mut self) -> Result<String> {
        loop {
            self.next = self.next.wrapping_add(1);
            let name = format!("tx{:08}", self.next);
            match statat(&self.unfinished, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => return Ok(name),
                Ok(_) => {}
                Err(errno) => return Err(failed("look at", &name)(errno)),
            }
        }
    }

    /// Makes an image of a finished directory in `tmp/`. `false`: the same is there already.
    ///
    /// # Errors
    /// [`StoreError`]; then it is as unfinished as before.
    pub fn publish(&self, unfinished: &str, image: &Image) -> Result<bool> {
        let made = openat(&self.unfinished, unfinished, FLAGS, Mode::empty()).map_err(failed("open", unfinished))?;
        write_record(made.as_fd(), image)?;
        let to = directory(&image.digest);
        match renameat_with(&self.unfinished, unfinished, &self.dir, &to, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(false),
            Err(errno) => return Err(failed("rename", unfinished)(errno)),
        }
        fsync(&self.dir).map_err(failed("write", IMAGES))?;
        Ok(true)
    }

    /// Writes an image's record anew.
    ///
    /// # Errors
    /// [`StoreError`]; then the old one stands.
    pub fn rewrite(&self, image: &Image) -> Result<()> {
        let name = directory(&image.digest);
        let dir = openat(&self.dir, &name, FLAGS, Mode::empty()).map_err(failed("open", &name))?;
        write_record(dir.as_fd(), image)
    }

    /// Takes an image out of the store; the name in `tmp/` under which it waits to be removed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn retire(&mut self, digest: &str) -> Result<String> {
        let (from, to) = (directory(digest), self.fresh()?);
        renameat(&self.dir, &from, &self.unfinished, &to).map_err(failed("retire", &from))?;
        fsync(&self.dir).map_err(failed("write", IMAGES))?;
        Ok(to)
    }

    /// The path of an image's files.
    #[must_use]
    pub fn root(&self, digest: &str) -> PathBuf {
        self.path.join(directory(digest)).join("root")
    }
}

/// The image that a name or digest means, in the store of a state directory, with the path of its files; for whoever holds
/// no store. A store that is not there is an empty one.
///
/// # Errors
/// The store cannot be read.
pub fn resolve(state_dir: &Path, wanted: &str) -> Result<Option<(Image, PathBuf)>> {
    let path = state_dir.join(IMAGES);
    let dir = match open(&path, FLAGS, Mode::empty()) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(failed("open", &path.display().to_string())(errno)),
    };
    let found = list(dir.as_fd(), &mut Vec::new())?.into_iter().find(|image| image.is(wanted));
    Ok(found.map(|image| {
        let root = path.join(directory(&image.digest)).join("root");
        (image, root)
    }))
}

const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn below(parent: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    match mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(failed("make", name)(errno)),
    }
    openat(parent, name, FLAGS, Mode::empty()).map_err(failed("open", name))
}

fn list(dir: BorrowedFd<'_>, damaged: &mut Vec<String>) -> Result<Vec<Image>> {
    let mut images = Vec::new();
    for entry in Dir::read_from(dir).map_err(failed("list", IMAGES))? {
        let entry = entry.map_err(failed("list", IMAGES))?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if !name.starts_with("sha256-") || images.len() >= IMAGES_MAX {
            continue;
        }
        match read_record(dir, name) {
            Ok(image) if image.is_sound(name) => images.push(image),
            Ok(_) | Err(_) => damaged.push(name.to_owned()),
        }
    }
    images.sort_by(|a: &Image, b| a.digest.cmp(&b.digest));
    Ok(images)
}

fn read_record(dir: BorrowedFd<'_>, name: &str) -> io::Result<Image> {
    let dir = openat(dir, name, FLAGS, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(&dir, "image.json", flags, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(std::fs::File::from(file), RECORD_BYTES_MAX as u64), &mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn write_record(dir: BorrowedFd<'_>, image: &Image) -> Result<()> {
    const NEW: &str = "image.json.new";
    let text = serde_json::to_vec_pretty(image).map_err(failed("write", NEW))?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(dir, NEW, flags, Mode::RUSR | Mode::WUSR).map_err(failed("make", NEW))?;
    let mut rest = text.as_slice();
    while !rest.is_empty() {
        let count = retry_on_intr(|| rustix::io::write(&file, rest)).map_err(failed("write", NEW))?;
        rest = rest.get(count..).unwrap_or_default();
    }
    fsync(&file).map_err(failed("write", NEW))?;
    renameat(dir, NEW, dir, "image.json").map_err(failed("rename", NEW))?;
    fsync(dir).map_err(failed("write", IMAGES))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(state: &Path) -> ImageStore {
        let state_fd = open(state, FLAGS, Mode::empty()).unwrap();
        ImageStore::open(state_fd.as_fd(), state).unwrap()
    }

    fn image(byte: char, names: &[&str]) -> Image {
        let digest = format!("sha256:{}", byte.to_string().repeat(64));
        let mut image = Image::new(digest, "2026-01-01T00:00:00Z".into(), (5, 1), ImageConfig::default());
        image.names = names.iter().map(|name| ImageName::parse(name).unwrap()).collect();
        image
    }

    #[test]
    fn an_image_is_there_whole_or_not_at_all() {
        let state = tempfile::tempdir().unwrap();
        let mut store = store(state.path());
        let (unfinished, _root) = store.begin().unwrap();
        assert_eq!(store.list(&mut Vec::new()).unwrap(), []);
        let first = image('a', &["alpine"]);
        assert!(store.publish(&unfinished, &first).unwrap());
        let found = resolve(state.path(), "alpine:latest").unwrap().unwrap();
        assert_eq!(found.0, first);
        assert!(found.1.is_dir());
        let (again, _root) = store.begin().unwrap();
        assert!(!store.publish(&again, &first).unwrap(), "the same again");
        let gone = store.retire(&first.digest).unwrap();
        assert_eq!(resolve(state.path(), "alpine").unwrap(), None);
        assert!(state.path().join("images/tmp").join(gone).join("root").is_dir());
    }

    #[test]
    fn a_record_that_was_tampered_with_is_no_image() {
        let state = tempfile::tempdir().unwrap();
        let mut store = store(state.path());
        let (unfinished, _root) = store.begin().unwrap();
        let good = image('b', &["a", "b"]);
        store.publish(&unfinished, &good).unwrap();
        let record = state.path().join("images").join(directory(&good.digest)).join("image.json");
        let text = std::fs::read_to_string(&record).unwrap();
        for (from, to) in
            [("\"a:latest\"", "\"../x\""), ("sha256:bb", "sha256:cc"), ("\"env\": []", "\"env\": [\"x\"]"), ("{", "")]
        {
            std::fs::write(&record, text.replacen(from, to, 1)).unwrap();
            let mut damaged = Vec::new();
            assert_eq!((store.list(&mut damaged).unwrap().len(), damaged.len()), (0, 1), "{from}");
        }
        std::fs::remove_file(&record).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &record, FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert_eq!(store.list(&mut Vec::new()).unwrap(), [], "a pipe is not waited for");
    }
}
