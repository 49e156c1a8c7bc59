//! Bystanders: processes next to a daemon that nobody may signal and that nothing may be handed to (I6).
//!
//! A canary has every signal blocked, so that one which is sent stays pending and is seen; SIGKILL and SIGSTOP are seen by
//! what they do. It reads from a pipe of ours, so that it ends with whoever started it.

#![expect(clippy::disallowed_types, reason = "a canary is a process of the test, not a supervised one")]

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::SigSet;

use super::proc;
use super::{Findings, Invariant, cgroups};

/// One of them; it ends with its value.
#[derive(Debug)]
pub(crate) struct Canary {
    child: Child,
    started: u64,
    descriptors: usize,
    cgroup: Option<PathBuf>,
}

impl Canary {
    /// Starts one, in a cgroup of this name beside those of the instances, if there is to be one.
    pub(crate) fn start(cgroup: Option<&str>) -> Self {
        // A child inherits the mask of the thread that starts it.
        let before = SigSet::all().thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK).expect("block signals");
        let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        before.thread_set_mask().expect("unblock signals");
        let child = child.expect("run cat");
        let cgroup = cgroup.and_then(|name| Some(cgroups::mount()?.join(name)));
        let cgroup = cgroup.filter(|dir| fs::create_dir_all(dir).is_ok());
        if let Some(dir) = &cgroup {
            fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap_or_default();
        }
        let started = proc::one(child.id()).expect("it was started").started;
        let mut canary = Self { child, started, descriptors: 0, cgroup };
        // Its exec has succeeded; what its loader opened is closed once it sleeps.
        while proc::one(canary.pid()).is_some_and(|one| one.state != 'S') {
            std::thread::yield_now();
        }
        canary.descriptors = canary.open();
        canary
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn open(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    /// I6, as far as this one has seen.
    pub(crate) fn untouched(&self, found: &mut Findings) {
        let pid = self.pid();
        let mut touched = |what: String| found.add(Invariant::Bystanders, format!("canary {pid} {what}"));
        let Some(process) = proc::one(pid).filter(|one| one.started == self.started && !one.is_zombie()) else {
            return touched("was killed".to_owned());
        };
        if !['S', 'R'].contains(&process.state) {
            touched(format!("is in state {}", process.state));
        }
        for pending in ["SigPnd", "ShdPnd"] {
            let signals = proc::status(pid, pending).unwrap_or_default();
            if signals.chars().any(|digit| digit != '0') {
                touched(format!("was signalled: {pending} {signals}"));
            }
        }
        if self.open() != self.descriptors {
            touched(format!("has {} descriptors and not {}", self.open(), self.descriptors));
        }
        let own = self.cgroup.as_ref().and_then(|dir| dir.file_name()).map(|name| name.to_string_lossy().into_owned());
        if own.is_some_and(|own| !process.cgroup.ends_with(&own)) {
            touched(format!("is in cgroup {}", process.cgroup));
        }
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
        if let Some(dir) = &self.cgroup {
            fs::remove_dir(dir).unwrap_or_default();
        }
    }
}
