//! Named volumes: made, listed, bound into workers of every identity, kept when everything else goes, and removed.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use crate::fixture::Daemon;
use crate::look::{wait_healthy, wait_line};
use crate::needs::{busybox, needs};

/// A pool whose worker runs this script and then waits.
fn pool(name: &str, settings: &str, script: &str) -> String {
    let script = script.replace('{', "{{").replace('}', "}}");
    format!("[pool.{name}]\n{settings}command = ['sh', '-c', '''{script}\necho end; exec sleep infinity''']\n")
}

const WRITES: &str = "id -u; stat -c '%u %a' /data/kept; echo \"$0 was here\" > /data/kept/by-\"$(cat /proc/sys/kernel/hostname)\" && echo wrote
mkdir -p /data/kept/deep/er && echo more >> /data/kept/deep/er/file; ls /data/kept";

#[test]
fn every_identity_writes_one_volume_and_its_files_are_roots_on_the_disk() {
    needs!(Root, CgroupTree, Userns);
    let config: String = ["dynamic", "mapped", "host:nobody", "unsafe-root"]
        .iter()
        .enumerate()
        .map(|(number, identity)| {
            let settings = format!("identity = '{identity}'\nvolumes = ['hal9000-chromadb:/data/kept']\n");
            pool(&format!("p{number}"), &settings, WRITES)
        })
        .collect();
    let mut daemon = Daemon::start(&config);
    for number in 0..4 {
        let lines = wait_line(&mut daemon, &format!("p{number}.0"), |line| line == "end");
        assert_eq!(lines[1], format!("{} 755", lines[0]), "the volume is its worker's own");
        assert!(lines.contains(&"wrote".to_owned()), "{lines:?}");
    }
    let data = daemon.path("state/volumes/hal9000-chromadb/data");
    let by = |number: u32| data.join(format!("by-p{number}-0"));
    for number in 0..4 {
        let meta = fs::metadata(by(number)).expect("it was written");
        assert_eq!((meta.uid(), meta.gid()), (0, 0), "p{number}: ids on the disk are root's, whoever wrote");
    }
    // They all have the rights of an owner in what the others made.
    assert_eq!(fs::read_to_string(data.join("deep/er/file")).expect("it was written").lines().count(), 4);
}

#[test]
fn a_volume_outlives_its_workers_the_daemon_and_its_pool() {
    needs!(Root, CgroupTree);
    let script = "cat /data/chromadb/count 2>/dev/null; echo x >> /data/chromadb/count";
    let config = pool("web", "volumes = ['chromadb:/data/chromadb']\n", script);
    let mut daemon = Daemon::start(&config);
    wait_line(&mut daemon, "web.0", |line| line == "end");
    assert_eq!(daemon.cli(&["restart", "web"]).status, 0);
    wait_line(&mut daemon, "web.0", |line| line == "x");
    assert_eq!(daemon.stop(), 0);
    assert_eq!(daemon.start_again().code(), Some(0));
    daemon.wait_until("three starts", |daemon| {
        let count = fs::read_to_string(daemon.path("state/volumes/chromadb/data/count")).unwrap_or_default();
        (count == "x\nx\nx\n").then_some(())
    });
}

#[test]
fn what_is_read_only_cannot_be_written_and_what_the_host_lacks_is_not_made_on_it() {
    needs!(Root, CgroupTree);
    let script = "cat /halsup-test-place/plugins/given
(echo x > /halsup-test-place/plugins/new) 2>/dev/null && echo wrote || echo refused
(mkdir /halsup-test-place/other) 2>/dev/null && echo made || echo kept
(mkdir /halsup-test-top) 2>/dev/null && echo made || echo kept
echo mine > /usr/share/halsup-test/volume/file && cat /usr/share/halsup-test/volume/file
test -x /usr/bin/env && ls -d /etc /usr/share/doc | tr '\\n' ' '; readlink /proc/self/exe >/dev/null && echo alive
grep -c halsup-test /proc/self/mountinfo";
    let settings = "volumes = ['plugins:/halsup-test-place/plugins:ro', 'own:/usr/share/halsup-test/volume']\n";
    let config = format!("{}{}", pool("idle", "size = 1\n", "true"), "");
    let mut daemon = Daemon::start(&config);
    assert_eq!(daemon.cli(&["volume", "create", "plugins"]).stdout, "plugins\n");
    fs::write(daemon.path("state/volumes/plugins/data/given"), "from the volume\n").expect("write");
    daemon.place().configure(&pool("web", settings, script));
    assert_eq!(daemon.cli(&["daemon", "reload"]).status, 0);
    let lines = wait_line(&mut daemon, "web.0", |line| line == "end");
    assert_eq!(lines[..5], ["from the volume", "refused", "kept", "kept", "mine"], "{lines:?}");
    assert!(lines[5].starts_with("/etc /usr/share/doc") && lines[5].ends_with("alive"), "{lines:?}");
    assert!(!std::path::Path::new("/halsup-test-place").exists(), "made on the host");
    assert!(!std::path::Path::new("/usr/share/halsup-test").exists(), "made on the host");
}

