//! What is promised of what an earlier daemon left: its state file, the exit ledger, the birth records of its workers.

use std::collections::BTreeMap;

use halsup::daemon::past::{BirthRecord, GENERATION_MAX, Past};
use halsup::host::ledger::read_entries;
use halsup::host::state_file::{Loaded, encode, read_records};
use halsup::protocol::init::Entry;
use halsup::spec::InstanceName;
use serde_json::Value;

use super::revival::revive;
use super::spec::is_pool_name;

/// The boot in which records of workers count, here.
const BOOT: &str = "b007";

/// A state file. Lines as the daemon writes them count, and so do lines of bare JSON, as if their checksums were right:
/// otherwise hardly anything that is made up would come any further.
pub fn state(data: &[u8]) {
    let file = read_records(data);
    lines(data, &file);
    let text = String::from_utf8_lossy(data);
    let mut records = file.records;
    records.extend(text.lines().filter_map(bare));
    let instance = InstanceName::parse("default").expect("a name");
    let of = |boot: &str| {
        let loaded = || Loaded { records: records.clone(), damage: None };
        Past::of(loaded(), loaded(), &instance, boot)
    };
    let past = of(BOOT);
    read_back(&past);
    let elsewhere = of("another");
    assert!(elsewhere.pools.is_empty() && elsewhere.workers.is_empty(), "records outlive the boot that they are of");
    assert_eq!(elsewhere.generation, past.generation, "generations count on whatever the boot");
    revive(&past, data);
}

/// A record without its checksum.
fn bare(line: &str) -> Option<(String, Option<Value>)> {
    let value: Value = serde_json::from_str(line).ok()?;
    let key = value.get("key")?.as_str()?.to_owned();
    Some((key, value.get("value").cloned().filter(|value| !value.is_null())))
}

/// Of any bytes: whole lines count, each for itself, and what was read is read again from what is written of it.
fn lines(data: &[u8], file: &Loaded) {
    let ends: Vec<usize> = (0..data.len()).filter(|&at| data[at] == b'\n').map(|at| at + 1).collect();
    assert!(file.records.len() <= ends.len(), "more records than lines");
    assert!(file.damage.as_ref().is_none_or(|damage| damage.len() <= 200 && !damage.contains(char::is_control)));
    let whole = &data[..ends.last().copied().unwrap_or(0)];
    assert_eq!(read_records(whole).records, file.records, "a line that was cut short means something");
    if let Some(&middle) = ends.get(ends.len() / 2) {
        let (first, second) = (read_records(&data[..middle]), read_records(&data[middle..]));
        assert_eq!([first.records, second.records].concat(), file.records, "a line changes the meaning of another");
    }
    let null = Value::Null;
    let written: Vec<u8> =
        file.records.iter().flat_map(|(key, value)| encode(key, value.as_ref().unwrap_or(&null))).collect();
    let again = read_records(&written);
    assert!(again.damage.is_none() && again.records == file.records, "what is written is not read as the same");
}

/// Of what a daemon would go on with.
fn read_back(past: &Past) {
    assert!(past.damage.len() <= 24, "{} sentences", past.damage.len());
    for sentence in &past.damage {
        assert!(sentence.len() <= 600 && !sentence.contains(char::is_control), "{sentence:?}");
    }
    assert!(past.generation <= GENERATION_MAX && past.certificates.len() <= 4_096);
    assert!(past.pools.keys().all(|name| is_pool_name(name.as_str())));
    for ((name, _), record) in &past.workers {
        assert!(is_pool_name(name.as_str()));
        let generation = record.generation.unwrap_or(0);
        assert!(generation <= past.generation, "{generation} of {}", past.generation);
        assert!(generation > 0 || !record.had_processes(), "processes that nobody has started");
        let written = serde_json::to_vec(record).expect("a record is JSON");
        assert_eq!(serde_json::from_slice::<halsup::engine::WorkerRecord>(&written).ok().as_ref(), Some(record));
    }
    assert!(!past.ending || past.pools.is_empty(), "sizes outlive an order to end everything");
}

/// The exit ledger.
pub fn ledger(data: &[u8]) {
    let entries = read_entries(data);
    assert!(entries.len() <= data.len() / size_of::<Entry>());
    // What is whole is read whatever is around it.
    let written: Vec<u8> = entries.values().flat_map(written).collect();
    assert_eq!(read_entries(&written), entries, "an entry is not read as its init writes it");
    let torn: BTreeMap<u64, Entry> = read_entries(&written[..written.len().saturating_sub(1)]);
    assert_eq!(torn.len(), entries.len().saturating_sub(1), "half an entry means something");
    // Any eight words with their sum are an entry, and no others.
    let mut words = data.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
    let mut next = || words.next().unwrap_or(0);
    let mut entry = Entry { generation: next(), how: next(), value: next(), user_usec: next(), ..Entry::default() };
    (entry.magic, entry.system_usec, entry.max_rss_kib) = (halsup::protocol::init::ENTRY_MAGIC, next(), next());
    entry.sum = entry.sum();
    assert_eq!(read_entries(&written_of(&entry)), BTreeMap::from([(entry.generation, entry)]));
    let at = usize::try_from(next() % 64).expect("below 64");
    let mut flipped = written_of(&entry);
    flipped[at] ^= 1;
    assert!(read_entries(&flipped).is_empty(), "byte {at} does not matter");
}

fn written_of(entry: &Entry) -> Vec<u8> {
    written(entry).collect()
}

fn written(entry: &Entry) -> impl Iterator<Item = u8> + use<> {
    let words = [
        entry.magic,
        entry.generation,
        entry.how,
        entry.value,
        entry.user_usec,
        entry.system_usec,
        entry.max_rss_kib,
        entry.sum,
    ];
    words.into_iter().flat_map(u64::to_ne_bytes)
}

/// The birth record in a worker's start image.
pub fn birth_record(data: &[u8]) {
    match BirthRecord::read(data) {
        Ok(record) => {
            for name in record.directories() {
                let mut parts = std::path::Path::new(name).components();
                let one = matches!(parts.next(), Some(std::path::Component::Normal(part)) if part == name);
                assert!(one && parts.next().is_none(), "{name:?} is not one directory's name");
            }
            let written = serde_json::to_vec(&record).expect("a record is JSON");
            assert_eq!(BirthRecord::read(&written).ok(), Some(record), "not read as it is written");
        }
        Err(error) => assert!(error.to_string().len() <= 1_000, "an error of {} bytes", error.to_string().len()),
    }
}
