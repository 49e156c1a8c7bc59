//! What an earlier daemon has written down, read back: its state file, its certificates, the birth records of its workers.
//!
//! Read by the same rules as anything from outside: names by their grammar, numbers in their ranges, and what is not so
//! counts for nothing and is said. Touches no file: `persist.rs` and `adopt.rs` bring the bytes. Public for `fuzz/`, which holds
//! it to that for any bytes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::kept::Kept;
use super::session::{Session, session_key};
use super::state::{Freed, Place};
use super::tasks::{KeptTask, PastTasks};
use super::tokens::Token;
use crate::engine::{PoolRecord, WorkerRecord};
use crate::host::state_file::Loaded;
use crate::protocol::control::{DeathCertificate, is_session_name, is_task_name, is_token_name};
use crate::protocol::escape;
use crate::spec::{InstanceName, PoolName};

/// The layout of the records. A file of a later one is put aside; one of an earlier one is understood.
pub(super) const FORMAT: u64 = 1;
/// No record names a generation above this; what counts further has been made up.
pub const GENERATION_MAX: u64 = 1 << 53;
/// Certificates that are remembered of earlier daemons.
const CERTIFICATES_MAX: usize = 4096;
/// Sentences about damage; a file of which more is wrong has been made up.
const DAMAGE_MAX: usize = 20;
/// Of a key that means nothing, so much is shown.
const KEY_CHARS_SHOWN: usize = 80;
/// The longest name that a directory entry can have.
const NAME_BYTES_MAX: usize = 255;

/// A pool as it was written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PastPool {
    /// How it was.
    pub record: PoolRecord,
    /// The smallest and largest size that its policy allowed.
    pub size: (u32, u32),
}

/// What an earlier daemon has written down.
#[derive(Debug, Default)]
pub struct Past {
    /// Every pool.
    pub pools: BTreeMap<PoolName, PastPool>,
    /// Every place of a pool, if the machine has not booted since.
    pub workers: BTreeMap<(PoolName, u32), WorkerRecord>,
    /// Sessions by place, if the machine has not booted since.
    pub(super) sessions: BTreeMap<(PoolName, u32), Session>,
    /// Sessions that have ended and are kept, by name.
    pub(super) kept: BTreeMap<String, Kept>,
    /// Tokens of the gateway's callers, by name.
    pub(super) tokens: BTreeMap<String, Token>,
    /// Its tasks.
    pub(super) tasks: PastTasks,
    /// The text of its configuration.
    pub config: Option<String>,
    /// Its latest death certificates, oldest first.
    pub certificates: VecDeque<DeathCertificate>,
    /// The highest generation that it has given out, as far as is known.
    pub generation: u64,
    /// It was ending everything by order.
    pub ending: bool,
    /// What was damaged, as sentences.
    pub damage: Vec<String>,
    /// Why the records of workers and pools are nothing to this daemon, if so.
    pub foreign: Option<String>,
}

pub(super) fn worker_key(pool: &PoolName, slot: u32) -> String {
    format!("worker/{pool}/{slot}")
}

pub(super) fn pool_key(pool: &PoolName) -> String {
    format!("pool/{pool}")
}

impl Past {
    /// What the records of the state file and of the certificates mean to a daemon of `instance` in this boot.
    #[must_use]
    pub fn of(records: Loaded, exits: Loaded, instance: &InstanceName, boot: &str) -> Self {
        let mut past = Self::default();
        past.damage.extend(records.damage);
        past.damage.extend(exits.damage);
        let latest: BTreeMap<String, Option<Value>> = records.records.into_iter().collect();
        let header = latest.get("daemon").and_then(Option::as_ref);
        let text = |key| header.and_then(|header| header.get(key)).and_then(Value::as_str);
        let understood = header.and_then(|header| header.get("format")).and_then(Value::as_u64) == Some(FORMAT);
        let ours = text("instance").is_none_or(|named| named == instance.as_str());
        let usable = understood && ours;
        if !latest.is_empty() && !usable {
            past.foreign = Some(format!(
                "its records are of another layout or instance than {instance}'s: what runs is taken over without them"
            ));
        }
        let same_boot = text("boot") == Some(boot);
        let counted = header.and_then(|header| header.get("generation")).and_then(Value::as_u64).unwrap_or(0);
        if usable {
            past.generation = counted.min(GENERATION_MAX);
        }
        let ending = header.and_then(|header| header.get("ending")) == Some(&Value::Bool(true));
        past.ending = ending && usable && same_boot;
        (past.tasks.same_boot, past.tasks.ending) = (same_boot, past.ending);
        for (key, value) in latest {
            let Some(value) = value else { continue };
            if usable {
                past.take(&key, value, same_boot);
            }
        }
        // A log that was written anew repeats what an older file of it says.
        let mut known = BTreeSet::new();
        for (_, value) in exits.records {
            let Some(certificate) = value.and_then(|value| serde_json::from_value::<DeathCertificate>(value).ok())
            else {
                continue;
            };
            if !known.insert((certificate.worker.clone(), certificate.generation)) {
                continue;
            }
            past.generation = past.generation.max(certificate.generation.min(GENERATION_MAX));
            past.certificates.push_back(certificate);
        }
        let surplus = past.certificates.len().saturating_sub(CERTIFICATES_MAX);
        past.certificates.drain(..surplus);
        past
    }

