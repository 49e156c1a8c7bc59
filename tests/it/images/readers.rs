//! What other readers make of an archive: whatever is taken here, GNU's tar puts the same tree on the disk, and Python's
//! `tarfile` sees the same entries (HARDENING F3). Archives that GNU's tar wrote, ones whose entries are in each other's way,
//! and ones whose headers were changed.

#![expect(clippy::disallowed_types, reason = "other programs write and read archives")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use halsup::archive::{Entries, EntryKind};

use super::archive::{Head, Tar, written};
use super::bundle::sha256;
use crate::needs::needs;
use crate::place::{Place, directory};

/// Trees of each format that GNU's tar knows.
const TREES: u64 = 3;
/// Archives whose entries are in each other's way.
const ENTANGLED: u64 = 120;
/// Archives with changed headers that are listed, and how many of those that are taken are unpacked too.
const CHANGED: u64 = 1_500;
const UNPACKED: usize = 120;

/// splitmix64.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).expect("64 bits")).expect("below a usize")
    }

    fn of<'t, T: ?Sized>(&mut self, all: &[&'t T]) -> &'t T {
        all[self.below(all.len())]
    }
}

/// What is below a directory: path, kind, mode, owner, content or target, and the first of a file's several names.
fn picture(dir: &Path, times: bool) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(at) = left.pop() {
        for entry in fs::read_dir(&at).expect("list").flatten() {
            let (path, meta) = (entry.path(), entry.metadata().expect("look at it"));
            if meta.is_dir() {
                left.push(path.clone());
            }
            found.insert(path.strip_prefix(dir).expect("it is below").display().to_string(), (path, meta));
        }
    }
    let mut first: BTreeMap<u64, String> = BTreeMap::new();
    let mut told = BTreeMap::new();
    for (name, (path, meta)) in found {
        let what = if meta.is_symlink() {
            fs::read_link(&path).expect("read the link").display().to_string()
        } else if meta.is_file() {
            sha256(&fs::read(&path).expect("read it"))
        } else {
            String::new()
        };
        let same = if meta.is_dir() { String::new() } else { first.entry(meta.ino()).or_insert(name.clone()).clone() };
        let mtime = if times { meta.mtime() } else { 0 };
        told.insert(name, format!("{:o} {}:{} {mtime} {what} {same}", meta.mode(), meta.uid(), meta.gid()));
    }
    told
}

/// What GNU's tar makes of an archive; `None` where it has something to complain of.
fn unpacked_by_gnu(archive: &Path, times: bool) -> Option<BTreeMap<String, String>> {
    let dir = directory();
    let script =
        "umask 022; exec tar --extract --preserve-permissions --same-owner --numeric-owner --file \"$0\" -C \"$1\"";
    let mut tar = Command::new("sh");
    tar.args(["-c", script]).args([archive, dir.path()]).env("LC_ALL", "C").stderr(Stdio::null());
    tar.status().expect("run tar").success().then(|| picture(dir.path(), times))
}

/// What halsup makes of it; `None` where it is refused.
fn unpacked_by_us(place: &Place, archive: &Path, times: bool) -> Option<BTreeMap<String, String>> {
    let output = place.cli(&["volume", "import", "it", archive.to_str().expect("ASCII"), "--replace"]);
    assert!(output.status < 2, "{output:?}");
    (output.status == 0).then(|| picture(&place.path("state/volumes/it/data"), times))
}