#[test]
fn volumes_are_made_listed_counted_and_removed() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(&pool("web", "volumes = ['hal9000-memorybank:/data/membank']\n", "true"));
    wait_healthy(&mut daemon, 1);
    let made = daemon.cli(&["volume", "create", "hal9000-plugins", "--json"]).json();
    assert_eq!(made["created"], true);
    assert_eq!(daemon.cli(&["volume", "create", "hal9000-plugins", "--json"]).json()["created"], false);
    let data = daemon.path("state/volumes/hal9000-plugins/data");
    assert_eq!(made["path"], data.to_str().expect("ASCII"));
    fs::write(data.join("file"), vec![1; 1 << 20]).expect("write");
    let listed = daemon.cli(&["volume", "ls", "--size", "--json"]).json();
    let names: Vec<_> = listed["volumes"].as_array().expect("a list").iter().map(|one| one["name"].clone()).collect();
    assert_eq!(names, ["hal9000-memorybank", "hal9000-plugins"]);
    assert_eq!(listed["volumes"][0]["pools"], serde_json::json!(["web"]));
    assert!(listed["volumes"][1]["usage_bytes"].as_u64().is_some_and(|bytes| bytes >= 1 << 20), "{listed}");
    assert_eq!(listed["volumes"][1]["usage_inodes"], 2, "{listed}");
    assert!(listed["free_bytes"].as_u64().is_some_and(|free| free > 0), "{listed}");
    let inspected = daemon.cli(&["volume", "inspect", "hal9000-plugins"]).stdout;
    assert!(inspected.contains("size:") && inspected.contains(data.to_str().expect("ASCII")), "{inspected}");

    let refused = daemon.cli(&["volume", "rm", "hal9000-memorybank"]);
    assert_eq!(refused.status, 1, "{refused:?}");
    assert!(refused.stderr.contains("volume hal9000-memorybank is in use by web"), "{refused:?}");
    assert_eq!(daemon.cli(&["volume", "rm", "hal9000-plugins"]).status, 0);
    assert!(!data.exists());
    for verb in ["rm", "inspect"] {
        let missing = daemon.cli(&["volume", verb, "hal9000-plugins"]);
        assert_eq!((missing.status, missing.stderr.as_str()), (5, "halsup: volume hal9000-plugins does not exist\n"));
    }
    let wrong = daemon.cli(&["volume", "create", "../x"]);
    assert_eq!(wrong.status, 2, "{wrong:?}");
}

#[test]
fn a_removal_that_a_kill_interrupted_is_finished_by_the_next_daemon() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(&pool("web", "", "true"));
    let left = daemon.path("state/volumes/.removing-data-0/data/deep/deeper");
    fs::create_dir_all(&left).expect("make what a killed daemon would leave");
    fs::create_dir_all(daemon.path("state/volumes/.new-other/data")).expect("make it");
    assert_eq!(daemon.stop(), 0);
    assert_eq!(daemon.start_again().code(), Some(0));
    daemon.wait_until("an empty directory", |daemon| {
        fs::read_dir(daemon.path("state/volumes")).expect("list").next().is_none().then_some(())
    });
}

#[test]
fn a_volume_is_bound_into_a_root_directory_that_lacks_the_place() {
    needs!(Root, CgroupTree, Overlay, Busybox);
    let root = crate::place::directory();
    for dir in ["bin", "proc", "dev", "sys", "run", "tmp"] {
        fs::create_dir(root.path().join(dir)).expect("make a directory");
    }
    fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("open it to all");
    fs::copy(busybox().expect("needed above"), root.path().join("bin/sh")).expect("copy busybox");
    let settings = format!("root = '{}'\nvolumes = ['kept:/data/kept']\n", root.path().display());
    let script = "echo mine > /data/kept/file && read line < /data/kept/file && echo \"$line\"";
    // Without a program to sleep with, it stops itself.
    let command = format!("command = ['/bin/sh', '-c', '''{script}\necho end; kill -STOP $$''']\n");
    let mut daemon = Daemon::start(&format!("[pool.web]\n{settings}{command}"));
    let lines = wait_line(&mut daemon, "web.0", |line| line == "end");
    assert_eq!(lines[0], "mine");
    assert!(!root.path().join("data").exists(), "the root directory stays as it was");
}