    fn take(&mut self, key: &str, value: Value, same_boot: bool) {
        match *key.split('/').collect::<Vec<_>>() {
            ["config"] => self.config = value.get("text").and_then(Value::as_str).map(str::to_owned),
            ["pool", name] if same_boot && !self.ending => self.take_pool(name, &value),
            ["pool", _] => {}
            ["worker", name, slot] => {
                let record = serde_json::from_value::<WorkerRecord>(value);
                let (Ok(name), Ok(slot), Ok(record)) = (PoolName::parse(name), slot.parse(), record) else {
                    return self.complain(key, "is not one");
                };
                if worker_key(&name, slot) != key {
                    return self.complain(key, "is not as a key is written");
                }
                let generation = record.generation.unwrap_or(0);
                if generation > GENERATION_MAX {
                    return self.complain(key, "counts further than anybody can");
                }
                if generation == 0 && record.had_processes() {
                    return self.complain(key, "is of processes that nobody has started");
                }
                self.generation = self.generation.max(generation);
                if same_boot {
                    self.workers.insert((name, slot), record);
                }
            }
            ["session", name, slot] => {
                let session = serde_json::from_value::<Session>(value);
                let (Ok(name), Ok(slot), Ok(session)) = (PoolName::parse(name), slot.parse(), session) else {
                    return self.complain(key, "is not one");
                };
                if session_key(&name, slot) != key || !is_session_name(&session.name) {
                    return self.complain(key, "is not as a key or a session is written");
                }
                if same_boot {
                    self.sessions.insert((name, slot), session);
                }
            }
            ["kept", name] => match serde_json::from_value::<Kept>(value) {
                Ok(kept) if kept.session.name == name && is_session_name(name) => {
                    self.kept.insert(name.to_owned(), kept);
                }
                Ok(_) | Err(_) => self.complain(key, "is not one"),
            },
            ["token", name] => self.take_token(key, name, value),
            ["task", name] => match serde_json::from_value::<KeptTask>(value) {
                Ok(kept) if is_task_name(name) => self.tasks.tasks.push((name.to_owned(), kept)),
                Ok(_) | Err(_) => self.complain(key, "is not one"),
            },
            ["tasks"] => match serde_json::from_value(value) {
                Ok(all) => self.tasks.all = all,
                Err(_) => self.complain(key, "is not one"),
            },
            // Of a later build with the same layout: not ours to understand.
            _ => {}
        }
    }

    fn take_token(&mut self, key: &str, name: &str, value: Value) {
        match serde_json::from_value::<Token>(value) {
            Ok(token) if is_token_name(name) => {
                self.tokens.insert(name.to_owned(), token);
            }
            Ok(_) | Err(_) => self.complain(key, "is not one"),
        }
    }

    fn take_pool(&mut self, name: &str, value: &Value) {
        let number = |key| value.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        let known = (PoolName::parse(name), number("wanted"), number("min"), number("max"));
        if let (Ok(name), Some(wanted), Some(min), Some(max)) = known {
            let paused = value.get("paused") == Some(&Value::Bool(true));
            // A breaker that cannot be read is one that lets everything through.
            let breaker = value.get("breaker").cloned().map(serde_json::from_value);
            let breaker = breaker.and_then(Result::ok).unwrap_or_default();
            let tuning = value.get("tuning").cloned().and_then(|value| serde_json::from_value(value).ok());
            let record = PoolRecord { wanted, paused, tuning: tuning.unwrap_or_default(), breaker };
            self.pools.insert(name, PastPool { record, size: (min, max) });
        }
    }

    /// Says that a record counts for nothing, of the first few of them.
    fn complain(&mut self, key: &str, what: &str) {
        if self.damage.len() < DAMAGE_MAX {
            let shown: String = key.chars().take(KEY_CHARS_SHOWN).collect();
            self.damage.push(format!("the record {} {what}", escape::line(&shown)));
        }
    }
}

/// What a later daemon is to know about a generation: written into its start image, which nobody can change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BirthRecord {
    pub(super) pool: String,
    pub(super) slot: u32,
    pub(super) generation: u64,
    pub(super) uid: u32,
    pub(super) frees: Option<Freed>,
    pub(super) port: Option<u16>,
    /// The last of its ports, where it has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last_port: Option<u16>,
    pub(super) work_name: String,
    pub(super) trees: Vec<(Place, String)>,
    /// Digest of the image that is its root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) image: Option<String>,
    /// Wall clock, in milliseconds since 1970.
    pub(super) started_msec: u64,
    /// What it listens on, in the order in which it was handed in.
    pub(super) listen: Vec<String>,
    pub(super) channel: bool,
    pub(super) notify: bool,
}

