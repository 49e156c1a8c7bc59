//! Every released version's files are understood by this one: what a daemon of that version left is in `tests/samples/`.
//!
//! A sample is never changed; a release that writes something new adds a directory of its own, made by a daemon that was
//! killed in the middle of its work.

use std::fs;
use std::path::{Path, PathBuf};

use halsup::daemon::past::{BirthRecord, Past};
use halsup::engine::Phase;
use halsup::host::ledger::read_entries;
use halsup::host::state_file::{Loaded, read_records};
use halsup::spec::{InstanceName, PoolName};

fn sample(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples").join(version)
}

fn records(path: &Path) -> Loaded {
    let loaded = read_records(&fs::read(path).expect("read a sample"));
    assert_eq!(loaded.damage, None, "{}", path.display());
    loaded
}

/// The boot that the sample's daemon ran in, by its own word.
fn boot(loaded: &Loaded) -> String {
    let header = loaded.records.iter().find(|(key, _)| key == "daemon").and_then(|(_, value)| value.as_ref());
    header.and_then(|header| header["boot"].as_str()).expect("a daemon says its boot").to_owned()
}

#[test]
fn what_version_0_1_0_left_is_understood() {
    let dir = sample("0.1.0");
    let state = records(&dir.join("state"));
    let boot = boot(&state);
    let instance = InstanceName::parse("sample").expect("a name");
    let past = Past::of(state, records(&dir.join("certificates")), &instance, &boot);
    assert_eq!(past.damage, [""; 0]);
    let pool = |name: &str| PoolName::parse(name).expect("a name");
    let phase = |name: &str, slot: u32| past.workers.get(&(pool(name), slot)).map(|record| record.phase);
    assert_eq!(phase("web", 0), Some(Phase::Running));
    assert_eq!(phase("web", 1), Some(Phase::Stopped));
    assert_eq!(phase("web", 2), Some(Phase::Running));
    assert_eq!(phase("bad", 0), Some(Phase::Crashed));
    assert_eq!(phase("slow", 0), Some(Phase::Starting));
    assert_eq!(phase("waits", 0), Some(Phase::Waiting));
    assert_eq!(phase("one", 0), Some(Phase::Running));
    assert_eq!(past.workers.len(), 7);
    assert_eq!(past.pools[&pool("web")].record.wanted, 3);
    let restarted = &past.workers[&(pool("web"), 2)];
    assert_eq!((restarted.restarts, restarted.recent.len()), (1, 1));
    let causes: Vec<String> = past.certificates.iter().map(|certificate| certificate.cause.to_string()).collect();
    for cause in ["exited 1", "exited 42", "requested", "signal 9"] {
        assert!(causes.iter().any(|known| known == cause), "{cause}: {causes:?}");
    }
    assert_eq!(
        past.certificates.iter().find(|known| known.worker == "waits.0").expect("it ended").last_output,
        "hello\n"
    );
    assert!(past.config.is_some_and(|text| text.contains("[service.one]")));
    assert!(past.generation >= 9, "{}", past.generation);
}

#[test]
fn the_birth_record_and_the_ledger_of_version_0_1_0_are_understood() {
    let dir = sample("0.1.0");
    let record = BirthRecord::read(&fs::read(dir.join("birth-record.json")).expect("read a sample"));
    let record = record.expect("a birth record");
    assert_eq!(record.directories().collect::<Vec<_>>(), ["one-5"; 2], "its own and its tree");
    let ledger = fs::read(dir.join("exits")).expect("read a sample");
    let ends: Vec<u64> = read_entries(&ledger).values().map(|entry| entry.value).collect();
    assert_eq!(ends, [15, 9], "signals, by generation");
}
