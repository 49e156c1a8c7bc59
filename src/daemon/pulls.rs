//! Images that pools name and that are not there when the daemon starts: pulled, as `halsup image pull` pulls, by that very
//! command, which is run beside the daemon and imports over the control socket like any caller.
//!
//! Unless they are to come later, the daemon says that it is ready when the last has come or cannot. Called by `launch` (the
//! start) and `event_loop` (ends of pulls).

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd as _;
use std::time::Duration;

use mio::{Interest, Token};

use super::birth::chain;
use super::clock;
use super::log::best_effort;
use super::sources::Source;
use super::state::Daemon;
use super::timers::Timer;
use crate::host::helper::Helper;
use crate::spec::{ImageName, ImagePull, Root};

/// How long one pull may take.
const PATIENCE: Duration = Duration::from_secs(1_800);
/// How many run at once; the others wait for them.
const AT_ONCE: usize = 2;

/// What skopeo is told by its environment.
const PASSED: [&str; 12] = [
    "PATH",
    "HOME",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "REGISTRY_AUTH_FILE",
    "SSL_CERT_FILE",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
];

/// The pulls of a start.
#[derive(Debug, Default)]
pub(super) struct Pulls {
    running: BTreeMap<u64, Pull>,
    waiting: BTreeSet<ImageName>,
    last: u64,
    /// Whether the daemon is not ready before the last has ended.
    pub(super) hold_back: bool,
}

#[derive(Debug)]
struct Pull {
    name: ImageName,
    helper: Helper,
    token: Token,
}

impl Pulls {
    /// Whether nothing is under way.
    fn is_over(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }
}

impl Daemon {
    /// Begins to pull what is missing, if it is to be pulled. Whether the daemon is ready without it.
    pub(super) fn begin_pulls(&mut self) -> bool {
        if self.spec.image_pull == ImagePull::Never {
            return true;
        }
        let lacking = self.pools.values().filter(|pool| pool.prepared.lacks.is_some());
        let named = lacking.filter_map(|pool| match &pool.spec.root {
            Root::Image(name) => Some(name.clone()),
            Root::Host | Root::Empty | Root::Directory(_) => None,
        });
        self.pulls.waiting = named.collect();
        if self.pulls.is_over() {
            return true;
        }
        // Workers of the program before this one are there already, whatever else is missing.
        self.pulls.hold_back = self.spec.image_pull == ImagePull::First && self.handover.is_none();
        self.begin_waiting_pulls();
        let ready = !self.pulls.hold_back || self.pulls.is_over();
        self.pulls.hold_back &= !ready;
        ready
    }

    fn begin_waiting_pulls(&mut self) {
        while self.pulls.running.len() < AT_ONCE {
            let Some(name) = self.pulls.waiting.pop_first() else { return };
            if let Err(error) = self.begin_pull(&name) {
                tracing::error!(target: "pool", "pull image {name}: {error}");
            }
        }
    }

    fn begin_pull(&mut self, name: &ImageName) -> std::io::Result<()> {
        let socket = self.spec.runtime_dir.join(super::control::SOCKET_NAME).display().to_string();
        let arguments = ["image", "pull", name.as_str(), "--socket", &socket];
        // What else the daemon was given, secrets of pools perhaps, is none of skopeo's business.
        let variables: Vec<(String, String)> =
            super::launch::environment().into_iter().filter(|(name, _)| PASSED.contains(&name.as_str())).collect();
        let helper = Helper::run_with_only(std::path::Path::new("/proc/self/exe"), &arguments, &variables)?;
        self.pulls.last = self.pulls.last.wrapping_add(1);
        let number = self.pulls.last;
        match self.sources.add(helper.pidfd().as_fd(), Source::PullEnd(number), Interest::READABLE) {
            Ok(token) => {
                tracing::info!(target: "pool", "pulling image {name}");
                self.timers.set(clock::after(self.now, PATIENCE), Timer::Pull(number));
                self.pulls.running.insert(number, Pull { name: name.clone(), helper, token });
                Ok(())
            }
            Err(error) => {
                best_effort(helper.kill(), "it has ended by itself");
                best_effort(crate::host::spawn::wait(helper.pidfd()), "it is this daemon's child");
                Err(error)
            }
        }
    }

    /// A pull has ended.
    pub(super) fn on_pull_end(&mut self, number: u64) {
        let Some(pull) = self.pulls.running.get(&number) else { return };
        let ended = match pull.helper.ended() {
            Ok(None) => return,
            Ok(Some(ended)) => Some(ended),
            Err(error) => {
                tracing::warn!(target: "pool", "wait for the pull of {}: {}", pull.name, chain(&error));
                None
            }
        };
        let Some(Pull { name, helper, token }) = self.pulls.running.remove(&number) else { return };
        self.sources.remove(token, helper.pidfd().as_fd());
        match ended {
            Some(ended) if ended.code == Some(0) => tracing::info!(target: "pool", "image {name} was pulled"),
            ended => {
                let said = ended.map(|ended| ended.stderr).unwrap_or_default();
                let why = said.lines().last().unwrap_or("it was ended").trim_start_matches("halsup: ").to_owned();
                tracing::error!(target: "pool", "{}", crate::protocol::escape::text(&why));
            }
        }
        self.begin_waiting_pulls();
        if self.pulls.is_over() && std::mem::take(&mut self.pulls.hold_back) {
            self.say_ready();
        }
    }

    /// A pull has had its time.
    pub(super) fn on_pull_timeout(&mut self, number: u64) {
        if let Some(pull) = self.pulls.running.get(&number) {
            tracing::error!(target: "pool", "pull image {}: not done within {} s", pull.name, PATIENCE.as_secs());
            best_effort(pull.helper.kill(), "it has just ended");
        }
    }

    /// Ends all pulls at once: this process ends, or becomes another program.
    pub(super) fn end_pulls(&mut self) {
        self.pulls.waiting.clear();
        for (_, pull) in std::mem::take(&mut self.pulls.running) {
            best_effort(pull.helper.kill(), "it may have ended by itself");
            best_effort(crate::host::spawn::wait(pull.helper.pidfd()), "it is this daemon's child");
            self.sources.remove(pull.token, pull.helper.pidfd().as_fd());
        }
    }

    /// The pull with this pid, for whoever reaps everything.
    pub(super) fn pull_of(&self, pid: i32) -> Option<u64> {
        let is = |pull: &Pull| {
            crate::host::spawn::pid_of(pull.helper.pidfd()).is_some_and(|own| i64::from(own) == i64::from(pid))
        };
        self.pulls.running.iter().find(|(_, pull)| is(pull)).map(|(number, _)| *number)
    }
}
