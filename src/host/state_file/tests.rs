//! Every way in which a file can be damaged, against what is read of it and what becomes of it.

use std::fs;
use std::path::Path;

use rustix::fs::{OFlags, open};
use serde_json::json;

use super::*;

const NAME: &str = "state";

fn dir_fd(path: &Path) -> OwnedFd {
    open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn open_state(path: &Path) -> (StateFile, Loaded) {
    StateFile::open(dir_fd(path), NAME, 7).unwrap()
}

type Records = Vec<(String, Option<Value>)>;

/// A file as a daemon writes it: anew, then changes, then a key taken back. And its records.
fn written(path: &Path) -> (Vec<u8>, Records) {
    let (mut file, loaded) = open_state(path);
    assert!(loaded.records.is_empty() && loaded.damage.is_none());
    file.put("daemon", &json!({ "format": 1, "boot": "5f0c" }));
    for slot in 0..3 {
        file.put(
            &format!("worker/web/{slot}"),
            &json!({ "phase": "running", "recent": [1, 2, slot], "text": "\n\"ü" }),
        );
    }
    file.flush().unwrap();
    file.put("worker/web/1", &json!({ "phase": "stopped" }));
    file.remove("worker/web/2");
    file.flush().unwrap();
    let (_, loaded) = open_state(path);
    assert_eq!(loaded.damage, None);
    assert_eq!(loaded.records.len(), 6);
    assert_eq!(loaded.records.last(), Some(&("worker/web/2".to_owned(), None)));
    (fs::read(path.join(NAME)).unwrap(), loaded.records)
}

fn quarantined(path: &Path) -> usize {
    fs::read_dir(path.join(QUARANTINE)).map_or(0, |entries| {
        entries.flatten().filter(|entry| !entry.file_name().to_string_lossy().ends_with(".reason")).count()
    })
}

#[test]
fn a_file_cut_at_any_length_has_the_records_that_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, records) = written(dir.path());
    for length in 0..=bytes.len() {
        fs::write(dir.path().join(NAME), &bytes[..length]).unwrap();
        let (mut file, loaded) = open_state(dir.path());
        let whole = bytes[..length].iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(loaded.records, records[..whole], "{length}");
        assert_eq!(loaded.damage, None, "a kill cuts files: {length}");
        file.put("after", &json!(length));
        file.flush().unwrap();
        assert_eq!(open_state(dir.path()).1.records, [("after".to_owned(), Some(json!(length)))], "{length}");
    }
    assert_eq!(quarantined(dir.path()), 0);
}

#[test]
fn no_flipped_bit_makes_another_record_and_the_file_is_put_aside() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, records) = written(dir.path());
    for (place, bit) in (0..bytes.len()).flat_map(|place| (0..8).map(move |bit| (place, bit))) {
        let mut flipped = bytes.clone();
        flipped[place] ^= 1 << bit;
        fs::write(dir.path().join(NAME), &flipped).unwrap();
        let (_, loaded) = open_state(dir.path());
        assert!(loaded.records.iter().all(|record| records.contains(record)), "{place}.{bit}: {loaded:?}");
        match loaded.damage {
            Some(_) => assert!(!dir.path().join(NAME).exists(), "{place}.{bit}"),
            // In capitals a checksum is the same; without its end the last line counts as cut.
            None => assert!(records.starts_with(&loaded.records), "{place}.{bit}"),
        }
    }
    let kept = quarantined(dir.path());
    assert!((1..=QUARANTINE_MAX).contains(&kept), "{kept} files are kept");
}

#[test]
fn what_is_no_file_or_too_large_is_put_aside_with_the_reason() {
    type Make = fn(&Path);
    let kinds: [(&str, Make); 5] = [
        ("no regular file", |path| fs::create_dir_all(path.join("deep/er")).unwrap()),
        ("no regular file", |path| std::os::unix::fs::symlink("/etc/hostname", path).unwrap()),
        ("no regular file", |path| {
            rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        }),
        ("no regular file", |path| drop(std::os::unix::net::UnixListener::bind(path).unwrap())),
        ("more than a state file ever has", |path| fs::File::create(path).unwrap().set_len(BYTES_MAX + 1).unwrap()),
    ];
    for (reason, make) in kinds {
        let dir = tempfile::tempdir().unwrap();
        make(&dir.path().join(NAME));
        let (mut file, loaded) = open_state(dir.path());
        let damage = loaded.damage.unwrap();
        assert!(damage.contains(reason) && damage.contains("kept as quarantine/"), "{damage}");
        let notes = fs::read_dir(dir.path().join(QUARANTINE)).unwrap().flatten().map(|entry| entry.path());
        let notes: Vec<_> = notes.filter(|path| path.extension().is_some_and(|ending| ending == "reason")).collect();
        assert!(fs::read_to_string(&notes[0]).unwrap().contains(reason), "{notes:?}");
        file.put("key", &json!(1));
        file.flush().unwrap();
        assert_eq!(open_state(dir.path()).1.records.len(), 1);
    }
}