/// A birth record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BirthRecordError {
    /// It is no JSON, or of another layout.
    #[error("it is not one")]
    Layout {
        /// What the reader says.
        source: serde_json::Error,
    },
    /// It names a directory by something that is no entry's name.
    #[error("it names a directory {name:?}")]
    Name {
        /// The beginning of the name.
        name: String,
    },
}

impl BirthRecord {
    /// Reads one.
    ///
    /// # Errors
    /// When it is not what a daemon writes.
    pub fn read(bytes: &[u8]) -> Result<Self, BirthRecordError> {
        let record: Self = serde_json::from_slice(bytes).map_err(|source| BirthRecordError::Layout { source })?;
        let odd = record.directories().find(|name| !is_entry(name));
        match odd.map(|name| name.chars().take(KEY_CHARS_SHOWN).collect()) {
            Some(name) => Err(BirthRecordError::Name { name }),
            None => Ok(record),
        }
    }

    /// The names of the directories that are its worker's, to be removed when it has ended.
    pub fn directories(&self) -> impl Iterator<Item = &str> {
        self.trees.iter().map(|(_, name)| name.as_str()).chain([self.work_name.as_str()])
    }
}

/// Whether a name is one of a directory's entries, and of nothing outside it.
fn is_entry(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.len() <= NAME_BYTES_MAX && !name.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::engine::Phase;

    fn past(boot: &str, records: &[(&str, Value)]) -> Past {
        let header = json!({ "format": FORMAT, "instance": "default", "boot": "now", "generation": 40 });
        let header = [("daemon", header)];
        let records = header.iter().chain(records).map(|(key, value)| ((*key).to_owned(), Some(value.clone())));
        let loaded = Loaded { records: records.collect(), damage: None };
        Past::of(loaded, Loaded::default(), &InstanceName::parse("default").unwrap(), boot)
    }

    #[test]
    fn records_count_in_their_own_boot_and_generations_in_any() {
        let worker = json!({ "generation": 41, "phase": "running" });
        let pool = json!({ "wanted": 2, "min": 1, "max": 3 });
        let records = [("worker/web/0", worker), ("pool/web", pool)];
        let known = past("now", &records);
        let web = PoolName::parse("web").unwrap();
        assert_eq!(known.workers[&(web.clone(), 0)].phase, Phase::Running);
        assert_eq!(
            known.pools[&web],
            PastPool { record: PoolRecord { wanted: 2, ..PoolRecord::default() }, size: (1, 3) }
        );
        let later = past("later", &records);
        assert!(later.workers.is_empty() && later.pools.is_empty());
        assert_eq!([known.generation, later.generation, past("now", &[]).generation], [41, 41, 40]);
    }

    #[test]
    fn a_record_that_no_daemon_writes_counts_for_nothing_and_is_said() {
        let running = json!({ "generation": 7, "phase": "running" });
        for (key, value) in [
            ("worker/web/+1", running.clone()),
            ("worker/web/01", running.clone()),
            ("worker/Web/0", running),
            ("worker/web/0", json!({ "generation": 7, "phase": "dancing" })),
            ("worker/web/0", json!({ "generation": null, "phase": "running" })),
            ("worker/web/0", json!({ "generation": GENERATION_MAX + 1, "phase": "running" })),
        ] {
            let past = past("now", &[(key, value)]);
            assert!(past.workers.is_empty() && past.damage.len() == 1 && past.generation == 40, "{key}: {past:?}");
        }
        let many: Vec<String> = (0..100).map(|number| format!("worker/\u{1b}/{number}")).collect();
        let records: Vec<(&str, Value)> = many.iter().map(|key| (key.as_str(), Value::from(0))).collect();
        let damage = past("now", &records).damage;
        assert!(damage.len() <= DAMAGE_MAX && !damage.concat().contains(char::is_control), "{damage:?}");
    }

    #[test]
    fn a_birth_record_names_nothing_outside_its_directory() {
        let record = |work_name: &str, tree: &str| {
            let record = json!({
                "pool": "web", "slot": 0, "generation": 7, "uid": 1, "frees": null, "port": null, "work_name": work_name,
                "trees": [["work", tree]], "started_msec": 0, "listen": [], "channel": false, "notify": true,
            });
            BirthRecord::read(record.to_string().as_bytes())
        };
        assert!(record("web.0-7", "web.0-7").is_ok());
        for name in ["", ".", "..", "/", "a/b", "../a", "a\0", &"x".repeat(256)] {
            assert!(record(name, "web.0-7").is_err() && record("web.0-7", name).is_err(), "{name:?}");
        }
    }
}
