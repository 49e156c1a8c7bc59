//! What is done by hand goes into the audit log as well: a whole line by one append, which a daemon's own appends and
//! rotation beside it do not tear.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags, fchmod, openat};

use super::{Error, step};
use crate::daemon::clock;
use crate::host::own_dir::own_dir;
use crate::protocol::audit::AuditEntry;
use crate::spec::DaemonSpec;

/// The file that the daemon writes too.
const FILE: &str = "audit.log";
/// Its mode, as the daemon's.
const MODE: Mode = Mode::RUSR.union(Mode::WUSR).union(Mode::RGRP);

/// Writes down that whoever runs this program has done something to `resource`.
///
/// # Errors
/// [`Error`]; what was done is done all the same.
pub fn record(spec: &DaemonSpec, event: &str, resource: &str, more: &[(&str, &str)]) -> Result<(), Error> {
    let (uid, pid) = (rustix::process::getuid().as_raw().to_string(), std::process::id().to_string());
    let instance = spec.instance.to_string();
    let known = [("container", &*instance), ("user", &*uid), ("resource", resource), ("pid", &*pid)];
    let fields = known.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let entry = AuditEntry { time: clock::rfc3339(clock::wall()), severity: None, event: event.to_owned(), fields };
    let dir = own_dir(&spec.state_dir.join("logs"), 0o700)?;
    append(&dir, entry.audit_line().as_bytes()).map_err(step("write down in", FILE))
}

fn append(dir: &impl AsFd, line: &[u8]) -> io::Result<()> {
    let flags =
        OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(dir, FILE, flags, MODE)?;
    fchmod(&file, MODE)?;
    let written = rustix::io::retry_on_intr(|| rustix::io::write(&file, line))?;
    // The rest of a torn line would be another entry.
    if written == line.len() { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
}
