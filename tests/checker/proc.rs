//! The processes of this machine, as `/proc` shows them.

use std::fs;
use std::path::PathBuf;

/// One process.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    /// One letter, as in proc_pid_stat(5).
    pub(crate) state: char,
    /// Its cgroup on version 2, as the kernel names it.
    pub(crate) cgroup: String,
    /// When it was started, in ticks; with the pid it names the process for good.
    pub(crate) started: u64,
}

impl Process {
    /// Whether it has ended and waits to be reaped.
    pub(crate) fn is_zombie(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }

    /// Its arguments, separated by blanks.
    pub(crate) fn command_line(&self) -> String {
        let text = read(&path(self.pid, "cmdline"));
        String::from_utf8_lossy(&text).replace('\0', " ").trim_end().to_owned()
    }

    /// Its environment as the kernel keeps it.
    pub(crate) fn environment(&self) -> Vec<u8> {
        read(&path(self.pid, "environ"))
    }
}

/// Every process. One that ends meanwhile is left out.
pub(crate) fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("list /proc");
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(one).collect()
}

/// One process, if it is there.
pub(crate) fn one(pid: u32) -> Option<Process> {
    let stat = String::from_utf8_lossy(&read(&path(pid, "stat"))).into_owned();
    // The name is in parentheses and may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let cgroup = String::from_utf8_lossy(&read(&path(pid, "cgroup"))).into_owned();
    let cgroup = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?.to_owned();
    Some(Process {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        state: fields.first()?.chars().next()?,
        cgroup,
        started: fields.get(19)?.parse().ok()?,
    })
}

/// A line of `/proc/PID/status`, such as `ShdPnd`.
pub(crate) fn status(pid: u32, name: &str) -> Option<String> {
    let text = String::from_utf8_lossy(&read(&path(pid, "status"))).into_owned();
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()))
}

fn path(pid: u32, file: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{file}"))
}

/// A file of `/proc`; empty where the process is gone meanwhile.
fn read(path: &std::path::Path) -> Vec<u8> {
    fs::read(path).unwrap_or_default()
}
