//! What an archive may cost: entries, room on the disk, and time. What costs more is refused while it is read, and nothing of it stays.

#![expect(clippy::disallowed_types, reason = "commands see the disk that the daemon sees")]

use std::fs;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};

use super::archive::{Head, Tar};
use super::{import, names, unfinished, wait_clean};
use crate::fixture::{Daemon, EVENT_DEADLINE, ended_within};
use crate::needs::needs;
use crate::place::{Output, directory, program, run};
use crate::volumes::on_a_small_disk;

#[test]
fn an_archive_with_too_many_entries_is_refused_where_it_has_one_too_many() {
    needs!(Root, CgroupTree, Userns);
    let mut daemon = Daemon::start("");
    let before = names(&daemon.path("state/images"));
    let mut child = daemon
        .place()
        .command(&["image", "import", "-", "--name", "many"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run halsup");
    // Devices are left out, so that nothing is made of a million of them: they are counted all the same.
    let mut device = Tar::default();
    device.raw(&Head { name: b"null", flag: b'3', ..Head::default() }, b"");
    let thousand = device.0.repeat(1024);
    let mut stdin = child.stdin.take().expect("piped");
    let mut written = 0;
    // Twice as many as there may be; it ends before.
    while written < 2048 && stdin.write_all(&thousand).is_ok() {
        written += 1;
    }
    drop(stdin);
    let output = child.wait_with_output().expect("reap it");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("more than 1048576 entries"), "{said}");
    assert!((1024..2048).contains(&written), "{written} times 1,024 entries were read of it");
    wait_clean(&mut daemon);
    assert_eq!(names(&daemon.path("state/images")), before);
}

#[test]
fn what_would_not_leave_the_disk_its_reserve_is_refused_and_the_disk_is_as_before() {
    needs!(Root, CgroupTree, Userns, Program("nsenter"));
    // 256 MiB are kept free; there would be room for all of it, and not beside that.
    let mut daemon = on_a_small_disk("320m", "");
    let pid = daemon.pid().to_string();
    let config = daemon.path("config.toml").display().to_string();
    let beside = |arguments: &[&str]| -> Output {
        let mut command = Command::new("nsenter");
        command.args(["--target", &pid, "--mount", "--"]).arg(program()).args(["--config", &config]);
        run(command.args(arguments))
    };
    let free = || beside(&["volume", "ls", "--json"]).json()["free_bytes"].as_u64().expect("a number");
    let archives = directory();
    let archive = |name: &str, mebibytes: usize| {
        let mut tar = Tar::default();
        tar.file("small", b"x").file("large", &vec![7; mebibytes << 20]);
        let path = archives.path().join(name);
        fs::write(&path, tar.end()).expect("write it");
        path.display().to_string()
    };
    let (large, fitting) = (archive("large.tar", 100), archive("fitting.tar", 8));
    let before = free();
    let refused = beside(&["image", "import", &large, "--name", "large"]);
    assert_eq!(refused.status, 1, "{refused:?}");
    assert!(refused.stderr.contains("the disk has only") && refused.stderr.contains("268435456"), "{refused:?}");
    // Its small file was there before: it goes, piece by piece.
    daemon.wait_until("the disk as it was", |_| (free() + (1 << 20) >= before).then_some(()));
    let taken = beside(&["image", "import", &fitting, "--name", "fitting"]);
    assert_eq!(taken.status, 0, "{taken:?}");
    assert!(free() + (8 << 20) <= before);
}

#[test]
fn names_that_are_as_long_and_as_deep_as_they_may_be_are_taken_and_no_longer_ones() {
    needs!(Root, CgroupTree, Userns);
    let daemon = Daemon::start("");
    let dir = directory();
    for (what, depth, status) in [("deep", 128, 0), ("too-deep", 129, 1)] {
        let name = vec!["d"; depth].join("/");
        let mut tar = Tar::default();
        tar.pax(&[("path", name.as_bytes())]).file("x", b"");
        let path = dir.path().join(what);
        fs::write(&path, tar.end()).expect("write it");
        let output = import(&daemon, &path, &["--name", what]);
        assert_eq!(output.status, status, "{what}: {output:?}");
    }
    assert_eq!(unfinished(&daemon), Vec::<String>::new());
}

#[test]
fn an_archive_that_takes_too_long_is_given_up() {
    needs!(Root, CgroupTree, Userns);
    let mut daemon = Daemon::start("image_import_timeout = '2s'\n");
    let (theirs, ours) = std::io::pipe().expect("make a pipe");
    let mut command = daemon.place().command(&["image", "import", "-", "--name", "slow"]);
    let child = command.stdin(theirs).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("run halsup");
    drop(command);
    let mut tar = Tar::default();
    tar.file("first", b"x").file("second", &[7; 100_000]);
    (&ours).write_all(&tar.0[..50_000]).expect("write a piece");
    let pid = rustix::process::Pid::from_child(&child);
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).expect("open its pidfd");
    assert!(ended_within(pidfd.as_fd(), EVENT_DEADLINE), "it waits for ever");
    let output = child.wait_with_output().expect("reap it");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("it was not read within 2s"), "{said}");
    // Its writer is still there: it is the reader that was ended.
    drop(ours);
    wait_clean(&mut daemon);
    assert_eq!(super::kills::reader_of(&daemon), None);
    let archives = directory();
    let quick = super::archive::written(archives.path(), "quick.tar", &tar.end());
    assert_eq!(import(&daemon, &quick, &["--name", "slow"]).status, 0, "the same in time");
}
