//! The independent checker: whether what HARDENING section 3 calls the global invariants holds, judged from outside.
//!
//! Reads `/proc`, `mountinfo`, the cgroup hierarchy, the daemon's directories, and what the daemon answers on its control
//! socket; shares no code with `src`. [`running`] is for a daemon that is up, [`stopped`] for one that has ended and may have
//! left nothing. A violation is reported only if it stands: what changes while it is looked at is looked at again, for as long
//! as the invariants grant (five seconds). Used by the fixture of `tests/it` after every test and by `tests/kill_at` after
//! every kill.

#![allow(dead_code, reason = "each of the test programs that include this module uses a part of it")]
#![expect(clippy::disallowed_methods, reason = "deadlines of tests run on the real clock")]

pub(crate) mod canary;
pub(crate) mod cgroups;
pub(crate) mod descriptors;
pub(crate) mod files;
pub(crate) mod host;
pub(crate) mod line;
pub(crate) mod proc;
pub(crate) mod secrets;
pub(crate) mod told;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use told::Told;

/// How long a daemon may take until everything has its owner again.
pub(crate) const SETTLE: Duration = Duration::from_secs(5);
/// How soon it is looked again where no event says when.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The global invariants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Invariant {
    /// No process of the instance without a live owner.
    Processes,
    /// No cgroup, mount, directory, file or socket without an owner.
    Objects,
    /// The daemon has the descriptors that its pools, workers and clients account for.
    Descriptors,
    /// What the daemon tells is what is.
    Truth,
    /// Every accepted call has exactly one answer.
    Answers,
    /// No signal and no file went to another process.
    Bystanders,
    /// A ping was answered in time.
    Latency,
    /// No secret is seen outside its scope.
    Secrets,
    /// The host's files and mounts are as they were.
    Host,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Processes => "I1",
            Self::Objects => "I2",
            Self::Descriptors => "I3",
            Self::Truth => "I4",
            Self::Answers => "I5",
            Self::Bystanders => "I6",
            Self::Latency => "I7",
            Self::Secrets => "I8",
            Self::Host => "I9",
        })
    }
}

/// One invariant that does not hold, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Violation {
    pub(crate) invariant: Invariant,
    pub(crate) what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

/// What was found, one line each.
pub(crate) fn lines(found: &[Violation]) -> String {
    found.iter().map(|one| format!("{one}\n")).collect()
}

/// Where violations are written down.
#[derive(Debug, Default)]
pub(crate) struct Findings(pub(crate) Vec<Violation>);

impl Findings {
    pub(crate) fn add(&mut self, invariant: Invariant, what: impl Into<String>) {
        self.0.push(Violation { invariant, what: what.into() });
    }
}

/// An instance of halsup as its operator knows it.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    /// Its name, which is also that of its cgroup.
    pub(crate) name: String,
    /// The directory in which everything of it lies.
    pub(crate) dir: PathBuf,
    pub(crate) runtime_dir: PathBuf,
    pub(crate) state_dir: PathBuf,
    /// What lay in these directories before a daemon came, and is not its own.
    pub(crate) known: Vec<PathBuf>,
    /// The secrets that it was given.
    pub(crate) secrets: secrets::Secrets,
}

impl Instance {
    pub(crate) fn control(&self) -> PathBuf {
        self.runtime_dir.join("control.sock")
    }
}

/// What is wrong with a running instance and stays wrong for [`SETTLE`].
pub(crate) fn running(instance: &Instance) -> Vec<Violation> {
    standing(SETTLE, || look_at_running(instance))
}

/// What is wrong with it at this moment.
pub(crate) fn look_at_running(instance: &Instance) -> Vec<Violation> {
    let mut found = Findings::default();
    let Some(told) = Told::ask(&instance.control(), &mut found) else { return found.0 };
    let processes = proc::all();
    let base = cgroups::base(&instance.name);
    cgroups::owned(instance, base.as_deref(), &told, &processes, &mut found);
    files::owned(instance, &told, &mut found);
    descriptors::accounted(instance, &told, &mut found);
    told::true_to_life(&told, base.as_deref(), &processes, &mut found);
    secrets::kept(instance, base.as_deref(), &told, &processes, &mut found);
    found.0
}

/// What a stopped instance has left.
pub(crate) fn stopped(instance: &Instance) -> Vec<Violation> {
    let mut found = Findings::default();
    cgroups::none(instance, &proc::all(), &mut found);
    files::none(instance, &mut found);
    secrets::kept_in_files(instance, &mut found);
    found.0
}

/// The violations that `look` finds every time until there are none or the time is over.
pub(crate) fn standing(time: Duration, look: impl Fn() -> Vec<Violation>) -> Vec<Violation> {
    let deadline = Instant::now() + time;
    let mut standing = look();
    while !standing.is_empty() && Instant::now() < deadline {
        pause(LOOK_AGAIN);
        let again = look();
        standing.retain(|one| again.contains(one));
    }
    standing
}

/// Waits for nothing but time, for what no event tells.
pub(crate) fn pause(time: Duration) {
    let timeout = rustix::event::Timespec::try_from(time).expect("a short time");
    rustix::event::poll(&mut [], Some(&timeout)).unwrap_or_default();
}

/// A path relative to `top`, as text.
fn below<'p>(path: &'p Path, top: &Path) -> std::borrow::Cow<'p, str> {
    path.strip_prefix(top).unwrap_or(path).to_string_lossy()
}