#[test]
fn who_may_only_look_may_not_make_or_remove_volumes() {
    needs!(Root, CgroupTree);
    let daemon = Daemon::start(&format!("roles = [{{ uid = 65534, role = 'observe' }}]\n{}", pool("web", "", "true")));
    fs::set_permissions(daemon.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o711)).expect("let it in");
    let as_nobody = |arguments: &[&str]| {
        use std::os::unix::process::CommandExt as _;
        let mut command = crate::place::command();
        command.arg("--socket").arg(daemon.path("run/control.sock")).args(arguments);
        crate::place::run(command.uid(65_534).gid(65_534))
    };
    assert_eq!(daemon.cli(&["volume", "create", "data"]).status, 0);
    for denied in [["volume", "create", "other"], ["volume", "rm", "data"]] {
        let output = as_nobody(&denied);
        assert_eq!(output.status, 1, "{output:?}");
        assert!(output.stderr.contains("permission denied"), "{output:?}");
    }
    assert_eq!(as_nobody(&["volume", "ls"]).status, 0);
    assert!(daemon.path("state/volumes/data").exists() && !daemon.path("state/volumes/other").exists());
}

/// A daemon whose state lies on a disk of so much, which nobody else sees.
pub(crate) fn on_a_small_disk(size: &str, config: &str) -> Daemon {
    let dir = crate::place::directory();
    fs::create_dir(dir.path().join("state")).expect("make a directory");
    let state = dir.path().join("state").display().to_string();
    let script = format!("mount -t tmpfs -o size={size},mode=700 none \"$1\" && shift && exec \"$@\"");
    let apart = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script, "sh", &state];
    Daemon::try_start(dir, &apart, config).expect("it starts")
}

#[test]
#[expect(clippy::disallowed_types, reason = "commands see the disk that the daemon sees")]
fn a_full_disk_is_said_to_who_writes_and_to_who_asks() {
    needs!(Root, CgroupTree, Userns, Program("nsenter"));
    // A kernel from before 6.3 cannot map the ids of a tmpfs.
    // The log lies on the same disk: what is said while it is full has to wait.
    let script = "said=$(head -c 12000000 /dev/zero 2>&1 > /data/much; echo wrote $?); rm /data/much; \
                  echo \"$said\"; echo small > /data/small; cat /data/small";
    let mut daemon = on_a_small_disk("8m", &pool("web", "volumes = ['kept:/data']\n", script));
    let lines = wait_line(&mut daemon, "web.0", |line| line == "end");
    assert!(lines.iter().any(|line| line.contains("No space left on device")), "{lines:?}");
    assert!(lines.contains(&"wrote 1".to_owned()) && lines.contains(&"small".to_owned()), "{lines:?}");
    let pid = daemon.pid().to_string();
    let beside = |arguments: &[&str]| {
        let config = daemon.path("config.toml").display().to_string();
        let mut command = std::process::Command::new("nsenter");
        command.args(["--target", &pid, "--mount", "--"]).arg(crate::place::program()).args(["--config", &config]);
        crate::place::run(command.args(arguments))
    };
    let listed = beside(&["volume", "ls", "--json"]).json();
    assert!(listed["free_bytes"].as_u64().is_some_and(|free| free < 8 << 20), "{listed}");
    let doctor = beside(&["doctor", "--json"]).stdout;
    assert!(doctor.contains("\"room\"") && doctor.contains("halsup volume ls --size"), "{doctor}");
    let archive = daemon.path("much.tar");
    let made = std::process::Command::new("tar").arg("-cf").arg(&archive).args(["-C", "/usr/bin", "env"]).status();
    assert!(made.expect("run tar").success());
    let refused = beside(&["volume", "import", "other", archive.to_str().expect("ASCII")]);
    assert!(refused.status == 1 && refused.stderr.contains("the disk has only"), "{refused:?}");
    let names = beside(&["volume", "ls", "--json"]).json();
    assert_eq!(names["volumes"].as_array().map(Vec::len), Some(1), "nothing is left of it: {names}");
}
