//! Profiles in Docker's JSON format (<https://docs.docker.com/engine/security/seccomp/>), for a worker without capabilities.
//!
//! Parts that would be for other architectures are read and left out: a call by another architecture's numbers is killed
//! whatever the profile says. Where rules contradict each other the most restrictive wins, while libseccomp lets an
//! unconditional one win; a key that is not of the format is an error, since it may be a misspelled restriction.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::SeccompError;
use super::policy::{Action, Compare, Condition, Policy};
use crate::sys::syscall_names;

/// A larger profile is refused; Docker's own has 15 KiB.
pub const PROFILE_BYTES_MAX: usize = 1 << 20;
/// The kernel's largest errno.
const ERRNO_MAX: u32 = 4095;
/// More rules cannot fit a program; names times arguments could otherwise become any number.
const RULES_MAX: usize = 16_384;
const EPERM: u32 = 1;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    default_errno: Option<String>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    arch_map: Vec<ArchMap>,
    // Flags ask for less protection (SPEC_ALLOW) or for what is done anyway; none is taken over.
    #[serde(default, rename = "flags")]
    _flags: Vec<String>,
    listener_path: Option<String>,
    #[serde(default, rename = "listenerMetadata")]
    _listener_metadata: Option<String>,
    #[serde(default)]
    syscalls: Option<Vec<Syscall>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Syscall {
    name: Option<String>,
    #[serde(default)]
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u32>,
    errno: Option<String>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Option<When>,
    #[serde(default)]
    excludes: Option<When>,
    #[serde(default, rename = "comment")]
    _comment: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: Option<u64>,
    op: String,
}

/// When a rule is taken or left out.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct When {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

pub(super) fn parse(json: &[u8], kernel: (u32, u32)) -> Result<Policy, SeccompError> {
    if json.len() > PROFILE_BYTES_MAX {
        return Err(SeccompError::TooLarge);
    }
    let profile: Profile = serde_json::from_slice(json).map_err(SeccompError::Json)?;
    check_architectures(&profile)?;
    if let Some(path) = &profile.listener_path {
        return refuse("listenerPath".into(), path, "answering by a listener is not supported");
    }
    let place = || "defaultAction".to_owned();
    let default = action(&place, &profile.default_action, profile.default_errno_ret, profile.default_errno.as_deref())?;
    let numbers: BTreeMap<&str, u32> = syscall_names::all().collect();
    let mut policy = Policy::new(default);
    let mut room = RULES_MAX;
    for (index, syscall) in profile.syscalls.iter().flatten().enumerate() {
        let place = || format!("syscalls[{index}]");
        for (number, action, conditions) in rules(&numbers, &place, syscall, kernel, room)? {
            room -= 1;
            policy.add(number, action, conditions);
        }
    }
    Ok(policy)
}

fn refuse<T>(place: String, found: &str, expected: &'static str) -> Result<T, SeccompError> {
    Err(SeccompError::Value { place, found: found.chars().take(80).collect(), expected })
}

fn check_architectures(profile: &Profile) -> Result<(), SeccompError> {
    let mapped = profile.arch_map.iter().map(|map| &map.architecture);
    let sub = profile.arch_map.iter().flat_map(|map| map.sub_architectures.iter().flatten());
    for name in profile.architectures.iter().chain(mapped).chain(sub) {
        if !name.starts_with("SCMP_ARCH_") {
            return refuse("architectures".into(), name, "expected a name that begins with SCMP_ARCH_");
        }
    }
    Ok(())
}

/// The rules of one entry, at most `room` of them; none where the entry is for other kernels, architectures or capabilities.
fn rules(
    numbers: &BTreeMap<&str, u32>,
    place: &dyn Fn() -> String,
    syscall: &Syscall,
    kernel: (u32, u32),
    room: usize,
) -> Result<Vec<(u32, Action, Vec<Condition>)>, SeccompError> {
    let action = action(place, &syscall.action, syscall.errno_ret, syscall.errno.as_deref())?;
    let names: Vec<&str> = syscall.name.iter().chain(syscall.names.iter().flatten()).map(String::as_str).collect();
    if names.is_empty() {
        return refuse(place(), "", "expected at least one name");
    }
    let mut conditions = Vec::new();
    for argument in syscall.args.iter().flatten() {
        conditions.push(condition(place, argument)?);
    }
    let taken = included(place, syscall.includes.as_ref(), kernel)?;
    if !taken || excluded(place, syscall.excludes.as_ref(), kernel)? {
        return Ok(Vec::new());
    }
    let alternatives = alternatives(&conditions);
    if names.len().saturating_mul(alternatives.len()) > room {
        return refuse(place(), &names.len().to_string(), "the profile has more rules than a filter can hold");
    }
    // A name that this kernel's table does not have can mean another architecture's or a removed call.
    let known = names.iter().filter_map(|name| numbers.get(name));
    let rules = known.flat_map(|number| alternatives.iter().map(|conditions| (*number, action, conditions.clone())));
    Ok(rules.collect())
}

