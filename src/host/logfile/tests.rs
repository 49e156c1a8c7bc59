//! Log files in a temporary directory: what is written, kept, cut, lost and read again.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::Duration;

use super::*;

const WALL: SystemTime = SystemTime::UNIX_EPOCH;

struct Place {
    root: tempfile::TempDir,
    dir: OwnedFd,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let dir = File::open(root.path()).unwrap().into();
        Self { root, dir }
    }

    fn open(&self, max_bytes: u64, keep: u32) -> LogFile {
        LogFile::open(self.dir.as_fd(), "web.3", LogSpec { max_bytes, keep, json: false }).unwrap()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.root.path().join(name)).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root.path()).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn last(&self, count: usize) -> Vec<String> {
        let last = read_last_lines(self.dir.as_fd(), "web.3", count).unwrap();
        last.lines.into_iter().map(|line| String::from_utf8(line).unwrap()).collect()
    }
}

#[test]
fn lines_of_two_streams_stay_whole() {
    let place = Place::new();
    let mut log = place.open(1 << 20, 3);
    log.append(Stream::Stdout, b"out ", WALL);
    log.append(Stream::Stderr, b"err\nmore err", WALL);
    log.append(Stream::Stdout, b"put\n", WALL);
    assert_eq!(place.read("web.3.log"), "err\nout put\n");
    log.flush(WALL);
    log.flush(WALL);
    assert_eq!(place.read("web.3.log"), "err\nout put\nmore err\n");
    assert_eq!(log.tail(), b"out err\nmore errput\n");
    assert_eq!(log.tail(), b"", "the next generation begins anew");
    assert_eq!(log.dropped_bytes(), 0);
    let mode = fs::metadata(place.root.path().join("web.3.log")).unwrap().permissions().mode();
    assert_eq!(mode & 0o137, 0, "{mode:o}");
}

#[test]
fn files_are_rotated_between_lines() {
    let place = Place::new();
    let mut log = place.open(10, 2);
    for number in 0..10 {
        log.append(Stream::Stdout, format!("line{number}\n").as_bytes(), WALL);
    }
    assert_eq!(place.names(), ["web.3.log", "web.3.log.1", "web.3.log.2"]);
    assert_eq!(place.read("web.3.log.2"), "line7\n");
    assert_eq!(place.read("web.3.log.1"), "line8\n");
    assert_eq!(place.read("web.3.log"), "line9\n");
    assert_eq!(place.last(2), ["line8", "line9"]);
    assert_eq!(place.last(100), ["line7", "line8", "line9"]);
}

#[test]
fn many_lines_at_once_are_rotated_too() {
    let place = Place::new();
    let mut log = place.open(12, 9);
    log.append(Stream::Stdout, b"a1234\nb1234\nc1234\nd1234\nlonger than a file\ne\n", WALL);
    assert_eq!(place.read("web.3.log.3"), "a1234\nb1234\n");
    assert_eq!(place.read("web.3.log.2"), "c1234\nd1234\n");
    assert_eq!(place.read("web.3.log.1"), "longer than a file\n");
    assert_eq!(place.read("web.3.log"), "e\n");
}

#[test]
fn nothing_is_kept_where_nothing_is_to_be_kept() {
    let place = Place::new();
    for number in 1..5 {
        fs::write(place.root.path().join(format!("web.3.log.{number}")), "old\n").unwrap();
    }
    let mut log = place.open(10, 0);
    assert_eq!(place.names(), ["web.3.log"], "what an earlier number left is gone");
    log.append(Stream::Stdout, b"12345678\n12345679\n", WALL);
    assert_eq!(place.names(), ["web.3.log"]);
    assert_eq!(place.read("web.3.log"), "12345679\n");
}

#[test]
fn an_existing_log_goes_on_and_counts() {
    let place = Place::new();
    place.open(10, 1).append(Stream::Stdout, b"12345678\n", WALL);
    place.open(10, 1).append(Stream::Stdout, b"x\n", WALL);
    assert_eq!(place.read("web.3.log.1"), "12345678\n");
    assert_eq!(place.read("web.3.log"), "x\n");
}

#[test]
fn json_records_are_lines_whatever_a_worker_writes() {
    let place = Place::new();
    let spec = LogSpec { max_bytes: 1 << 20, keep: 1, json: true };
    let mut log = LogFile::open(place.dir.as_fd(), "web.3", spec).unwrap();
    let wall = WALL + Duration::from_micros(1_500_000);
    log.append(Stream::Stderr, b"\x1b[2J\"\xff{}\r\n", wall);
    let mut long = vec![b'x'; LINE_BYTES_MAX + 1];
    long.push(b'\n');
    log.append(Stream::Stdout, &long, wall);
    let text = place.read("web.3.log");
    let records: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        records[0],
        serde_json::json!({"time": "1970-01-01T00:00:01.500000Z", "worker": "web.3", "stream": "stderr",
            "text": "\u{1b}[2J\"\u{fffd}{}\r"})
    );
    assert_eq!(records.len(), 3);
    assert_eq!((&records[1]["cut"], &records[2]["cut"]), (&true.into(), &serde_json::Value::Null));
    assert!(!text.contains('\u{1b}'));
}

