//! `root = DIR`: an overlay on a small root file system, made of busybox alone.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::{identities, shell};
use crate::fixture::Daemon;
use crate::look::{wait_certificate, wait_healthy, wait_line};
use crate::needs::{busybox, needs};
use crate::place::directory;

/// A root file system.
fn root_file_system() -> tempfile::TempDir {
    let busybox = busybox().expect("needed by every test that calls this");
    // On a disk: before Linux 6.3 a tmpfs, which /tmp often is, cannot be id-mapped.
    let root = tempfile::Builder::new().prefix("halsup-test-").tempdir_in("/var/tmp").expect("make a directory");
    fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("open it to all");
    for dir in ["bin", "etc", "proc", "dev", "sys", "run", "tmp", "srv"] {
        fs::create_dir(root.path().join(dir)).expect("make a directory");
    }
    fs::copy(busybox, root.path().join("bin/busybox")).expect("copy busybox");
    for tool in
        ["sh", "sleep", "cat", "ls", "id", "mkdir", "rm", "touch", "chmod", "readlink", "grep", "mknod", "mount"]
    {
        symlink("busybox", root.path().join("bin").join(tool)).expect("link a tool");
    }
    fs::write(root.path().join("etc/marker"), "of the directory\n").expect("write a file");
    fs::set_permissions(root.path().join("srv"), std::os::unix::fs::PermissionsExt::from_mode(0o1777))
        .expect("open it");
    root
}

/// Every path below a directory, with kind, mode, owner and content.
fn picture(dir: &Path, all: &mut BTreeSet<String>) {
    use std::os::unix::fs::MetadataExt as _;
    for entry in fs::read_dir(dir).expect("list").flatten() {
        let meta = entry.metadata().expect("look at it");
        let content = if meta.is_file() { fs::read(entry.path()).expect("read").len() } else { 0 };
        all.insert(format!(
            "{} {:o} {} {} {content} {}",
            entry.path().display(),
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime_nsec()
        ));
        if meta.is_dir() {
            picture(&entry.path(), all);
        }
    }
}

const LOOK: &str = "
echo root=$(ls / | tr '\\n' ' ' 2>/dev/null || ls /)
echo marker=$(cat /etc/marker)
echo cwd=$(pwd)
echo uid=$(id -u)
(echo mine > /srv/new) 2>/dev/null && echo srv=written || echo srv=refused
(echo mine > /etc/marker) 2>/dev/null && echo etc=written || echo etc=refused
echo marker_now=$(cat /etc/marker)
(mkdir /made) 2>/dev/null && echo top=written || echo top=refused
(rm /bin/cat) 2>/dev/null && echo cat=removed || echo cat=kept
(echo x > /tmp/x) 2>/dev/null && echo tmp=written || echo tmp=refused
(echo x > own) 2>/dev/null && echo own=written || echo own=refused
(mknod /srv/dev c 1 1) 2>/dev/null && echo device=made || echo device=refused
(echo x > /proc/sys/kernel/core_pattern) 2>/dev/null && echo sysctl=written || echo sysctl=refused
echo host=$(ls -d /lower /stage /new /carry /work /usr /var /root 2>/dev/null)
echo dev=$(ls /dev)
echo told=all
exec sleep 100000
";

