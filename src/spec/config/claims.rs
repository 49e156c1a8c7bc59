//! The table `claims` of a pool: that its workers wait, warm, for somebody to claim them, and how many.
//!
//! Owns its keys, what the variables of the environment say of them, and what they become.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::error::{Faults, Place};
use super::keys::{Bounds, Key, Written, apply, walk};
use super::node::{Node, Raw};
use super::paths;
use super::pool::WORKERS_MAX;
use crate::spec::{ClaimPolicy, Size};

/// Where people have their projects.
const PROJECTS: [&str; 5] = ["/home", "/root", "/Users", "/workspace", "/srv"];

/// `claims` while it is read.
#[derive(Debug)]
pub(super) struct ClaimsDraft {
    min: u32,
    max: u32,
    policy: ClaimPolicy,
    pub(super) projects: Vec<PathBuf>,
    written: Written,
}

impl ClaimsDraft {
    pub(super) fn new() -> Self {
        let policy = ClaimPolicy {
            idle_timeout: Duration::from_secs(300),
            check_interval: Duration::from_secs(30),
            sessions_max: 100,
        };
        let projects = PROJECTS.map(PathBuf::from).to_vec();
        Self { min: 2, max: 5, policy, projects, written: Written::new() }
    }

    /// Lets variables of the environment fill what was not written.
    pub(super) fn fill_from(&mut self, environment: &BTreeMap<String, String>) -> Faults {
        let mut faults = Faults::default();
        for key in CLAIM_KEYS {
            if key.variable.is_empty() || self.written.contains_key(key.name) {
                continue;
            }
            let Some(text) = environment.get(key.variable).filter(|text| !text.is_empty()) else { continue };
            // Seconds, in the system that the variable is of.
            let is_bare = key.kind == "duration" && text.bytes().all(|byte| byte.is_ascii_digit());
            let text = if is_bare { format!("{text}s") } else { text.clone() };
            let place = Place::outside(key.variable);
            self.written.insert(key.name, place.clone());
            faults.note(apply(CLAIM_KEYS, self, key.name, &text, place));
        }
        faults
    }

    /// How many stay warm, and the rest.
    pub(super) fn finish(&self, place: &Place) -> Result<(Size, ClaimPolicy), Faults> {
        let of = |key: &str| self.written.get(key).cloned();
        if self.min > self.max {
            let (min, max) = (self.min, self.max);
            let place = of("min").or_else(|| of("max")).unwrap_or_else(|| place.clone());
            return Err(place.fault(format!("min {min} is more than max {max}"), "").into());
        }
        Ok((Size { min: self.min, max: self.max }, self.policy))
    }
}

/// The keys of `[pool.NAME.claims]`.
pub(super) const CLAIM_KEYS: &[Key<ClaimsDraft>] = &[
    Key {
        name: "min",
        aliases: &["min_warm"],
        variable: "MIN_WARM_WORKERS",
        kind: "integer",
        default: "2",
        bounds: Bounds::Count(0, WORKERS_MAX as u64),
        what: "So many stay warm; what is claimed is replaced at once.",
        set: |claims, node| {
            claims.min = node.count_u32()?;
            Ok(())
        },
    },
    Key {
        name: "max",
        aliases: &["max_warm"],
        variable: "MAX_WARM_WORKERS",
        kind: "integer",
        default: "5",
        bounds: Bounds::Count(1, WORKERS_MAX as u64),
        what: "Never more are warm, whatever `halsup pool scale` and `pool warm` ask for. At least `min`.",
        set: |claims, node| {
            claims.max = node.count_u32()?;
            Ok(())
        },
    },
    Key {
        name: "idle_timeout",
        aliases: &["idle_timeout_seconds"],
        variable: "IDLE_TIMEOUT",
        kind: "duration",
        default: "\"5m\"",
        bounds: Bounds::Time(Duration::from_secs(1), Duration::from_secs(86_400)),
        what: "Warm workers beyond the size that the pool is to have leave when nobody has wanted them for this long.",
        set: |claims, node| {
            claims.policy.idle_timeout = node.duration()?;
            Ok(())
        },
    },
    Key {
        name: "check_interval",
        aliases: &["check_interval_seconds"],
        variable: "CHECK_INTERVAL",
        kind: "duration",
        default: "\"30s\"",
        bounds: Bounds::Time(Duration::from_secs(1), Duration::from_secs(86_400)),
        what: "Within this time what is missing is made up for. Nothing waits for it: that begins with the event.",
        set: |claims, node| {
            claims.policy.check_interval = node.duration()?;
            Ok(())
        },
    },
    Key {
        name: "sessions",
        aliases: &[],
        variable: "",
        kind: "integer",
        default: "100",
        bounds: Bounds::Count(1, WORKERS_MAX as u64),
        what: "So many can be claimed at once; a further claim is refused.",
        set: |claims, node| {
            claims.policy.sessions_max = node.count_u32()?;
            Ok(())
        },
    },
    Key {
        name: "projects",
        aliases: &[],
        variable: "",
        kind: "list of paths",
        default: "[\"/home\", \"/root\", \"/Users\", \"/workspace\", \"/srv\"]",
        bounds: Bounds::Items(64),
        what: "A claim brings only directories into its worker that lie in one of these; whoever is not root only such as are their own.",
        set: |claims, node| {
            let (mut projects, mut faults) = (Vec::new(), Faults::default());
            for item in node.items(Bounds::Length(paths::PATH_BYTES_MAX))? {
                projects.extend(faults.note(paths::absolute(&item)));
            }
            claims.projects = projects;
            faults.or(())
        },
    },
];

/// Reads `claims`: true or a table.
pub(super) fn claims(target: &mut Option<ClaimsDraft>, node: &Node<'_>) -> Result<(), Faults> {
    if !matches!(node.raw, Raw::Toml(value) if value.is_table()) {
        let wanted = node.boolean().ok().ok_or_else(|| node.fault("true, false or a table"))?;
        *target = wanted.then(ClaimsDraft::new);
        return Ok(());
    }
    let mut draft = ClaimsDraft::new();
    let (written, faults) = walk(CLAIM_KEYS, &mut draft, node.table()?, &node.place);
    draft.written = written;
    *target = Some(draft);
    faults.or(())
}
