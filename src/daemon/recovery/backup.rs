//! All volumes into one archive, and back: whole or not at all.
//!
//! A backup is a tar with what it is of (`backup.json`), the configuration that was in force, the volumes, and at its end how
//! much that is. A restore unpacks it beside, holds one against the other, and exchanges the directory of volumes with one
//! rename: whenever it is interrupted, the volumes are those before or those of the backup. The configuration is for people:
//! what pools may have is never taken from an archive.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, fchmod, fstat, openat2, renameat_with, statat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::hand::InHand;
use super::{DIRECTORY, Error, Nameless, Place, chosen, pack, stamp, step, unpack};
use crate::archive::{Pack, Packed, Totals};
use crate::daemon::clock;
use crate::host::own_dir::own_dir;
use crate::host::volume::{COUNT_MAX, DATA, METADATA, VOLUMES};
use crate::spec::{DaemonSpec, VolumeName};

/// The layout of a backup.
const FORMAT: u32 = 1;
/// What names of backups begin and end with.
const NAME: (&str, &str) = ("halsup-backup-", ".tar.gz");
/// The first file in one.
const HEAD: &str = "backup.json";
/// The last file in one.
const TAIL: &str = "backup-end.json";
/// No file about a backup is longer, in bytes.
const ABOUT_BYTES_MAX: usize = 64 << 10;
/// Where one is unpacked.
const HAND: &str = "restore.tmp";

/// What a backup says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    format: u32,
    version: String,
    instance: String,
    created: String,
    volumes: Vec<String>,
    /// Files before the volumes, this one among them.
    head: u64,
}

/// A backup that was made.
#[derive(Debug, Clone, Serialize)]
pub struct Made {
    /// Where it is.
    pub path: PathBuf,
    /// The volumes in it.
    pub volumes: Vec<String>,
    /// How much that is.
    #[serde(flatten)]
    pub packed: Packed,
}

/// A backup that there is.
#[derive(Debug, Clone, Serialize)]
pub struct Backup {
    /// Where it is.
    pub path: PathBuf,
    /// When it was written, in seconds since 1970.
    pub written: i64,
    /// Its length.
    pub bytes: u64,
}

