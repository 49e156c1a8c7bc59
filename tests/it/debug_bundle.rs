//! `halsup debug-bundle`: everything that helps is in the archive, and no secret is.

#![expect(clippy::disallowed_types, reason = "another program reads the archive")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::fixture::Daemon;
use crate::look::{wait_certificate, wait_healthy, wait_line};
use crate::needs::needs;

const CANARIES: [&str; 5] = [
    "canary-of-the-environment",
    "canary-on-the-command-line",
    "canary-in-the-log",
    "canary-of-a-token",
    "canary-bearer-word",
];

/// The files of an archive by name, without the directory that they are all in.
fn unpacked(archive: &Path) -> BTreeMap<String, String> {
    let dir = crate::place::directory();
    let status = Command::new("tar").arg("xzf").arg(archive).arg("-C").arg(dir.path()).status().expect("run tar");
    assert!(status.success(), "another tar reads it");
    let tops: Vec<_> = fs::read_dir(dir.path()).expect("list").flatten().map(|entry| entry.path()).collect();
    assert_eq!(tops.len(), 1, "{tops:?}");
    let mut files = BTreeMap::new();
    let mut left = tops.clone();
    while let Some(at) = left.pop() {
        if at.is_dir() {
            left.extend(fs::read_dir(&at).expect("list").flatten().map(|entry| entry.path()));
        } else {
            let name = at.strip_prefix(&tops[0]).expect("below it").to_string_lossy().into_owned();
            files.insert(name, fs::read_to_string(&at).expect("text"));
        }
    }
    files
}

fn assert_no_canary(files: &BTreeMap<String, String>) {
    for (name, text) in files {
        for canary in CANARIES {
            assert!(!text.contains(canary), "{canary} in {name}:\n{text}");
        }
    }
}

fn config() -> String {
    format!(
        "[pool.web]\nenv = {{ MY_PLACE = '{}' }}\ncommand = ['sh', '-c', '''echo \"$MY_PLACE\"; echo API_TOKEN={}; \
        echo 'Authorization: Bearer {}'; echo told; exec sleep infinity''', 'sh', '--password={}']\n\
        [pool.bad]\nrestart = false\nenv = {{ OTHER = '{}' }}\ncommand = ['sh', '-c', 'echo \"$OTHER\" >&2; exit 3']\n",
        CANARIES[0], CANARIES[2], CANARIES[4], CANARIES[1], CANARIES[0]
    )
}

#[test]
fn everything_that_helps_and_no_secret() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(&config());
    wait_line(&mut daemon, "web.0", |line| line == "told");
    wait_certificate(&mut daemon, "bad.0", 1);
    wait_healthy(&mut daemon, 1);
    let log = daemon.path("state/logs/workers/web.0.log");
    daemon.wait_until("a whole log", |_| fs::read_to_string(&log).ok().filter(|text| text.contains("told")));
    assert!(fs::read_to_string(&log).expect("the log").contains(CANARIES[0]), "the secrets are there to be found");
    let archive = daemon.path("bundle.tar.gz");
    let at = archive.to_str().expect("ASCII");
    let mut command = daemon.place().command(&["debug-bundle", "-o", at]);
    let output = crate::place::run(command.env("SOME_TOKEN", CANARIES[3]));
    assert_eq!((output.status, output.stdout.as_str()), (0, format!("Debug bundle: {at}\n").as_str()), "{output:?}");
    assert_eq!(fs::metadata(&archive).expect("it is there").permissions().mode() & 0o777, 0o600);
    let files = unpacked(&archive);
    for wanted in [
        "version.txt",
        "status.json",
        "workers.json",
        "stats.json",
        "volumes.json",
        "events.json",
        "ends.json",
        "doctor.json",
        "config.toml",
        "state-files.txt",
        "certificates",
        "logs/audit.log",
        "logs/security.log",
        "logs/workers/web.0.log",
    ] {
        assert!(
            files.get(wanted).is_some_and(|text| !text.is_empty() || wanted.contains("security")),
            "{wanted} in {:?}",
            files.keys()
        );
    }
    assert_no_canary(&files);
    assert!(files["logs/workers/web.0.log"].contains("told") && files["logs/workers/web.0.log"].contains("<removed>"));
    assert!(files["config.toml"].contains("MY_PLACE = \"<removed>\""), "{}", files["config.toml"]);
    assert!(files["version.txt"].starts_with("halsup "));
    assert!(files["workers.json"].contains("web.0") && files["ends.json"].contains("exited 3"));
    // What is there is not written over.
    let again = daemon.cli(&["debug-bundle", "-o", at]);
    assert_eq!(again.status, 1, "{again:?}");
    assert!(again.stderr.contains("File exists"), "{again:?}");
}

#[test]
fn a_dead_daemon_leaves_logs_and_state() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(&config());
    wait_line(&mut daemon, "web.0", |line| line == "told");
    wait_certificate(&mut daemon, "bad.0", 1);
    assert_eq!(daemon.stop(), 0);
    let archive = daemon.path("bundle.tar.gz");
    let output = daemon.cli(&["debug-bundle", "--json", "-o", archive.to_str().expect("ASCII")]);
    let made = output.json();
    assert!(made["missing"][0].as_str().is_some_and(|what| what.contains("no halsup daemon answers")), "{made}");
    let files = unpacked(&archive);
    for wanted in
        ["missing.txt", "doctor.json", "config.toml", "certificates", "logs/audit.log", "logs/workers/web.0.log"]
    {
        assert!(files.contains_key(wanted), "{wanted} in {:?}", files.keys());
    }
    assert_no_canary(&files);
}
