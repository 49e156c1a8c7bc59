//! Sweeps away what a daemon has left in the cgroup hierarchy, so that one failed test does not spoil the next; and lists
//! what is left by a daemon that is not the fixture's.
//!
//! What is left is found by `checker`; called when a `Place` is dropped in which something was.

#![expect(clippy::disallowed_methods, reason = "deadlines of tests run on the real clock")]

use std::fs;
use std::io::{Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::event::PollFlags;

use crate::checker::cgroups;
use crate::fixture::{LIFE_DEADLINE, complain, ready_for};

/// What is in the directory; nothing where it does not exist, for other tests' cgroups come and go.
pub(crate) fn entries(dir: &Path) -> Vec<PathBuf> {
    if dir.is_symlink() {
        // What lies behind a link that a test has planted is not the daemon's.
        return Vec::new();
    }
    fs::read_dir(dir).into_iter().flatten().map_while(Result::ok).map(|entry| entry.path()).collect()
}

/// The first directory called `name` at or below `top`.
pub(crate) fn find_dir(top: &Path, name: &str) -> Option<PathBuf> {
    entries(top).into_iter().filter(|path| path.is_dir() && !path.is_symlink()).find_map(|path| {
        if path.file_name().is_some_and(|own| own == name) { Some(path) } else { find_dir(&path, name) }
    })
}

/// Lists the processes and cgroups of `base`, and removes the daemon's own leaf, which it cannot remove while it is in it.
pub(crate) fn list_cgroups(base: &Path, left: &mut Vec<String>) {
    let processes = fs::read_to_string(base.join("cgroup.procs")).unwrap_or_default();
    left.extend(processes.lines().map(|pid| format!("process {pid} {:?} in {}", command_line(pid), base.display())));
    for child in entries(base).into_iter().filter(|path| path.is_dir()) {
        if child.file_name().is_none_or(|name| name != "supervisor") {
            left.push(format!("cgroup {}", child.display()));
        }
        list_cgroups(&child, left);
    }
    if left.is_empty()
        && let Err(error) = fs::remove_dir(base)
    {
        left.push(format!("cgroup {}: {error}", base.display()));
    }
}

fn command_line(pid: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ")
}

/// Kills what runs in `base`, waits until it is empty, and removes it.
pub(crate) fn sweep_cgroups(base: &Path) {
    fs::write(base.join("cgroup.kill"), "1").expect("write cgroup.kill");
    let deadline = Instant::now() + LIFE_DEADLINE;
    let events = base.join("cgroup.events");
    let mut file = fs::File::open(&events).expect("open cgroup.events");
    loop {
        let mut text = String::new();
        file.rewind().expect("rewind cgroup.events");
        file.read_to_string(&mut text).expect("read cgroup.events");
        if text.contains("populated 0") {
            break;
        }
        if ready_for(PollFlags::PRI, [file.as_fd()], deadline).is_none() {
            complain(&format!("{} cannot be emptied\n", base.display()));
            return;
        }
    }
    cgroups::remove(base).expect("remove an empty cgroup");
}
