//! What somebody else has put where the daemon makes its files: it is refused or left alone, never followed.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;

use crate::fixture::Daemon;
use crate::look::{wait_healthy, wait_line};
use crate::needs::needs;
use crate::place::directory;

const SLEEPER: &str = "[pool.web]\ncommand = ['sleep', 'infinity']\n";

/// A directory of somebody's with something in it, and what it is like.
struct Victim {
    dir: tempfile::TempDir,
}

impl Victim {
    fn new() -> Self {
        let dir = directory();
        fs::write(dir.path().join("file"), "precious").expect("write a file");
        fs::create_dir(dir.path().join("dir")).expect("make a directory");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o750)).expect("change its mode");
        Self { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn is_unharmed(&self) {
        let mut names: Vec<_> = fs::read_dir(self.path()).expect("list").flatten().map(|e| e.file_name()).collect();
        names.sort();
        assert_eq!(names, ["dir", "file"]);
        assert_eq!(fs::read_to_string(self.path().join("file")).expect("read the file"), "precious");
        assert_eq!(fs::metadata(self.path()).expect("look at it").permissions().mode() & 0o7777, 0o750);
        assert_eq!(fs::read_dir(self.path().join("dir")).expect("list").count(), 0);
    }
}

#[test]
fn links_planted_where_directories_are_made_are_not_followed() {
    needs!(Root, CgroupTree);
    for place in ["run", "state", "run/work", "run/notify", "state/overlay", "state/logs", "state/logs/workers"] {
        let victim = Victim::new();
        let dir = directory();
        let planted = dir.path().join(place);
        DirBuilder::new().recursive(true).mode(0o755).create(planted.parent().expect("a parent")).expect("make it");
        symlink(victim.path(), &planted).expect("plant a link");
        let started = Daemon::try_start(dir, &[], SLEEPER);
        // A link of root's own may be followed on the way to a directory of the daemon's; what is in there is then the
        // operator's choice. The victim's mode makes it fit.
        if ["run", "state", "state/logs", "state/logs/workers"].contains(&place) {
            drop(started);
            assert_eq!(fs::read_to_string(victim.path().join("file")).expect("read the file"), "precious", "{place}");
            continue;
        }
        let refusal = started.err().unwrap_or_else(|| panic!("a daemon started with {place} planted"));
        assert!(refusal.contains(place), "{place}: {refusal}");
        victim.is_unharmed();
    }
}

#[test]
fn links_planted_where_files_are_made_are_not_followed() {
    needs!(Root, CgroupTree);
    let files = ["state/lock", "run/control.sock", "run/control.tmp!", "state/logs/workers/web.0.log"];
    for place in files {
        let victim = Victim::new();
        let dir = directory();
        for (name, mode) in [("run", 0o755), ("state", 0o700), ("state/logs", 0o700), ("state/logs/workers", 0o700)] {
            DirBuilder::new().mode(mode).create(dir.path().join(name)).expect("make a directory");
        }
        symlink(victim.path().join("file"), dir.path().join(place)).expect("plant a link");
        match Daemon::try_start(dir, &[], "[pool.web]\ncommand = ['sh', '-c', 'echo evil; exec sleep infinity']\n") {
            Ok(mut daemon) if place.starts_with("run") => {
                wait_healthy(&mut daemon, 1);
                wait_line(&mut daemon, "web.0", |line| line == "evil");
            }
            Ok(daemon) => drop(daemon),
            Err(refusal) => assert!(refusal.contains("lock"), "{place}: {refusal}"),
        }
        victim.is_unharmed();
    }
}

/// Everything of a directory that somebody else could use, and why it is refused.
#[test]
fn directories_that_others_could_change_are_refused() {
    needs!(Root, CgroupTree);
    type Prepare = fn(&Path);
    let cases: [(&str, Prepare); 5] = [
        ("above", |dir| fs::set_permissions(dir, Permissions::from_mode(0o777)).expect("open it to all")),
        ("above", |dir| chown(dir, Some(65534), Some(65534)).expect("give it away")),
        ("itself", |dir| {
            fs::create_dir(dir.join("run")).expect("make it");
            fs::set_permissions(dir.join("run"), Permissions::from_mode(0o777)).expect("open it to all");
        }),
        ("itself", |dir| {
            fs::create_dir(dir.join("state")).expect("make it");
            chown(dir.join("state"), Some(65534), None).expect("give it away");
        }),
        ("a link of another's", |dir| {
            fs::set_permissions(dir, Permissions::from_mode(0o1777)).expect("open it to all");
            let elsewhere = dir.join("elsewhere");
            fs::create_dir(&elsewhere).expect("make it");
            symlink(&elsewhere, dir.join("run")).expect("plant a link");
            std::os::unix::fs::lchown(dir.join("run"), Some(65534), None).expect("give it away");
        }),
    ];
    for (what, prepare) in cases {
        let dir = directory();
        prepare(dir.path());
        let refusal = Daemon::try_start(dir, &[], SLEEPER).err().unwrap_or_else(|| panic!("{what} is used"));
        assert!(refusal.contains("it has to belong to root and be writable by nobody else"), "{what}: {refusal}");
    }
}

#[test]
fn a_sticky_directory_above_is_no_reason_to_refuse() {
    needs!(Root, CgroupTree);
    let dir = directory();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o1777)).expect("open it to all");
    let mut daemon = Daemon::try_start(dir, &[], SLEEPER).unwrap_or_else(|refusal| panic!("{refusal}"));
    wait_healthy(&mut daemon, 1);
}

#[test]
fn what_a_worker_planted_in_its_directory_is_removed_and_not_followed() {
    needs!(Root, CgroupTree);
    let victim = Victim::new();
    let target = victim.path().display();
    let plant = format!(
        "ln -s {target} link; ln -s {target}/file file; mkdir -p deep/er; ln -s {target} deep/er/link; ln -s / root; mkfifo pipe; \
         mkdir closed; touch closed/in; chmod 0 closed; echo planted; exec sleep infinity"
    );
    for identity in super::identities() {
        let config = format!("[pool.web]\nidentity = '{identity}'\n{}", super::shell(&plant));
        let mut daemon = Daemon::start(&config);
        wait_line(&mut daemon, "web.0", |line| line == "planted");
        for _ in 0..3 {
            assert_eq!(daemon.cli(&["restart", "web"]).status, 0);
        }
        assert_eq!(daemon.cli(&["stop", "web"]).status, 0);
        drop(daemon);
        victim.is_unharmed();
    }
}
