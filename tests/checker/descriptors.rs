//! The daemon's open descriptors, and whose they are (I3).
//!
//! Each descriptor that names its object has to have an owner: a pidfd a live worker's process or the daemon itself, a cgroup a live worker or a
//! pool, a log file a live worker. Those that do not are counted, as measured on a daemon at rest:
//!
//! ```text
//! sockets       <= 4 + listeners + clients + 3 for each live worker
//!                  (signals 2, the control socket counts as a listener, the service manager's 1, a probe 1;
//!                  a worker's init, notify, channel)
//! pipes         <= 1 + 2 for each live worker (its output; the log)
//! /dev/null     <= 352, which keep the low numbers occupied
//! all others    <= 30 of the daemon itself + 4 for each pool + listeners + clients + 12 for each live worker
//! ```
//!
//! At rest a worker has 8 (cgroup, 2 pipes, 2 pidfds, its init's socket, its log and the log's directory), one more each
//! for `notify` and `channel`; the tolerance is 2 for each worker, for what is open while it is being born, probed or ended.

use std::fs;
use std::path::{Path, PathBuf};

use super::told::{Told, Worker};
use super::{Findings, Instance, Invariant};

const LOW_NUMBERS: usize = 352;
const OF_DAEMON: usize = 42;
const OF_POOL: usize = 4;
const OF_WORKER: usize = 12;

/// One open descriptor.
#[derive(Debug)]
struct Open {
    number: String,
    /// What `/proc/PID/fd` says that it is.
    target: String,
}

fn open_of(pid: u32) -> Vec<Open> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let open = entries.filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
        Some(Open { number: entry.file_name().to_string_lossy().into_owned(), target })
    });
    open.collect()
}

/// The process that a pidfd names: -1 once it was reaped.
fn pid_of_pidfd(pid: u32, number: &str) -> Option<i64> {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
    info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
}

/// How many sockets of a process listen, and how many are connections to the control socket.
#[derive(Debug, Default)]
struct Sockets {
    listeners: usize,
    clients: usize,
}

fn sockets(open: &[Open], control: &Path) -> Sockets {
    let inodes: Vec<&str> =
        open.iter().filter_map(|one| one.target.strip_prefix("socket:[")?.strip_suffix(']')).collect();
    let mut count = Sockets::default();
    let unix = String::from_utf8_lossy(&fs::read("/proc/net/unix").unwrap_or_default()).into_owned();
    let dir = control.parent().unwrap_or(control).to_string_lossy();
    for fields in unix.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()) {
        let &[_, _, _, flags, _, state, inode, ..] = fields.as_slice() else { continue };
        if !inodes.contains(&inode) {
            continue;
        }
        // __SO_ACCEPTCON, SS_CONNECTED; what was accepted bears the name of where it was accepted.
        if flags == "00010000" {
            count.listeners += 1;
        } else if state == "03"
            && fields.get(7).is_some_and(|path| {
                ["control", "gateway/inside/control"].iter().any(|name| path.starts_with(&format!("{dir}/{name}")))
            })
        {
            count.clients += 1;
        }
    }
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        for fields in text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()) {
            let listens = fields.get(3).is_some_and(|state| *state == "0A");
            count.listeners += usize::from(listens && fields.get(9).is_some_and(|inode| inodes.contains(inode)));
        }
    }
    count
}

/// I3 of the daemon that tells this.
pub(crate) fn accounted(instance: &Instance, told: &Told, found: &mut Findings) {
    accounted_of(told.pid, instance, told, found);
}

/// The same of any process, as if it were the daemon.
pub(crate) fn accounted_of(pid: u32, instance: &Instance, told: &Told, found: &mut Findings) {
    let open = open_of(pid);
    let live: Vec<&Worker> = told.workers.iter().filter(|worker| worker.is_live()).collect();
    for one in &open {
        if let Some(what) = unowned(pid, one, instance, &live, told) {
            found.add(Invariant::Descriptors, format!("descriptor {} of the daemon: {what}", one.number));
        }
    }
    let Sockets { listeners, clients } = sockets(&open, &instance.control());
    let kind = |prefix: &str| open.iter().filter(|one| one.target.starts_with(prefix)).count();
    let mut limit = |what: &str, count: usize, most: usize| {
        if count > most {
            found.add(
                Invariant::Descriptors,
                format!("the daemon has {count} {what}, at most {most} are accounted for"),
            );
        }
    };
    limit("sockets", kind("socket:"), 4 + listeners + clients + 3 * live.len());
    limit("pipes", kind("pipe:"), 1 + 2 * live.len());
    let nulls = kind("/dev/null");
    limit("descriptors of /dev/null", nulls, LOW_NUMBERS);
    let all = OF_DAEMON + OF_POOL * told.pools().len() + listeners + clients + OF_WORKER * live.len();
    limit("other descriptors", open.len() - nulls, all);
}

/// What is wrong with a descriptor whose object has no owner.
fn unowned(pid: u32, one: &Open, instance: &Instance, live: &[&Worker], told: &Told) -> Option<String> {
    if one.target.contains("pidfd]") {
        let named = pid_of_pidfd(pid, &one.number)?;
        let owned =
            live.iter().flat_map(|worker| [worker.pid, worker.init_pid]).flatten().any(|pid| i64::from(pid) == named)
                || i64::from(pid) == named;
        // The program of a worker that is not ready may not be told yet; its process is.
        let unborn = named > 0 && live.iter().any(|worker| worker.pid.is_none());
        return (!owned && !unborn).then(|| format!("a pidfd of process {named}, which is no worker's"));
    }
    if let Some((_, rest)) = one.target.split_once(&format!("/{}/pool.", instance.name)) {
        let gone = rest.ends_with(" (deleted)");
        let mut parts = rest.trim_end_matches(" (deleted)").split('/');
        let (pool, leaf) = (parts.next().unwrap_or_default(), parts.next());
        let owned = match leaf {
            Some(leaf) => told.owner(pool, leaf).is_some(),
            None => told.pools().contains(&pool),
        };
        return (gone || !owned).then(|| format!("cgroup {rest}, which is no worker's and no pool's"));
    }
    let path = PathBuf::from(&one.target);
    let file = path.strip_prefix(instance.state_dir.join("logs/workers")).ok()?.to_string_lossy().into_owned();
    let name = file.split(".log").next().unwrap_or_default();
    let owned = name.is_empty() || live.iter().any(|worker| worker.name == name);
    (!owned || file.ends_with(" (deleted)")).then(|| format!("log {file}, whose worker does not run"))
}
