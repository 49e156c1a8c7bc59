//! Sweeps away what a daemon has left in the cgroup hierarchy, so that one failed test does not spoil the next.
//!
//! What is left is found by `checker`; called when a `Place` is dropped in which something was.

#![expect(clippy::disallowed_methods, reason = "deadlines of tests run on the real clock")]

use std::fs;
use std::io::{Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Instant;

use rustix::event::PollFlags;

use crate::checker::cgroups;
use crate::fixture::{LIFE_DEADLINE, complain, ready_for};

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
