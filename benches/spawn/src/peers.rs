//! The peers, through their command lines: bubblewrap, crun, runc.
//!
//! Each is given the least that it can be given: a root with nothing but the measured program, the host's network, no limits.

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::rc::Rc;

use halsup::sys::raw;
use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use serde_json::json;

use crate::Result;
use crate::place::{Place, now};

/// A peer that is installed.
pub struct Peer {
    pub name: &'static str,
    bundle: PathBuf,
    count: u64,
    view: Rc<View>,
}

/// A mount namespace in which `/sys/fs/cgroup` is the version 2 hierarchy alone: crun refuses a host with both versions. The
/// bench steps in for the moment of the start, which takes 3 µs; the host's own mounts stay as they are.
pub struct View {
    own: OwnedFd,
    other: OwnedFd,
}

const CLONE_NEWNS: usize = 0x2_0000;

impl View {
    pub fn make() -> Result<Self> {
        let current = || open("/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let own = current()?;
        raw::unshare(CLONE_NEWNS).map_err(os)?;
        let other = (|| {
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            unmount("/sys/fs/cgroup", UnmountFlags::DETACH)?;
            mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MountFlags::empty(), None)?;
            current()
        })();
        raw::setns(raw::fd_arg(own.as_raw_fd()), CLONE_NEWNS).map_err(os)?;
        Ok(Self { own, other: other? })
    }

    fn enter(&self) -> Result<()> {
        raw::setns(raw::fd_arg(self.other.as_raw_fd()), CLONE_NEWNS).map_err(os)?;
        Ok(())
    }

    fn leave(&self) -> Result<()> {
        raw::setns(raw::fd_arg(self.own.as_raw_fd()), CLONE_NEWNS).map_err(os)?;
        Ok(())
    }
}

fn os(errno: raw::Errno) -> std::io::Error {
    std::io::Error::from_raw_os_error(errno.0)
}

impl Peer {
    /// `None` if it is not installed.
    pub fn find(name: &'static str, place: &Place, view: &Rc<View>) -> Result<Option<Self>> {
        let there = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !there.is_ok_and(|status| status.success()) {
            return Ok(None);
        }
        let bundle = place.path(&format!("bundle-{name}"));
        let rootfs = bundle.join("rootfs");
        for dir in ["", "proc", "dev", "bench"] {
            fs::create_dir_all(rootfs.join(dir))?;
        }
        fs::write(bundle.join("config.json"), bundle_config(place).to_string())?;
        Ok(Some(Self { name, bundle, count: 0, view: Rc::clone(view) }))
    }

    fn command(&mut self, place: &Place) -> Command {
        let mut command = Command::new(self.name);
        if self.name == "bwrap" {
            command.arg("--unshare-all").arg("--bind").arg(place.shared()).args(["/bench", "--proc", "/proc"]);
            command.args(["--dev", "/dev", "/bench/first", "/bench/fifo"]);
        } else {
            self.count += 1;
            let id = format!("halsup-bench-{}-{}", std::process::id(), self.count);
            command.args(["run", "--bundle"]).arg(&self.bundle).arg(id);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// One spawn: nanoseconds from the start of its command line to the program's first instruction.
    pub fn spawn(&mut self, place: &Place) -> Result<u64> {
        let mut command = self.command(place);
        let asked = now();
        self.view.enter()?;
        let child = command.spawn();
        self.view.leave()?;
        let child = child?;
        let ended = child.wait_with_output()?;
        if !ended.status.success() {
            return Err(format!("{}: {}", self.name, String::from_utf8_lossy(&ended.stderr)).into());
        }
        Ok(place.stamp()? - asked)
    }
}

fn bundle_config(place: &Place) -> serde_json::Value {
    let namespaces = ["pid", "ipc", "uts", "mount", "cgroup"].map(|kind| json!({ "type": kind }));
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["/bench/first", "/bench/fifo"],
            "env": ["PATH=/bench"],
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "bench",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"] },
            { "destination": "/bench", "type": "bind", "source": place.shared(), "options": ["bind"] },
        ],
        "linux": { "namespaces": namespaces },
    })
}