/// Makes a tree of everything that an archive of this format can hold: names that do not fit a header, and pipes, not in all.
fn grow(dir: &Path, draw: &mut Draw, format: &str) {
    let long = matches!(format, "oldgnu" | "gnu" | "posix");
    let mut dirs = vec![dir.to_owned()];
    let mut files: Vec<PathBuf> = Vec::new();
    for number in 0..40 {
        let at = dirs[draw.below(dirs.len())].clone();
        let stretched = if long && draw.below(5) == 0 { "long-".repeat(30) } else { String::new() };
        let path = at.join(format!("{stretched}{number} {}", draw.of(&["a", "ü", "-x", ".hidden", "with\nline"])));
        match draw.below(6) {
            0 => {
                fs::create_dir(&path).expect("make a directory");
                dirs.push(path.clone());
            }
            1 => {
                let target = draw.of(&["/etc/passwd", "../../..", "nowhere", "."]);
                let target = if long { target.repeat(1 + draw.below(40)) } else { target.to_owned() };
                symlink(target, &path).expect("make a link");
                continue;
            }
            2 if !files.is_empty() => {
                fs::hard_link(&files[draw.below(files.len())], &path).expect("make another name");
                continue;
            }
            3 if format != "v7" => nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("make a pipe"),
            _ => {
                let length = draw.below(3) * (draw.below(2_000) + draw.below(2) * 70_000);
                let byte = draw.next().to_le_bytes()[0];
                fs::write(&path, vec![byte; length]).expect("write a file");
                files.push(path.clone());
            }
        }
        let id = |draw: &mut Draw| Some(u32::try_from(draw.below(65_536)).expect("it fits"));
        std::os::unix::fs::chown(&path, id(draw), id(draw)).expect("give it away");
        let mode = u32::try_from(draw.below(0o1000)).expect("it fits");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("change its mode");
    }
}

#[test]
fn what_gnu_tar_writes_is_unpacked_as_it_unpacks_it() {
    needs!(Root, Userns, Program("tar"));
    let place = Place::new("[pool.web]\ncommand = ['x']\n");
    let archive = place.path("archive");
    for format in ["v7", "oldgnu", "gnu", "ustar", "posix"] {
        for seed in 0..TREES {
            let dir = directory();
            grow(dir.path(), &mut Draw(seed), format);
            let mut tar = Command::new("tar");
            tar.args(["--create", "--format", format, "--file"]).arg(&archive).arg("-C").arg(dir.path()).arg(".");
            let made = tar.env("LC_ALL", "C").output().expect("run tar");
            assert!(made.status.success(), "{made:?}");
            let theirs = unpacked_by_gnu(&archive, true).expect("it reads what it wrote");
            assert_eq!(theirs, picture(dir.path(), true), "{format} {seed}");
            assert_eq!(unpacked_by_us(&place, &archive, true), Some(theirs), "{format} {seed}");
        }
    }
}

/// Entries of few names, in any order: later ones are in the way of, or go through, those before.
fn entangled(draw: &mut Draw) -> Vec<u8> {
    const NAMES: [&str; 8] = ["a", "b", "a/b", "a/c", "a/b/c", "d/e", "d", "./a/../b"];
    let mut tar = Tar::default();
    for _ in 0..2 + draw.below(6) {
        let known = if draw.below(20) == 0 { 8 } else { 7 };
        let name = NAMES[draw.below(known)];
        let mode = u32::try_from(draw.of(&[&0o755_usize, &0o700, &0o644, &0o777]).to_owned()).expect("it fits");
        match draw.below(7) {
            0 | 1 => {
                let name = if draw.below(2) == 0 { format!("{name}/") } else { name.to_owned() };
                tar.raw(&Head { name: name.as_bytes(), flag: b'5', mode, ..Head::default() }, b"");
            }
            2 => {
                tar.symlink(name, draw.of(&["a", "b", "/etc", "..", "d", "nowhere"]));
            }
            3 => {
                tar.hard_link(name, NAMES[draw.below(7)]);
            }
            _ => {
                let content = draw.next().to_le_bytes();
                tar.raw(&Head { name: name.as_bytes(), mode, ..Head::default() }, &content[..draw.below(8)]);
            }
        }
    }
    tar.end()
}

