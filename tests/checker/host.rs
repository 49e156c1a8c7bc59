//! The host as it was before a daemon came: files, devices, mounts, others' cgroups (I9).

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{Findings, Invariant};

/// What of the host no daemon and no worker may change.
const WATCHED: [&str; 10] = [
    "/",
    "/etc/passwd",
    "/etc/group",
    "/etc/hosts",
    "/dev/null",
    "/dev/zero",
    "/dev/ptmx",
    "/tmp",
    "/run",
    "/proc/sys/kernel/core_pattern",
];

/// A file as it is: what it is, whose, with what in it. The time of the last access is left out, for looking changes it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    path: PathBuf,
    identity: Option<(u64, u64, u32, u32, u32, u64)>,
    content: Option<Vec<u8>>,
}

fn look(path: &Path) -> Look {
    let meta = fs::symlink_metadata(path).ok();
    let is_small = meta.as_ref().is_some_and(|meta| meta.is_file() && meta.len() <= 64 << 10);
    // The kernel numbers what is in /proc anew when it has forgotten it.
    let number = |meta: &fs::Metadata| if path.starts_with("/proc") { 0 } else { meta.ino() };
    let identity = meta.map(|m| (m.dev(), number(&m), m.mode(), m.uid(), m.gid(), m.rdev()));
    let content = if is_small { fs::read(path).ok() } else { None };
    Look { path: path.to_owned(), identity, content }
}

/// The host at one moment.
#[derive(Debug)]
pub(crate) struct Host {
    looks: Vec<Look>,
    pub(crate) mounts: Vec<String>,
}

/// The table of mounts without those of tests, which have directories of their own.
fn mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("read /proc/self/mountinfo");
    table.lines().filter(|line| !line.contains("/halsup-test-")).map(str::to_owned).collect()
}

impl Host {
    /// Looks at the host, and at canary files of the test's own.
    pub(crate) fn look(canaries: &[PathBuf]) -> Self {
        let watched = WATCHED.iter().map(PathBuf::from).chain(canaries.iter().cloned());
        Self { looks: watched.map(|path| look(&path)).collect(), mounts: mounts() }
    }

    /// I9: whether it is as it was.
    pub(crate) fn untouched(&self, found: &mut Findings) {
        for before in &self.looks {
            let now = look(&before.path);
            if now != *before {
                found.add(Invariant::Host, format!("{} is no longer what it was", before.path.display()));
            }
        }
        let now = mounts();
        for line in now.iter().filter(|line| !self.mounts.contains(line)) {
            found.add(Invariant::Host, format!("new mount {line}"));
        }
        for line in self.mounts.iter().filter(|line| !now.contains(line)) {
            found.add(Invariant::Host, format!("lost mount {line}"));
        }
    }
}

/// Makes canary files in `dir`: a file, a directory with a file, a link.
pub(crate) fn canaries(dir: &Path) -> Vec<PathBuf> {
    let (file, inner, link) = (dir.join("file"), dir.join("inner"), dir.join("link"));
    fs::create_dir_all(&inner).expect("make a canary directory");
    fs::write(&file, "a host's file\n").expect("write a canary");
    fs::write(inner.join("file"), "another\n").expect("write a canary");
    std::os::unix::fs::symlink("/etc/hosts", &link).expect("link a canary");
    vec![dir.to_owned(), file, inner.join("file"), inner, link]
}