/// What a restore has brought back.
#[derive(Debug, Clone, Serialize)]
pub struct Restored {
    /// The volumes that there are now.
    pub volumes: Vec<String>,
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// Where backups are, unless somebody says otherwise: beside the state directory, under a name that no instance has.
#[must_use]
fn default_dir(spec: &DaemonSpec) -> PathBuf {
    let mut path = spec.state_dir.clone().into_os_string();
    path.push(".backups");
    path.into()
}

/// Packs volumes, all where none is named, into a file in `dir`, or at `path`.
///
/// # Errors
/// [`Error`]; then there is no file.
pub fn back_up(
    spec: &DaemonSpec,
    config: Option<String>,
    volumes: &[VolumeName],
    (dir, path): (Option<&Path>, Option<&Path>),
) -> Result<Made, Error> {
    let place = Place::open(spec)?;
    let names: Vec<String> = chosen(&place.store, volumes)?.iter().map(ToString::to_string).collect();
    let now = clock::wall();
    let path = match path {
        Some(path) => path.to_owned(),
        None => {
            let dir = dir.map_or_else(|| default_dir(spec), Path::to_owned);
            own_dir(&dir, 0o700)?;
            dir.join(format!("{}{}{}", NAME.0, stamp(now), NAME.1))
        }
    };
    let about = About {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance: spec.instance.to_string(),
        created: clock::rfc3339(now),
        volumes: names.clone(),
        head: 1 + u64::from(config.is_some()),
    };
    let text = serde_json::to_string_pretty(&about).unwrap_or_default();
    let mut head = vec![(HEAD.to_owned(), text)];
    head.extend(config.map(|config| ("config.toml".to_owned(), config)));
    let file = Nameless::make(&path)?;
    // A volume that goes meanwhile is one that there is no backup of: then there is none at all.
    let wanted = Pack { only: names.clone(), prefix: format!("{VOLUMES}/"), head, tail: Some(TAIL.to_owned()) };
    let packed = if names.is_empty() {
        // No name would mean all there is, what is unfinished too.
        return Err(Error::refused("there are no volumes to back up"));
    } else {
        pack(spec, place.store.dir(), file.file.as_fd(), wanted)?
    };
    file.appear()?;
    Ok(Made { path, volumes: names, packed })
}

/// The backups in `dir`, the youngest first.
///
/// # Errors
/// [`Error::Step`].
pub fn list(spec: &DaemonSpec, dir: Option<&Path>) -> Result<Vec<Backup>, Error> {
    let dir = dir.map_or_else(|| default_dir(spec), Path::to_owned);
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(step("list", dir.display())(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(step("list", dir.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(meta) = entry.metadata() else { continue };
        if name.starts_with(NAME.0) && name.ends_with(NAME.1) && meta.is_file() {
            let written = std::os::unix::fs::MetadataExt::mtime(&meta);
            found.push(Backup { path: entry.path(), written, bytes: meta.len() });
        }
    }
    found.sort_by(|one, other| other.path.cmp(&one.path));
    Ok(found)
}

/// Brings back the volumes of a backup. Those that it does not have are given up only if that is said.
///
/// # Errors
/// [`Error`]; then everything is as it was.
pub fn restore(spec: &DaemonSpec, archive: &impl AsFd, gives_up_others: bool) -> Result<Restored, Error> {
    let place = Place::open(spec)?;
    let lock = place.lock(spec)?;
    let before = place.store.names()?;
    let hand = InHand::make(place.state.as_fd(), HAND.to_owned())?;
    let restored = bring_back(spec, &place, &hand, archive, (&before, gives_up_others));
    // It has what came of the archive, or what was there before.
    let discarded = hand.discard();
    let restored = restored?;
    discarded?;
    drop(lock);
    Ok(restored)
}

fn bring_back(
    spec: &DaemonSpec,
    place: &Place,
    hand: &InHand<'_>,
    archive: &impl AsFd,
    (before, gives_up_others): (&[VolumeName], bool),
) -> Result<Restored, Error> {
    let totals = unpack(spec, archive.as_fd(), hand.dir().as_fd())?;
    let names = check(hand.dir().as_fd(), &totals)?;
    let lost: Vec<&str> = before.iter().filter(|name| !names.contains(name)).map(VolumeName::as_str).collect();
    if !lost.is_empty() && !gives_up_others {
        let lost = lost.join(", ");
        return Err(Error::refused(format!(
            "the backup does not have {lost}, which would be gone: export what is needed, then say --replace"
        )));
    }
    rustix::fs::syncfs(hand.dir()).map_err(step("write", HAND))?;
    let ours = format!("{HAND}/{VOLUMES}");
    renameat_with(&place.state, ours, &place.state, VOLUMES, RenameFlags::EXCHANGE)
        .map_err(step("exchange", VOLUMES))?;
    rustix::fs::fsync(&place.state).map_err(step("write", VOLUMES))?;
    let volumes = names.iter().map(ToString::to_string).collect();
    Ok(Restored { volumes, entries: totals.entries, bytes: totals.bytes })
}

/// Holds what was unpacked against what it says of itself: every volume that it names is there, nothing else is, and it is
/// as much as was packed.
fn check(dir: BorrowedFd<'_>, totals: &Totals) -> Result<Vec<VolumeName>, Error> {
    let about: About = read(dir, HEAD)?;
    if about.format != FORMAT {
        return Err(Error::refused(format!("the backup has layout {}, and this program knows {FORMAT}", about.format)));
    }
    let end: Packed = read(dir, TAIL)?;
    if end.entries.checked_add(about.head).and_then(|sum| sum.checked_add(1)) != Some(totals.entries) {
        return Err(Error::refused("the backup is not whole: it has other entries than it says"));
    }
    if about.volumes.len() > COUNT_MAX {
        return Err(Error::refused(format!("the backup has more than {COUNT_MAX} volumes")));
    }
    let mut names = Vec::new();
    for name in &about.volumes {
        names.push(VolumeName::parse(name).map_err(|error| Error::refused(format!("the backup is wrong: {error}")))?);
    }
    names.sort();
    names.dedup();
    let volumes = open(dir, VOLUMES, DIRECTORY)?;
    let mut there = Vec::new();
    for entry in rustix::fs::Dir::read_from(&volumes).map_err(step("list", VOLUMES))? {
        let entry = entry.map_err(step("list", VOLUMES))?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            there.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    there.sort();
    if there.len() != names.len() || there.iter().zip(&names).any(|(found, said)| found != said.as_str()) {
        return Err(Error::refused("the backup has other volumes than it says"));
    }
    for name in &names {
        check_volume(&volumes, name)?;
    }
    fchmod(&volumes, Mode::RWXU).map_err(step("close", VOLUMES))?;
    Ok(names)
}

/// Whether what was unpacked is a volume: its data a directory, its file about itself a file or not there, and nothing else.
fn check_volume(volumes: &OwnedFd, name: &VolumeName) -> Result<(), Error> {
    let dir = open(volumes.as_fd(), name.as_str(), DIRECTORY)?;
    drop(open(dir.as_fd(), DATA, DIRECTORY)?);
    match statat(&dir, METADATA, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {}
        Err(Errno::NOENT) => {}
        Ok(_) | Err(_) => return Err(Error::refused(format!("volume {name} of the backup is no volume"))),
    }
    for entry in rustix::fs::Dir::read_from(&dir).map_err(step("list", name))? {
        let entry = entry.map_err(step("list", name))?;
        if ![".", "..", DATA, METADATA].iter().any(|known| entry.file_name().to_bytes() == known.as_bytes()) {
            return Err(Error::refused(format!("volume {name} of the backup is no volume")));
        }
    }
    fchmod(&dir, Mode::RWXU).map_err(step("close", name))
}

fn open(dir: BorrowedFd<'_>, name: &str, flags: OFlags) -> Result<OwnedFd, Error> {
    let resolving =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    openat2(dir, name, flags, Mode::empty(), resolving).map_err(|errno| match errno {
        Errno::NOENT => Error::refused(format!("this is no backup, or not a whole one: it has no {name}")),
        errno => step("open", name)(errno),
    })
}

/// Reads a file about the backup.
fn read<T: serde::de::DeserializeOwned>(dir: BorrowedFd<'_>, name: &str) -> Result<T, Error> {
    let file = open(dir, name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC)?;
    let stat = fstat(&file).map_err(step("look at", name))?;
    let mut text = vec![0; ABOUT_BYTES_MAX];
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::refused(format!("{name} of the backup is no file")));
    }
    let length = rustix::io::pread(&file, &mut text, 0).map_err(step("read", name))?;
    serde_json::from_slice(text.get(..length).unwrap_or_default())
        .map_err(|error| Error::refused(format!("{name} of the backup is not understood: {error}")))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Numbers that look like chance and are the same in every run (splitmix64).
    struct Draw(u64);

    impl Draw {
        fn below(&mut self, most: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            usize::try_from((z ^ (z >> 31)) >> 16).unwrap_or(0) % most
        }
    }

    /// What somebody may have written into a field.
    fn anything() -> Vec<Value> {
        vec![
            json!(null),
            json!(-1),
            json!(0),
            json!(1),
            json!(2),
            json!(3),
            json!(u64::MAX),
            json!(i64::MIN),
            json!(1e300),
            json!(true),
            json!(""),
            json!("data"),
            json!("../../etc"),
            json!("/"),
            json!("a\u{0}b"),
            json!("x".repeat(300)),
            json!([]),
            json!(["data"]),
            json!(["data", "data"]),
            json!(["data", "more"]),
            json!(["more", "data"]),
            json!(["data", "more", ""]),
            json!(vec!["data"; 300]),
            json!([[]]),
            json!({}),
            json!({ "binds": ["/:/host"] }),
        ]
    }

    /// One field changed, added, removed or renamed, or a piece of the text.
    fn changed(draw: &mut Draw, values: &[Value], text: &str) -> Vec<u8> {
        let mut value: Value = serde_json::from_str(text).unwrap();
        let fields = value.as_object_mut().unwrap();
        let name = fields.keys().nth(draw.below(fields.len())).unwrap().clone();
        match draw.below(8) {
            0..=3 => drop(fields.insert(name, values[draw.below(values.len())].clone())),
            4 => drop(fields.remove(&name)),
            5 => drop(fields.insert(format!("{name}s"), values[draw.below(values.len())].clone())),
            _ => {
                let mut bytes = text.as_bytes().to_vec();
                let at = draw.below(bytes.len());
                match draw.below(3) {
                    0 => bytes[at] = u8::try_from(draw.below(256)).unwrap(),
                    1 => bytes.truncate(at),
                    _ => drop(bytes.splice(at..at, b"9\"{[".iter().copied())),
                }
                return bytes;
            }
        }
        value.to_string().into_bytes()
    }

    #[test]
    fn whatever_a_backup_says_of_itself_counts_only_where_it_is_so() {
        // In memory where that can be had: a disk takes ten times as long for a file of its own each round.
        let memory = std::path::Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        for volume in ["data", "more"] {
            std::fs::create_dir_all(dir.path().join(VOLUMES).join(volume).join(DATA)).unwrap();
        }
        let root = rustix::fs::open(dir.path(), DIRECTORY, Mode::empty()).unwrap();
        let about = json!({ "format": FORMAT, "version": "0", "instance": "default", "created": "2026-01-01T00:00:00Z",
            "volumes": ["data", "more"], "head": 2 });
        let packed = Packed { entries: 9, ..Packed::default() };
        let (about, end) = (about.to_string(), serde_json::to_string(&packed).unwrap());
        let totals = Totals { entries: 12, ..Totals::default() };
        // A file that is emptied and written again is on the disk at once, on some file systems: each time another one.
        let write = |name: &str, bytes: &[u8]| {
            std::fs::remove_file(dir.path().join(name)).unwrap_or_default();
            std::fs::write(dir.path().join(name), bytes).unwrap();
        };
        let (mut draw, values, mut taken) = (Draw(12), anything(), 0);
        for round in 0..100_000 {
            let is_head = draw.below(3) > 0;
            let head = if is_head { changed(&mut draw, &values, &about) } else { about.as_bytes().to_vec() };
            let tail = if is_head { end.as_bytes().to_vec() } else { changed(&mut draw, &values, &end) };
            write(HEAD, &head);
            write(TAIL, &tail);
            let Ok(names) = check(root.as_fd(), &totals) else { continue };
            taken += 1;
            let names: Vec<&str> = names.iter().map(VolumeName::as_str).collect();
            assert_eq!(names, ["data", "more"], "round {round}");
            let (head, tail): (Value, Value) =
                (serde_json::from_slice(&head).unwrap(), serde_json::from_slice(&tail).unwrap());
            assert_eq!(head["format"], FORMAT, "round {round}");
            let sum = head["head"].as_u64().unwrap().checked_add(tail["entries"].as_u64().unwrap());
            assert_eq!(sum, Some(11), "round {round}");
        }
        assert!(taken > 1_000, "{taken}: what is so is taken");
    }
}