#[test]
fn the_tail_is_the_last_four_kibibytes() {
    let place = Place::new();
    let mut log = place.open(1 << 20, 1);
    let mut all = Vec::new();
    for number in 0..3000_u32 {
        let bytes = number.to_string().into_bytes();
        log.append(Stream::Stdout, &bytes, WALL);
        all.extend(bytes);
    }
    assert_eq!(log.tail(), &all[all.len() - TAIL_BYTES_MAX..]);
    log.append(Stream::Stdout, &vec![b'y'; 3 * TAIL_BYTES_MAX], WALL);
    assert_eq!(log.tail(), vec![b'y'; TAIL_BYTES_MAX]);
}

#[test]
fn no_link_is_followed() {
    let place = Place::new();
    let canary = place.root.path().join("canary");
    fs::write(&canary, "alive\n").unwrap();
    symlink(&canary, place.root.path().join("web.3.log")).unwrap();
    let spec = LogSpec { max_bytes: 100, keep: 1, json: false };
    let error = LogFile::open(place.dir.as_fd(), "web.3", spec).unwrap_err();
    assert!(matches!(error, LogFileError::Open { source: Errno::LOOP, .. }), "{error:?}");
    assert!(read_last_lines(place.dir.as_fd(), "web.3", 1).is_err());
    fs::remove_file(place.root.path().join("web.3.log")).unwrap();
    rustix::fs::mkfifoat(&place.dir, "web.3.log", Mode::RUSR | Mode::WUSR).unwrap();
    assert!(LogFile::open(place.dir.as_fd(), "web.3", spec).is_err());
    let error = read_last_lines(place.dir.as_fd(), "web.3", 1).unwrap_err();
    assert!(matches!(error, LogFileError::NotRegular { .. }), "{error:?}");
    for name in ["", "..", "a/b", ".x"] {
        assert!(matches!(LogFile::open(place.dir.as_fd(), name, spec), Err(LogFileError::Name { .. })), "{name:?}");
    }
    assert_eq!(fs::read_to_string(canary).unwrap(), "alive\n");
}

#[test]
fn a_full_disk_costs_lines_and_nothing_else() {
    let place = Place::new();
    let mut log = place.open(1 << 20, 1);
    log.append(Stream::Stdout, b"before\n", WALL);
    log.file = Some(rustix::fs::open("/dev/full", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).unwrap());
    log.append(Stream::Stdout, b"lost 1\nlost 2\n", WALL);
    assert_eq!(log.dropped_bytes(), 14);
    log.file = None;
    log.append(Stream::Stdout, b"after\n", WALL);
    assert_eq!(place.read("web.3.log"), "before\nafter\n");
    assert_eq!(log.tail(), b"before\nlost 1\nlost 2\nafter\n", "a death certificate knows what the disk does not");
}

#[test]
fn a_torn_line_does_not_join_the_next() {
    let place = Place::new();
    let mut log = place.open(1 << 20, 1);
    log.append(Stream::Stdout, b"whole\n", WALL);
    log.write(b"to");
    log.append(Stream::Stdout, b"next\n", WALL);
    assert_eq!(place.read("web.3.log"), "whole\nto\nnext\n");
}

#[test]
fn last_lines_are_bounded() {
    let place = Place::new();
    assert_eq!(place.last(5), Vec::<String>::new(), "no log");
    let path = place.root.path().join("web.3.log");
    fs::write(&path, "").unwrap();
    assert_eq!(place.last(5), Vec::<String>::new());
    fs::write(&path, "\n\nno newline").unwrap();
    assert_eq!(place.last(2), ["", "no newline"]);
    assert_eq!(place.last(9), ["", "", "no newline"]);
    assert_eq!(place.last(0), Vec::<String>::new());

    let line = "x".repeat(99);
    fs::write(&path, format!("{line}\n").repeat(30_000)).unwrap();
    fs::write(place.root.path().join("web.3.log.1"), "older\n").unwrap();
    let last = read_last_lines(place.dir.as_fd(), "web.3", 1_000_000).unwrap();
    assert!(last.truncated);
    assert_eq!(last.lines.len(), (1 << 20) / 100);
    assert!(last.lines.iter().all(|found| found == line.as_bytes()), "no part of a line, no older file");
    assert!(!read_last_lines(place.dir.as_fd(), "web.3", 10).unwrap().truncated);
}

#[test]
fn forgetting_and_handing_over_pass_the_gaps_that_killed_daemons_have_left() {
    let place = Place::new();
    let make = || {
        for name in ["web.3.log", "web.3.log.1", "web.3.log.4", "web.3.log.12", "web.4.log"] {
            fs::write(place.root.path().join(name), name).unwrap();
        }
    };
    make();
    LogFile::hand_over(place.dir.as_fd(), "web.3", "kept").unwrap();
    assert_eq!(place.names(), ["kept.log", "kept.log.1", "kept.log.12", "kept.log.4", "web.4.log"]);
    make();
    LogFile::forget(place.dir.as_fd(), "web.3").unwrap();
    LogFile::forget(place.dir.as_fd(), "kept").unwrap();
    assert_eq!(place.names(), ["web.4.log"]);
}