/// Conditions hold together, unless two are on one argument: then Docker's runtime makes each a rule of its own.
fn alternatives(conditions: &[Condition]) -> Vec<Vec<Condition>> {
    let mut seen = [0_u32; 6];
    for condition in conditions {
        if let Some(count) = seen.get_mut(usize::from(condition.argument)) {
            *count += 1;
        }
    }
    if seen.iter().any(|count| *count > 1) {
        conditions.iter().map(|condition| vec![*condition]).collect()
    } else {
        vec![conditions.to_vec()]
    }
}

fn action(
    place: &dyn Fn() -> String,
    name: &str,
    errno: Option<u32>,
    errno_name: Option<&str>,
) -> Result<Action, SeccompError> {
    if let (None, Some(name)) = (errno, errno_name) {
        return refuse(place(), name, "errno names are not supported: give the number as errnoRet");
    }
    let number = errno.unwrap_or(EPERM);
    let data = match u16::try_from(number) {
        Ok(data) if number <= ERRNO_MAX => data,
        _ => return refuse(place(), &number.to_string(), "expected an errno of 0..=4095"),
    };
    match name {
        "SCMP_ACT_ALLOW" => Ok(Action::Allow),
        "SCMP_ACT_ERRNO" => Ok(Action::Errno(data)),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Ok(Action::KillThread),
        "SCMP_ACT_KILL_PROCESS" => Ok(Action::KillProcess),
        "SCMP_ACT_TRAP" => Ok(Action::Trap),
        "SCMP_ACT_LOG" => Ok(Action::Log),
        "SCMP_ACT_TRACE" => Ok(Action::Trace(data)),
        "SCMP_ACT_NOTIFY" => refuse(place(), name, "answering by a listener is not supported"),
        _ => refuse(
            place(),
            name,
            "expected SCMP_ACT_ALLOW, _ERRNO, _KILL, _KILL_THREAD, _KILL_PROCESS, _TRAP, _TRACE or _LOG",
        ),
    }
}

fn condition(place: &dyn Fn() -> String, argument: &Argument) -> Result<Condition, SeccompError> {
    let Some(index) = u8::try_from(argument.index).ok().filter(|index| *index <= 5) else {
        return refuse(place(), &argument.index.to_string(), "expected an argument index of 0..=5");
    };
    let (compare, value) = match argument.op.as_str() {
        "SCMP_CMP_EQ" => (Compare::Equal, argument.value),
        "SCMP_CMP_NE" => (Compare::NotEqual, argument.value),
        "SCMP_CMP_LT" => (Compare::Less, argument.value),
        "SCMP_CMP_LE" => (Compare::LessOrEqual, argument.value),
        "SCMP_CMP_GT" => (Compare::Greater, argument.value),
        "SCMP_CMP_GE" => (Compare::GreaterOrEqual, argument.value),
        // Here `value` is the mask and `valueTwo` what the masked argument is compared with.
        "SCMP_CMP_MASKED_EQ" => (Compare::Masked(argument.value), argument.value_two.unwrap_or(0)),
        other => {
            return refuse(place(), other, "expected SCMP_CMP_EQ, _NE, _LT, _LE, _GT, _GE or _MASKED_EQ");
        }
    };
    Ok(Condition { argument: index, compare, value })
}

/// The architecture as Go, and so Docker, calls it.
fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn included(place: &dyn Fn() -> String, when: Option<&When>, kernel: (u32, u32)) -> Result<bool, SeccompError> {
    let Some(when) = when else { return Ok(true) };
    let arches: Vec<&String> = when.arches.iter().flatten().collect();
    let arch_fits = arches.is_empty() || arches.iter().any(|arch| *arch == go_arch());
    // A worker has no capability, so a rule for those who have one is never for it.
    let caps_fit = when.caps.iter().flatten().next().is_none();
    Ok(arch_fits && caps_fit && reaches(place, when, kernel)?.unwrap_or(true))
}

fn excluded(place: &dyn Fn() -> String, when: Option<&When>, kernel: (u32, u32)) -> Result<bool, SeccompError> {
    let Some(when) = when else { return Ok(false) };
    let arch_fits = when.arches.iter().flatten().any(|arch| arch == go_arch());
    Ok(arch_fits || reaches(place, when, kernel)?.unwrap_or(false))
}

/// Whether the kernel is at least as new as `minKernel`, where that is given.
fn reaches(place: &dyn Fn() -> String, when: &When, kernel: (u32, u32)) -> Result<Option<bool>, SeccompError> {
    let Some(version) = &when.min_kernel else { return Ok(None) };
    let parsed = version.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    match parsed {
        Some(wanted) => Ok(Some(kernel >= wanted)),
        None => refuse(place(), version, "expected a minKernel such as 4.8"),
    }
}
