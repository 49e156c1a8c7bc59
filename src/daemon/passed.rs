//! What a service manager hands over when it starts the daemon, by sd_listen_fds(3): the listener of the control socket, from
//! `halsup.socket`, and what an earlier daemon has left in the manager's store of descriptors (`fd_store`).
//!
//! To be taken before anything is opened. Nothing is believed: what is not what its name says is closed.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::fd_store::generation_of;
use crate::host::spawn::take_inherited;
use crate::spec::Generation;

/// The name of the control socket's listener: `FileDescriptorName=` of its unit.
const CONTROL: &str = "control";
/// More than a manager passes.
const FDS_MAX: usize = 65_536;

/// What was handed over.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// What is called the control socket's listener.
    pub(super) control: Option<OwnedFd>,
    /// Whether there was one, even if it was taken by the program that this process was before.
    pub(super) has_control: bool,
    /// Pidfds of workers' first processes.
    pub(super) pidfds: BTreeMap<Generation, OwnedFd>,
    /// Names of what was closed; said once there is a log.
    pub(super) strangers: Vec<String>,
}

impl Passed {
    /// Takes what `LISTEN_FDS`, `LISTEN_PID` and `LISTEN_FDNAMES` tell of, and closes all else that was inherited.
    ///
    /// # Errors
    /// EMFILE.
    pub(super) fn take(env: &BTreeMap<String, String>, pid: u32) -> io::Result<Self> {
        let fds = take_inherited(count(env, pid))?;
        let names: Vec<&str> = env.get("LISTEN_FDNAMES").map(|names| names.split(':').collect()).unwrap_or_default();
        let mut passed = Self::default();
        for (number, fd) in fds {
            let name = usize::try_from(number).ok().and_then(|number| names.get(number.checked_sub(3)?)).copied();
            passed.sort_in(name.unwrap_or_default(), fd);
        }
        Ok(passed)
    }

    /// What was passed to this process when it was another program, which has taken it.
    pub(super) fn before(env: &BTreeMap<String, String>, pid: u32) -> Self {
        let names = env.get("LISTEN_FDNAMES").filter(|_| count(env, pid) > 0);
        let has_control = names.is_some_and(|names| names.split(':').any(|name| name == CONTROL));
        Self { has_control, ..Self::default() }
    }

    fn sort_in(&mut self, name: &str, fd: OwnedFd) {
        match generation_of(name) {
            Some(generation) if is_pidfd(&fd) => {
                self.pidfds.insert(generation, fd);
            }
            None if name == CONTROL && self.control.is_none() => (self.control, self.has_control) = (Some(fd), true),
            Some(_) | None => self.strangers.push(name.to_owned()),
        }
    }
}

/// How many descriptors were passed to this process.
fn count(env: &BTreeMap<String, String>, pid: u32) -> usize {
    let ours = env.get("LISTEN_PID").is_some_and(|named| named.parse() == Ok(pid));
    let count = env.get("LISTEN_FDS").filter(|_| ours).and_then(|text| text.parse().ok());
    count.unwrap_or(0).min(FDS_MAX)
}

/// Whether waiting by it is refused only because it is nobody's child of ours.
fn is_pidfd(fd: &OwnedFd) -> bool {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(waitid(WaitId::PidFd(std::os::fd::AsFd::as_fd(fd)), look), Ok(_) | Err(Errno::CHILD))
}

#[cfg(test)]
mod tests {
    use rustix::process::{PidfdFlags, getpid, pidfd_open};

    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn descriptors_are_taken_only_by_whom_they_were_passed_to() {
        let of = |pairs: &[(&str, &str)]| count(&environment(pairs), 7);
        assert_eq!(of(&[("LISTEN_FDS", "2"), ("LISTEN_PID", "7")]), 2);
        assert_eq!(of(&[("LISTEN_FDS", "2"), ("LISTEN_PID", "8")]), 0);
        assert_eq!(of(&[("LISTEN_FDS", "2")]), 0);
        assert_eq!(of(&[("LISTEN_PID", "7")]), 0);
        assert_eq!(of(&[("LISTEN_FDS", "-1"), ("LISTEN_PID", "7")]), 0);
        assert_eq!(of(&[("LISTEN_FDS", "99999999"), ("LISTEN_PID", "7")]), FDS_MAX);
    }

    #[test]
    fn a_program_that_follows_another_knows_what_that_was_passed() {
        let of = |pairs: &[(&str, &str)]| Passed::before(&environment(pairs), 7).has_control;
        let passed = [("LISTEN_FDS", "2"), ("LISTEN_PID", "7"), ("LISTEN_FDNAMES", "w1:control")];
        assert!(of(&passed));
        assert!(!of(&passed[..2]) && !of(&passed[1..]), "not all of it");
        assert!(!of(&[("LISTEN_FDS", "1"), ("LISTEN_PID", "7"), ("LISTEN_FDNAMES", "w1")]));
    }

    #[test]
    fn what_is_not_what_its_name_says_is_closed() {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let own = || pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        let mut passed = Passed::default();
        for (name, fd) in [("w7", own()), ("w8", null()), ("w-9", own()), ("", null()), ("control", null())] {
            passed.sort_in(name, fd);
        }
        passed.sort_in("control", null());
        assert_eq!(passed.pidfds.keys().collect::<Vec<_>>(), [&Generation(7)]);
        assert_eq!(passed.strangers, ["w8", "w-9", "", "control"]);
        assert!(passed.control.is_some(), "what it is, is looked at where it is used");
    }
}