#[test]
fn without_a_quarantine_a_damaged_file_is_kept_beside() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(QUARANTINE), "in the way").unwrap();
    fs::write(dir.path().join(NAME), "no record\n").unwrap();
    let (mut file, loaded) = open_state(dir.path());
    let damage = loaded.damage.unwrap();
    assert!(damage.contains("kept as state.damaged"), "{damage}");
    file.put("key", &json!(1));
    file.flush().unwrap();
    assert_eq!(fs::read(dir.path().join("state.damaged")).unwrap(), b"no record\n");
}

#[test]
fn what_is_removed_or_replaced_meanwhile_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(NAME);
    let (mut file, _) = open_state(dir.path());
    file.put("key", &json!(1));
    file.flush().unwrap();
    assert!(!file.was_replaced());
    fs::remove_file(&path).unwrap();
    assert!(file.was_replaced());
    file.put("other", &json!(2));
    file.flush().unwrap();
    assert_eq!(open_state(dir.path()).1.records.len(), 2, "the flush has written both");
    fs::remove_file(&path).unwrap();
    fs::create_dir_all(path.join("deep")).unwrap();
    file.rewrite().unwrap();
    assert_eq!(open_state(dir.path()).1.records.len(), 2);
    fs::File::options().append(true).open(&path).unwrap().set_len(3).unwrap();
    assert!(file.was_replaced(), "it is shorter than it was written");
}

fn open_log(path: &Path) -> (RecordLog, Loaded) {
    RecordLog::open(dir_fd(path), "log", 1000, 7).unwrap()
}

fn numbers(loaded: &Loaded) -> Vec<u64> {
    loaded.records.iter().filter_map(|(_, value)| value.as_ref()?.as_u64()).collect()
}

#[test]
fn a_log_is_rotated_and_none_of_the_latest_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open_log(dir.path());
    for number in 0..60 {
        log.add("key", &json!(number));
        log.flush().unwrap();
    }
    let kept = numbers(&open_log(dir.path()).1);
    assert_eq!(kept.last(), Some(&59));
    assert!(kept.len() > 25 && kept.is_sorted(), "{kept:?}");
}

#[test]
fn what_is_whole_of_a_damaged_log_is_there_at_every_later_start() {
    for name in ["log", "log.1"] {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = open_log(dir.path());
        for number in 0..40 {
            log.add("key", &json!(number));
            log.flush().unwrap();
        }
        let path = dir.path().join(name);
        let mut bytes = fs::read(&path).unwrap();
        bytes[40] ^= 1;
        fs::write(&path, bytes).unwrap();
        let (mut log, loaded) = open_log(dir.path());
        assert!(loaded.damage.is_some(), "{name}");
        log.flush().unwrap();
        let again = open_log(dir.path()).1;
        assert_eq!(again.damage, None, "{name}");
        let (first, second) = (numbers(&loaded), numbers(&again));
        assert!(
            first.len() > 30 && first.iter().all(|number| second.contains(number)),
            "{name}: {first:?}, {second:?}"
        );
    }
}

#[test]
fn a_log_that_was_removed_is_written_anew_from_what_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open_log(dir.path());
    log.add("key", &json!(1));
    log.flush().unwrap();
    assert!(!log.was_replaced());
    fs::remove_file(dir.path().join("log")).unwrap();
    assert!(log.was_replaced());
    let known = [json!(1), json!(2)];
    log.restore(known.iter().map(|value| ("key", value)));
    log.add("key", &json!(3));
    log.flush().unwrap();
    assert_eq!(numbers(&open_log(dir.path()).1), [1, 2, 3]);
    let many: Vec<_> = (0..1000).map(|number| json!(number)).collect();
    log.restore(many.iter().map(|value| ("key", value)));
    log.flush().unwrap();
    let kept = numbers(&open_log(dir.path()).1);
    assert!(kept.len() < 80 && kept.last() == Some(&999), "as many of the latest as fit: {kept:?}");
}
