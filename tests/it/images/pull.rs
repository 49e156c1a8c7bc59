//! Pulling: through skopeo, which is a script here; by hand, at the daemon's start, later, or not at all.

#![expect(clippy::disallowed_types, reason = "runs the program with an environment of its own")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use super::archive::root_file_system;
use super::bundle::Layout;
use crate::fixture::Daemon;
use crate::look::{certificates, wait_healthy, wait_line};
use crate::needs::needs;
use crate::place::{directory, run};

const LOOK: &str = "command = ['/bin/sh', '-c', 'cat /etc/marker; exec sleep 100000']\n";

/// A directory with a skopeo that knows one image, and says what it was asked for; `gate` runs first.
fn skopeo(gate: &str) -> tempfile::TempDir {
    let dir = directory();
    let at = dir.path().display();
    let archive = Layout::of(&[root_file_system("pulled").end()]).tar();
    std::fs::write(dir.path().join("known.tar"), archive).expect("write an image");
    let script = format!(
        "#!/bin/sh\n{gate}\necho \"$@\" >> {at}/asked\nfor to in \"$@\"; do :; done\ncase \"$3\" in --quiet) ;; esac\n\
         case \"$*\" in *docker://known*) cp {at}/known.tar \"${{to#oci-archive:}}\" ;;\n\
         *) echo 'time=\"x\" level=fatal msg=\"manifest unknown\"' >&2; exit 1 ;; esac\n"
    );
    let program = dir.path().join("skopeo");
    std::fs::write(&program, script).expect("write a script");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("make it executable");
    dir
}

fn path_with(dir: &Path) -> String {
    format!("PATH={}:{}", dir.display(), std::env::var("PATH").expect("PATH is set"))
}

/// `halsup image pull` with a `PATH`.
fn pull(daemon: &Daemon, path: &str, name: &str) -> crate::place::Output {
    let mut command: Command = daemon.place().command(&["image", "pull", name]);
    let (_, value) = path.split_once('=').expect("NAME=VALUE");
    run(command.env("PATH", value))
}

#[test]
fn an_image_is_fetched_by_skopeo_and_what_goes_wrong_is_one_sentence() {
    needs!(Root, CgroupTree, Busybox);
    let bin = skopeo("");
    let daemon = Daemon::start("");
    let output = pull(&daemon, &path_with(bin.path()), "known:1");
    assert_eq!(output.status, 0, "{output:?}");
    assert_eq!(daemon.cli(&["image", "inspect", "known:1", "--json"]).json()["image"]["names"][0], "known:1");
    let asked = std::fs::read_to_string(bin.path().join("asked")).expect("it was asked");
    assert!(asked.starts_with("copy --quiet docker://known:1 oci-archive:/var/tmp/halsup-pull-"), "{asked}");
    let unknown = pull(&daemon, &path_with(bin.path()), "unknown:1");
    assert_eq!((unknown.status, unknown.stderr.contains("pull unknown:1: skopeo: ")), (1, true), "{unknown:?}");
    assert!(unknown.stderr.contains("manifest unknown"), "{unknown:?}");
    let none = pull(&daemon, "PATH=/nonexistent", "known:1");
    assert_eq!(
        (none.status, none.stderr.as_str()),
        (
            1,
            "halsup: pull known:1: skopeo is not installed: install it, or import an archive of the image by \
             `halsup image import FILE --name known:1`\n"
        )
    );
    // Of both, the one that failed too; others may be pulling beside this test.
    let asked = std::fs::read_to_string(bin.path().join("asked")).expect("it was asked");
    let archives: Vec<&str> = asked.lines().filter_map(|line| line.split("oci-archive:").nth(1)).collect();
    assert_eq!(archives.len(), 2, "{asked}");
    for archive in archives {
        let directory = Path::new(archive).parent().expect("it is in a directory of its own");
        assert!(directory.starts_with("/var/tmp") && !directory.exists(), "{archive} is left");
    }
}

#[test]
fn what_is_missing_is_pulled_before_the_daemon_is_ready() {
    needs!(Root, CgroupTree, Overlay, Busybox);
    let bin = skopeo("");
    let path = path_with(bin.path());
    let mut daemon = Daemon::start_under(&["env", &path, "WORKER_IMAGE=known"], &format!("[pool.web]\n{LOOK}"));
    // Ready is only who has its image.
    assert_eq!(daemon.cli(&["image", "inspect", "known", "--json"]).json()["image"]["used_by"][0], "web");
    wait_line(&mut daemon, "web.0", |line| line == "pulled");
    wait_healthy(&mut daemon, 1);
    assert_eq!(daemon.cli(&["inspect", "web.0", "--json"]).json()["workers"][0]["root"], "image:known:latest");
}

#[test]
fn a_lazy_pull_holds_nobody_back() {
    needs!(Root, CgroupTree, Overlay, Busybox);
    let gates = directory();
    let gate = gates.path().join("gate");
    rustix::fs::mknodat(rustix::fs::CWD, &gate, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
        .expect("make a pipe");
    let bin = skopeo(&format!("read go < {}", gate.display()));
    let path = path_with(bin.path());
    let config = format!("[pool.web]\nimage = 'known'\n{LOOK}");
    let mut daemon = Daemon::start_under(&["env", &path, "LAZY_IMAGE_PULL=true"], &config);
    let listed = daemon.cli(&["image", "ls", "--json"]).json();
    assert_eq!(listed["images"], serde_json::json!([]), "it is ready before its image is there");
    std::fs::write(&gate, "go\n").expect("open the gate");
    wait_line(&mut daemon, "web.0", |line| line == "pulled");
}

#[test]
fn nothing_is_pulled_where_that_is_to_be_skipped() {
    needs!(Root, CgroupTree, Busybox);
    let bin = skopeo("");
    let path = path_with(bin.path());
    let config = format!("[pool.web]\nimage = 'known'\n{LOOK}");
    let mut daemon = Daemon::start_under(&["env", &path, "SKIP_IMAGE_PULL=true"], &config);
    let missing = daemon.wait_until("a failed start", |daemon| certificates(daemon, "web.0").last().cloned());
    let text = missing["start_failure"]["text"].as_str().expect("a sentence");
    assert!(text.contains("image 'known:latest' not found: pull it by `halsup image pull known:latest`"), "{text}");
    assert!(!bin.path().join("asked").exists(), "nobody was asked");
}

#[test]
fn an_image_that_is_not_listed_is_no_root() {
    let place = crate::place::Place::new("image_allow = ['mine:1']\n[pool.web]\nimage = 'other:1'\ncommand = ['x']\n");
    let output = place.cli(&["check"]);
    assert_eq!(output.status, 2, "{output:?}");
    assert!(output.stderr.contains("Security violation: image 'other:1' not in allowlist"), "{output:?}");
}
