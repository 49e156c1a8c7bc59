//! Imports that are ended in the middle: their reader, or the daemon itself. Afterwards an image is there whole, or nothing is.

#![expect(clippy::disallowed_methods, reason = "deadlines of tests run on the real clock")]

use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use super::archive::{Tar, written};
use super::{import, names, wait_clean};
use crate::fixture::{Daemon, EVENT_DEADLINE};
use crate::needs::needs;
use crate::place::directory;

/// How many files the archive has.
const FILES: usize = 1_500;
/// After how many of them the blow comes.
const MOMENTS: [usize; 7] = [0, 1, 20, 200, 700, 1_200, FILES];

fn large() -> Vec<u8> {
    let mut tar = Tar::default();
    for number in 0..FILES {
        tar.file(&format!("files/{number}"), &[b'x'; 3_000]);
    }
    tar.end()
}

fn start_import(daemon: &Daemon, archive: &Path) -> Child {
    let archive = archive.to_str().expect("paths of tests are text");
    let mut command = daemon.place().command(&["image", "import", archive, "--name", "large"]);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().expect("run halsup")
}

/// Waits until so many files are unpacked, or the import is over.
fn wait_files(daemon: &Daemon, import: &mut Child, count: usize) {
    let (mut deadline, mut most) = (Instant::now() + EVENT_DEADLINE, 0);
    let tmp = daemon.path("state/images/tmp");
    let unpacked = || {
        let entries = fs::read_dir(&tmp).into_iter().flatten().flatten();
        let files = entries.filter_map(|entry| fs::read_dir(entry.path().join("root/files")).ok());
        files.map(Iterator::count).sum::<usize>()
    };
    loop {
        let files = unpacked();
        if files >= count || import.try_wait().expect("look at it").is_some() {
            return;
        }
        // As long as it goes on it may take its time, which this takes a part of by looking.
        if files > most {
            (deadline, most) = (Instant::now() + EVENT_DEADLINE, files);
        }
        assert!(Instant::now() < deadline, "{files} of {count} files");
        std::thread::yield_now();
    }
}

fn kill(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid");
    // It may have just ended: that is one of the moments.
    if let Err(error) = kill_process(pid, Signal::KILL) {
        assert_eq!(error, rustix::io::Errno::SRCH);
    }
}

/// The reader that this daemon has started, if one runs.
pub(super) fn reader_of(daemon: &Daemon) -> Option<u32> {
    let children = format!("/proc/{0}/task/{0}/children", daemon.pid());
    let children = fs::read_to_string(children).ok()?;
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(|pid: &u32| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words.ends_with(b"archive-reader\0"))
    })
}

/// The image is there whole, or not at all; then it is removed.
#[track_caller]
fn is_whole_or_nothing(daemon: &mut Daemon) {
    wait_clean(daemon);
    let listed = daemon.cli(&["image", "ls", "--json"]).json();
    let images = names(&daemon.path("state/images"));
    if listed["images"].as_array().is_some_and(Vec::is_empty) {
        assert_eq!(images, ["tmp"]);
        return;
    }
    let told = daemon.cli(&["image", "inspect", "large", "--json"]).json();
    let root = Path::new(told["root"].as_str().expect("a path")).join("files");
    assert_eq!((names(&root).len(), images.len()), (FILES, 2));
    assert_eq!(daemon.cli(&["image", "rm", "large"]).status, 0);
    wait_clean(daemon);
}

#[test]
fn a_reader_that_is_killed_leaves_nothing() {
    needs!(Root, CgroupTree);
    let dir = directory();
    let archive = written(dir.path(), "large.tar", &large());
    let mut daemon = Daemon::start("");
    for moment in MOMENTS {
        let mut import = start_import(&daemon, &archive);
        wait_files(&daemon, &mut import, moment);
        if let Some(reader) = reader_of(&daemon) {
            kill(reader);
        }
        import.wait().expect("reap it");
        is_whole_or_nothing(&mut daemon);
    }
    assert_eq!(import(&daemon, &archive, &["--name", "large"]).status, 0, "the daemon goes on");
}

#[test]
fn a_daemon_that_is_killed_in_an_import_leaves_nothing_to_the_next() {
    needs!(Root, CgroupTree);
    let dir = directory();
    let archive = written(dir.path(), "large.tar", &large());
    let mut daemon = Daemon::start("");
    for moment in MOMENTS {
        let mut import = start_import(&daemon, &archive);
        wait_files(&daemon, &mut import, moment);
        let reader = reader_of(&daemon);
        kill(daemon.pid());
        daemon.start_again();
        import.wait().expect("reap it");
        is_whole_or_nothing(&mut daemon);
        let alive = |pid: &u32| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words.ends_with(b"archive-reader\0"))
        };
        assert!(!reader.as_ref().is_some_and(alive), "it dies with the daemon");
    }
    // An orderly end in the middle of one is no other.
    let mut import = start_import(&daemon, &archive);
    wait_files(&daemon, &mut import, 100);
    assert_eq!(daemon.stop(), 0);
    import.wait().expect("reap it");
}