#[test]
fn entries_in_each_others_way_come_out_as_of_gnu_tar_or_not_at_all() {
    needs!(Root, Userns, Program("tar"));
    let place = Place::new("[pool.web]\ncommand = ['x']\n");
    let (mut taken, mut wrong) = (0, Vec::new());
    for seed in 0..ENTANGLED {
        let archive = written(&place.path(""), "archive", &entangled(&mut Draw(seed)));
        let Some(ours) = unpacked_by_us(&place, &archive, false) else { continue };
        taken += 1;
        let theirs = unpacked_by_gnu(&archive, false);
        if theirs.as_ref() != Some(&ours) {
            let listed = Command::new("tar").arg("tvPf").arg(&archive).output().expect("run tar").stdout;
            wrong.push(format!("{seed}: {}\n{ours:#?}\n{theirs:#?}", String::from_utf8_lossy(&listed)));
        }
    }
    assert!(wrong.is_empty(), "{} of {taken}: {}", wrong.len(), wrong.join("\n"));
    assert!(taken > ENTANGLED / 8, "only {taken} were taken");
}

/// Where headers begin in an archive: blocks whose checksum is right.
fn headers(archive: &[u8]) -> Vec<usize> {
    let sum = |block: &[u8]| -> u32 {
        block.iter().enumerate().map(|(at, byte)| u32::from(if (148..156).contains(&at) { b' ' } else { *byte })).sum()
    };
    let is_header = |block: &[u8]| block[148..156].starts_with(format!("{:06o}", sum(block)).as_bytes());
    archive.chunks_exact(512).enumerate().filter(|(_, block)| is_header(block)).map(|(at, _)| at * 512).collect()
}

