//! An image's life: imported, named, used, replaced, removed; and what is left when it is not finished.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::archive::{Tar, gzip, root_file_system, written};
use super::{import, names, wait_clean};
use crate::fixture::Daemon;
use crate::look::{lines, wait_healthy, wait_line};
use crate::needs::needs;
use crate::place::directory;

const LOOK: &str = "command = ['/bin/sh', '-c', 'echo marker=$(cat /etc/marker) again=$(cat /etc/again) uid=$(id -u) \
                    owner=$(stat -c %u:%g /etc/marker); exec sleep 100000']\n";

/// A pool on an image, for each identity that has something of its own to do with its files.
fn pools(image: &str) -> String {
    let of =
        |name: &str, identity: &str| format!("[pool.{name}]\nroot = 'image:{image}'\nidentity = '{identity}'\n{LOOK}");
    of("plain", "dynamic") + &of("mapped", "mapped")
}

#[test]
fn an_imported_image_is_a_root_and_a_pool_that_lacked_it_starts_by_itself() {
    needs!(Root, CgroupTree, Overlay, Userns, Busybox);
    let dir = directory();
    let archive = written(dir.path(), "small.tar.gz", &gzip(&root_file_system("first").end()));
    let mut daemon = Daemon::start(&pools("small"));
    // What is missing, and what to do about it, is said where one looks first.
    let missing =
        daemon.wait_until("a failed start", |daemon| crate::look::certificates(daemon, "plain.0").last().cloned());
    let text = missing["start_failure"]["text"].as_str().expect("a sentence");
    assert!(text.contains("image 'small:latest' not found") && text.contains("halsup image import"), "{text}");

    let output = import(&daemon, &archive, &["--json"]).json();
    let digest = output["image"]["digest"].as_str().expect("a digest").to_owned();
    assert_eq!(output["image"]["names"], serde_json::json!(["small:latest"]), "named by its file");
    for name in ["plain.0", "mapped.0"] {
        let said = wait_line(&mut daemon, name, |line| line.starts_with("marker=")).join(" ");
        assert!(said.contains("marker=first again=first"), "{said}");
        assert!(said.contains("owner=0:0"), "{name} sees the ids of the archive: {said}");
    }
    wait_healthy(&mut daemon, 2);

    // On the disk the ids are the archive's too, and nobody but root can reach them.
    let images = daemon.path("state/images");
    let root = images.join(digest.replace(':', "-")).join("root");
    let marker = fs::metadata(root.join("etc/marker")).expect("look at it");
    assert_eq!((marker.uid(), marker.gid(), marker.nlink(), marker.mtime()), (0, 0, 2, 0o14000000000));
    assert_eq!(fs::metadata(&images).expect("look").mode() & 0o777, 0o700);
    assert_eq!(names(&root), ["bin", "dev", "etc", "proc", "run", "srv", "sys", "tmp"], "what a worker needs was made");

    let listed = daemon.cli(&["image", "ls", "--json"]).json();
    assert_eq!(listed["images"][0]["used_by"], serde_json::json!(["plain", "mapped"]));
    let refused = daemon.cli(&["image", "rm", "small"]);
    assert_eq!(refused.status, 1);
    assert!(refused.stderr.contains("image small is the root of mapped, plain: change that first"), "{refused:?}");
    let unknown = daemon.cli(&["image", "inspect", "no/such:one"]);
    assert_eq!((unknown.status, unknown.stderr.contains("image no/such:one does not exist")), (5, true), "{unknown:?}");
    assert_eq!(daemon.cli(&["image", "rm", "../x"]).status, 2);
    wait_clean(&mut daemon);
}

#[test]
fn a_name_is_taken_only_with_the_word_and_a_reload_takes_the_new_image() {
    needs!(Root, CgroupTree, Overlay, Userns, Busybox);
    let dir = directory();
    let first = written(dir.path(), "first.tar", &root_file_system("first").end());
    let second = written(dir.path(), "second.tar", &root_file_system("second").end());
    let mut daemon = Daemon::start(&pools("a/b:c"));
    assert_eq!(import(&daemon, &first, &["--name", "a/b:c"]).status, 0);
    wait_healthy(&mut daemon, 2);
    let taken = import(&daemon, &second, &["--name", "a/b:c"]);
    assert_eq!(taken.status, 1);
    assert!(taken.stderr.contains("image a/b:c exists") && taken.stderr.contains("--replace"), "{taken:?}");
    assert_eq!(import(&daemon, &second, &["--name", "a/b:c", "--replace"]).status, 0);
    let listed = daemon.cli(&["image", "ls", "--json"]).json();
    assert_eq!(listed["images"].as_array().map(Vec::len), Some(2), "the old one is still the root of workers");
    assert!(!lines(&daemon, "plain.0").iter().any(|line| line.starts_with("marker=second")), "nobody was restarted");
    assert_eq!(daemon.cli(&["daemon", "reload"]).status, 0);
    for name in ["plain.0", "mapped.0"] {
        wait_line(&mut daemon, name, |line| line.starts_with("marker=second"));
    }
    // With its last user the image without a name goes.
    assert_eq!(import(&daemon, &first, &["--name", "other"]).status, 0, "it is there again under another name");
    assert_eq!(daemon.cli(&["image", "rm", "other"]).status, 0);
    daemon.wait_until("one image", |daemon| {
        let listed = daemon.cli(&["image", "ls", "--json"]).json();
        (listed["images"].as_array().map(Vec::len) == Some(1)).then_some(())
    });
    wait_clean(&mut daemon);
}

