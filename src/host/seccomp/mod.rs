//! System call filters for workers: the built-in allow-list, and profiles in Docker's JSON format, as BPF programs.
//!
//! Makes programs and attaches none: the spawned child does that as its last step. A filter is made once per pool and its
//! bytes are shared by all spawns. The `seccompiler` crate knows one action for matches and one for the rest, while Docker's
//! format has an action and an errno per rule, so several filters would have to be stacked and every call would pay for each;
//! the kernel also runs a new filter once per system call number to learn what is always allowed, at every attach. So the
//! program is generated in `bpf`, as a binary search over numbers: about eight steps where a list takes hundreds.
//!
//! Never answers more leniently than asked: of all rules that match a call, the most restrictive wins, and a call by another
//! architecture's numbers kills the process.

mod allow_list;
mod bpf;
mod gateway;
mod policy;
mod profile;
mod reader;

#[cfg(test)]
mod tests;

pub use bpf::Filter;
pub use profile::PROFILE_BYTES_MAX;

/// A filter could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// This architecture's numbers are not known here.
    #[error("make seccomp filter: architecture {} is not supported", std::env::consts::ARCH)]
    Architecture,
    /// The profile is larger than any sane one.
    #[error("parse seccomp profile: more than {PROFILE_BYTES_MAX} bytes")]
    TooLarge,
    /// The profile is not JSON of the format.
    #[error("parse seccomp profile")]
    Json(#[source] serde_json::Error),
    /// A value in the profile is not known or not supported.
    #[error("parse seccomp profile: {place}: {found:?}: {expected}")]
    Value {
        /// Where in the profile.
        place: String,
        /// What was found.
        found: String,
        /// What was expected.
        expected: &'static str,
    },
    /// The program has more instructions than the kernel takes.
    #[error("make seccomp filter: {instructions} instructions, the kernel takes at most {}", bpf::INSTRUCTIONS_MAX)]
    TooLong {
        /// How many it has.
        instructions: usize,
    },
}

impl Filter {
    /// The built-in allow-list for workers.
    ///
    /// # Errors
    /// Only on an architecture whose numbers are not known.
    pub fn allow_list() -> Result<Self, SeccompError> {
        bpf::compile(&allow_list::policy())
    }

    /// The filter of a process that reads archives.
    ///
    /// # Errors
    /// Only on an architecture whose numbers are not known.
    pub fn reader() -> Result<Self, SeccompError> {
        bpf::compile(&reader::policy())
    }

    /// The filter of the gateway.
    ///
    /// # Errors
    /// Only on an architecture whose numbers are not known.
    pub fn gateway() -> Result<Self, SeccompError> {
        bpf::compile(&gateway::policy())
    }

    /// A profile in Docker's JSON format, for a worker without capabilities. `kernel` is the running version, as 6 and 1.
    ///
    /// # Errors
    /// Says where in the profile what is wrong. Names of system calls that this kernel's table does not have are ignored, as
    /// Docker does.
    pub fn from_profile(json: &[u8], kernel: (u32, u32)) -> Result<Self, SeccompError> {
        bpf::compile(&profile::parse(json, kernel)?)
    }
}