#[test]
fn a_directory_is_the_root_and_stays_as_it_was() {
    needs!(Root, CgroupTree, Overlay, Busybox);
    let root = root_file_system();
    let mut before = BTreeSet::new();
    picture(root.path(), &mut before);
    for identity in identities().filter(|identity| *identity != "host:nobody") {
        let config = format!(
            "[pool.web]\nidentity = '{identity}'\nroot = '{}'\nlink = ['/etc/hostname']\n{}",
            root.path().display(),
            shell(LOOK)
        );
        let mut daemon = Daemon::start(&config);
        let lines = daemon.wait_until("its words or its end", |daemon| {
            let said = crate::look::lines(daemon, "web.0");
            let ended = crate::look::certificates(daemon, "web.0");
            assert!(ended.is_empty(), "{identity}: {ended:?}\n{said:?}");
            Some(said).filter(|said| said.iter().any(|line| line == "told=all"))
        });
        let told = |key: &str| lines.iter().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap_or("?");
        assert_eq!(told("marker"), "of the directory", "{identity}: {lines:?}");
        assert_eq!(told("cwd"), "/run/worker/work", "{identity}");
        assert_eq!((told("srv"), told("tmp"), told("own")), ("written", "written", "written"), "{identity}: {lines:?}");
        // Root inside, of the directory or of nothing: the writes go into the overlay.
        let owns = identity != "dynamic";
        assert_eq!(told("etc"), if owns { "written" } else { "refused" }, "{identity}: {lines:?}");
        assert_eq!(told("top"), if owns { "written" } else { "refused" }, "{identity}: {lines:?}");
        assert_eq!(told("marker_now"), if owns { "mine" } else { "of the directory" }, "{identity}");
        assert_eq!(told("cat"), if owns { "removed" } else { "kept" }, "{identity}");
        assert_eq!((told("device"), told("sysctl"), told("host")), ("refused", "refused", ""), "{identity}: {lines:?}");
        assert!(told("dev").contains("null") && !told("dev").contains("sda"), "{identity}: {lines:?}");
        assert_eq!(daemon.cli(&["restart", "web"]).status, 0);
        daemon.wait_until("a fresh overlay", |daemon| {
            let said = crate::look::lines(daemon, "web.0");
            Some(()).filter(|()| said.iter().filter(|line| *line == "marker=of the directory").count() == 2)
        });
        assert_eq!(daemon.stop(), 0);
        let left: Vec<_> = fs::read_dir(daemon.path("state/overlay")).expect("list overlays").flatten().collect();
        assert!(left.is_empty(), "{identity}: {left:?}");
        let mut after = BTreeSet::new();
        picture(root.path(), &mut after);
        assert_eq!(before, after, "{identity}");
    }
}

#[test]
fn a_root_whose_own_places_are_links_or_missing_is_refused() {
    needs!(Root, CgroupTree, Overlay, Busybox);
    for place in ["proc", "dev", "sys", "run", "tmp"] {
        for planted in [Some("/etc"), Some("bin"), None] {
            let root = root_file_system();
            fs::remove_dir(root.path().join(place)).expect("remove it");
            if let Some(target) = planted {
                symlink(target, root.path().join(place)).expect("plant a link");
            }
            let config = format!("[pool.web]\nroot = '{}'\ncommand = ['/bin/sleep', '1000']\n", root.path().display());
            let refusal = Daemon::try_start(directory(), &[], &config).err().expect("it is refused");
            let sentence = format!("{place} in it has to be a directory, not missing and not a symbolic link");
            assert!(refusal.contains(&sentence), "{refusal}");
        }
    }
}

#[test]
fn a_link_that_a_root_plants_later_leads_nowhere() {
    needs!(Root, CgroupTree, Overlay, Busybox);
    let root = root_file_system();
    let config = format!(
        "[pool.web]\nroot = '{}'\nrestart = false\n{}",
        root.path().display(),
        shell("echo up; exec sleep 100000")
    );
    let mut daemon = Daemon::start(&config);
    wait_healthy(&mut daemon, 1);
    wait_line(&mut daemon, "web.0", |line| line == "up");
    // The directory is the operator's; whoever changes it under a running daemon must still not reach the host.
    let host = directory();
    for place in ["proc", "dev", "run"] {
        fs::remove_dir(root.path().join(place)).expect("remove it");
        symlink(host.path(), root.path().join(place)).expect("plant a link");
        assert_eq!(daemon.cli(&["stop", "web"]).status, 0);
        daemon.cli(&["start", "web"]);
        wait_certificate(&mut daemon, "web.0", 1);
        assert_eq!(fs::read_dir(host.path()).expect("list").count(), 0, "{place}");
        fs::remove_file(root.path().join(place)).expect("remove the link");
        fs::create_dir(root.path().join(place)).expect("make it again");
    }
}