#[test]
fn images_and_who_uses_them_outlive_the_daemon() {
    needs!(Root, CgroupTree, Overlay, Userns, Busybox);
    let dir = directory();
    let archive = written(dir.path(), "small.tar", &root_file_system("kept").end());
    let mut daemon = Daemon::start(&pools("small"));
    assert_eq!(import(&daemon, &archive, &[]).status, 0);
    let before = wait_healthy(&mut daemon, 2);
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(i32::try_from(daemon.pid()).expect("a pid")).expect("a pid"),
        rustix::process::Signal::KILL,
    )
    .expect("kill the daemon");
    daemon.start_again();
    let after = wait_healthy(&mut daemon, 2);
    assert_eq!(crate::look::pid(&before[0]), crate::look::pid(&after[0]), "the worker ran on");
    let refused = daemon.cli(&["image", "rm", "small"]);
    assert!(refused.stderr.contains("is the root of"), "{refused:?}");
}

#[test]
fn a_caller_that_goes_away_leaves_nothing() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start("");
    let mut tar = Tar::default();
    tar.file("large", &vec![7; 1 << 20]);
    // Half an archive, through a pipe that stays open: its reader waits for the rest.
    let (theirs, ours) = std::io::pipe().expect("make a pipe");
    let mut child =
        daemon.place().command(&["image", "import", "-", "--name", "half"]).stdin(theirs).spawn().expect("run halsup");
    std::io::Write::write_all(&mut &ours, &tar.0[..40_000]).expect("write half of it");
    daemon.wait_until("something unfinished", |daemon| (!super::unfinished(daemon).is_empty()).then_some(()));
    child.kill().expect("end it");
    child.wait().expect("reap it");
    wait_clean(&mut daemon);
    let listed = daemon.cli(&["image", "ls", "--json"]).json();
    assert_eq!(listed["images"], serde_json::json!([]));
    drop(ours);
}

#[test]
fn the_reader_is_shut_in_before_it_reads() {
    needs!(Root, CgroupTree, Userns);
    let daemon = Daemon::start("");
    let (theirs, ours) = std::io::pipe().expect("make a pipe");
    let mut child = daemon
        .place()
        .command(&["image", "import", "-", "--name", "half"])
        .stdin(theirs)
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("run halsup");
    // One file whole and one begun: it has been reading for a while, and waits.
    let mut tar = Tar::default();
    tar.file("first", b"x").file("second", &[7; 100_000]);
    std::io::Write::write_all(&mut &ours, &tar.0[..50_000]).expect("write a piece");
    let first = || {
        let unfinished = super::unfinished(&daemon);
        let root = daemon.path("state/images/tmp").join(unfinished.first()?).join("root");
        root.join("first").exists().then_some(root)
    };
    let root = std::iter::repeat_with(first).flatten().next().expect("it comes");
    let reader = super::kills::reader_of(&daemon).expect("it waits");
    let proc = |name: &str| format!("/proc/{reader}/{name}");
    let status = fs::read_to_string(proc("status")).expect("read its status");
    let line = |key: &str| {
        let found = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("{key}: {status}"));
        found.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    // What it may use is bounded: an hour of a processor, a gibibyte, no further process.
    let limits = fs::read_to_string(proc("limits")).expect("read its limits");
    for (limit, value) in [("Max cpu time", "3600"), ("Max address space", "1073741824"), ("Max processes", "0")] {
        let found = limits.lines().find_map(|line| line.strip_prefix(limit)).unwrap_or_else(|| panic!("{limits}"));
        assert_eq!(found.split_whitespace().take(2).collect::<Vec<_>>(), [value, value], "{limit}");
    }
    let uid: u32 = line("Uid:").split(' ').next().expect("a uid").parse().expect("a number");
    assert!(uid >= 1_879_048_192, "{uid}");
    assert_eq!(line("Groups:"), "");
    // To change owners, to go into closed directories, to change what is others' (all within its own range).
    assert_eq!((line("CapEff:").as_str(), line("CapPrm:").as_str()), ("000000000000001b", "000000000000001b"));
    assert_eq!(
        (line("CapBnd:").as_str(), line("CapInh:").as_str(), line("CapAmb:").as_str()),
        ("0000000000000000", "0000000000000000", "0000000000000000")
    );
    assert_eq!((line("NoNewPrivs:").as_str(), line("Seccomp:").as_str()), ("1", "2"));
    let inode =
        |path: &std::path::Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).expect("look at it");
    assert_eq!(inode(std::path::Path::new(&proc("root"))), inode(&root), "its root is the target");
    for space in ["user", "mnt", "net", "ipc", "uts"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{space}")).expect("read its namespace");
        assert_ne!(of(&reader.to_string()), of("self"), "{space}");
    }
    let mounts = fs::read_to_string(proc("mountinfo")).expect("read its mounts");
    assert_eq!(mounts.lines().count(), 1, "nothing but the target is mounted there: {mounts}");
    let options = mounts.split_whitespace().nth(5).expect("options");
    assert!(["nosuid", "nodev", "noexec", "idmapped"].iter().all(|one| options.contains(one)), "{options}");
    let open = super::names(std::path::Path::new(&proc("fd")));
    assert!(open.len() <= 6, "standard ones, the archive, the target, what is being written: {open:?}");
    child.kill().expect("end it");
    child.wait().expect("reap it");
    drop(ours);
}