/// Changes fields of an archive's headers, and makes their checksums right again.
fn change(archive: &mut [u8], draw: &mut Draw) {
    const FIELDS: [(usize, usize); 11] = [
        (0, 100),
        (100, 8),
        (108, 8),
        (116, 8),
        (124, 12),
        (136, 12),
        (156, 1),
        (157, 100),
        (257, 8),
        (263, 2),
        (345, 155),
    ];
    const VALUES: [&[u8]; 24] = [
        b"",
        b"\0",
        b"0",
        b"7\0",
        b" 7 ",
        b"  644 \0",
        b"0000012\0",
        b"00000001000\0",
        b"00000000017 ",
        b"00000002000",
        b"-1",
        b"+5",
        b"0x10",
        b"9",
        b"\x80\0\0\0\0\0\0\0\0\0\0\x07",
        b"\x80\0\0\0\0\0\0\x07",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"ustar\x0000",
        b"ustar  \0",
        b"a/b",
        b"x/",
        b"./y",
        b"K",
        b"S",
    ];
    let places = headers(archive);
    for _ in 0..1 + draw.below(2) {
        let at = places[draw.below(places.len())];
        let (start, length) = FIELDS[draw.below(FIELDS.len())];
        let field = &mut archive[at + start..at + start + length];
        match draw.below(3) {
            0 => field[draw.below(length)] = draw.next().to_le_bytes()[0],
            1 => {
                let value = draw.of(&VALUES);
                let count = value.len().min(length);
                field[..count].copy_from_slice(&value[..count]);
            }
            _ => {
                let value = draw.of(&VALUES);
                let count = value.len().min(length);
                field.fill(0);
                field[..count].copy_from_slice(&value[..count]);
            }
        }
        let header = &mut archive[at..at + 512];
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

/// What the program sees in an archive, an entry a line; `None` where it is refused.
fn listed_by_us(archive: &[u8]) -> Option<Vec<String>> {
    let mut entries = Entries::new(archive, 1 << 20);
    let mut told = Vec::new();
    while let Some(entry) = entries.next_entry().ok()? {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let (kind, link) = match &entry.kind {
            EntryKind::Regular => ("file", String::new()),
            EntryKind::HardLink(target) => ("hard", hex(target)),
            EntryKind::Symlink(target) => ("link", hex(target)),
            EntryKind::Device => ("device", String::new()),
            EntryKind::Directory => ("dir", String::new()),
            EntryKind::Fifo => ("pipe", String::new()),
        };
        let mut content = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match entries.read(&mut buffer).ok()? {
                0 => break,
                count => content.extend_from_slice(&buffer[..count]),
            }
        }
        let name = hex(&entry.name);
        let (mode, uid, gid) = (entry.mode, entry.uid, entry.gid);
        told.push(format!("{kind} {name} {link} {mode:o} {uid} {gid} {}", sha256(&content)));
    }
    Some(told)
}

/// Prints what `tarfile` sees in each archive of a directory.
const LIST: &str = r"
import hashlib, json, os, sys, tarfile
def plain(name):
    return b'/'.join(part for part in os.fsencode(name).split(b'/') if part not in (b'', b'.')).hex()
def see(path):
    told = []
    with tarfile.open(path, 'r:', errors='surrogateescape', encoding='utf-8') as tar:
        for one in tar:
            kind = ('file' if one.isreg() else 'dir' if one.isdir() else 'link' if one.issym() else 'hard' if one.islnk()
                    else 'pipe' if one.isfifo() else 'device')
            link = {'link': lambda: os.fsencode(one.linkname).hex(), 'hard': lambda: plain(one.linkname)}.get(kind, str)()
            content = tar.extractfile(one).read() if kind == 'file' else b''
            told.append(' '.join([kind, plain(one.name), link, '%o' % (one.mode & 0o7777), str(one.uid), str(one.gid),
                                  hashlib.sha256(content).hexdigest()]))
    return told
all = {}
for name in os.listdir(sys.argv[1]):
    try: all[name] = see(os.path.join(sys.argv[1], name))
    except Exception as error: all[name] = [repr(error)]
json.dump(all, sys.stdout)
";

/// Archives that are changed: of each format, with all that headers hold.
fn sound() -> Vec<Vec<u8>> {
    let mut own = Tar::default();
    own.dir("a/").file("a/file", &[7; 1500]).symlink("a/link", "file").hard_link("again", "a/file");
    own.pax(&[("path", b"named/by/pax"), ("size", b"12"), ("uid", b"77")])
        .file("x", b"twelve bytes")
        .file("last", b"x");
    let mut all = vec![own.end()];
    for format in ["v7", "gnu", "ustar", "posix"] {
        let dir = directory();
        grow(dir.path(), &mut Draw(7), format);
        let made = Command::new("tar").args(["--create", "--format", format, "-C"]).arg(dir.path()).arg(".").output();
        all.push(made.expect("run tar").stdout);
    }
    all
}

#[test]
fn what_is_taken_of_changed_headers_is_what_other_readers_see() {
    needs!(Root, Userns, Python3, Program("tar"));
    let place = Place::new("[pool.web]\ncommand = ['x']\n");
    let dir = directory();
    let sound = sound();
    let mut ours = BTreeMap::new();
    for seed in 0..CHANGED {
        let mut draw = Draw(seed);
        let mut archive = sound[draw.below(sound.len())].clone();
        change(&mut archive, &mut draw);
        if let Some(listed) = listed_by_us(&archive) {
            written(dir.path(), &seed.to_string(), &archive);
            ours.insert(seed.to_string(), listed);
        }
    }
    assert!(ours.len() > 300, "only {} were taken", ours.len());
    let listed = Command::new("python3").args(["-c", LIST]).arg(dir.path()).output().expect("run python");
    let theirs: BTreeMap<String, Vec<String>> = serde_json::from_slice(&listed.stdout).expect("JSON");
    let mut wrong = Vec::new();
    for (name, entries) in &ours {
        let seen = theirs.get(name).expect("each was listed");
        if seen != entries {
            let first = (0..).find(|at| seen.get(*at) != entries.get(*at)).expect("they differ");
            wrong.push(format!("{name}, entry {first}: {:?} instead of {:?}", entries.get(first), seen.get(first)));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), ours.len(), wrong.join("\n"));
    for name in ours.keys().take(UNPACKED) {
        let archive = dir.path().join(name);
        let Some(ours) = unpacked_by_us(&place, &archive, false) else { continue };
        assert_eq!(Some(ours), unpacked_by_gnu(&archive, false), "{name}");
    }
}
