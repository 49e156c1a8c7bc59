//! Volumes and backups that are brought back by hand: the command, or the process that reads the archive for it, is killed at
//! a system call (HARDENING F13). Afterwards the volumes are the old ones or the new ones, whole; what was not finished is
//! swept by `halsup gc`.

#![expect(clippy::disallowed_methods, reason = "deadlines of tests run on the real clock")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::checker::{SETTLE, pause};
use crate::site::Site;
use crate::tracer::{Outcome, Victim};
use crate::{say, setting};

/// Boundaries of each command that a sample takes.
const SAMPLE: u64 = 16;

/// How long is waited between two sweeps.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// What is on the disk: path, mode, owner and content.
type Picture = BTreeMap<String, String>;

/// What is killed, and by which command it comes to be.
const ACTS: [(&str, &[&str], Victim); 4] = [
    ("volume-import", &["volume", "import", "data", "{DIR}/data.tar.gz", "--replace"], Victim::Itself),
    ("volume-import-reader", &["volume", "import", "data", "{DIR}/data.tar.gz", "--replace"], Victim::Child),
    ("restore", &["restore", "{DIR}/backup.tar.gz", "--replace"], Victim::Itself),
    ("restore-reader", &["restore", "{DIR}/backup.tar.gz", "--replace"], Victim::Child),
];

/// The volumes, without what is said of when they were made.
fn picture(site: &Site) -> Picture {
    let top = site.path("state/volumes");
    let mut told = Picture::new();
    let mut left = vec![top.clone()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let (path, meta) = (entry.path(), entry.metadata().expect("look at it"));
            if meta.is_dir() {
                left.push(path.clone());
            }
            let content = if meta.is_file() { fs::read(&path).expect("read it") } else { Vec::new() };
            let name = path.strip_prefix(&top).expect("it is below").display().to_string();
            if !name.ends_with("volume.json") {
                told.insert(
                    name,
                    format!("{:o} {}:{} {}", meta.mode(), meta.uid(), meta.gid(), content.escape_ascii()),
                );
            }
        }
    }
    told
}

fn fill(data: &Path, what: &str) {
    fs::create_dir_all(data.join("dir/below")).expect("make directories");
    for name in ["first", "dir/second", "dir/below/third"] {
        fs::write(data.join(name), format!("{what} {name}")).expect("write a file");
    }
}

/// Runs a command of the program to its end; its exit status.
fn tool(site: &Site, words: &[&str]) -> Option<i32> {
    let mut command = site.tool(words);
    command.stdin(Stdio::null()).stdout(Stdio::null()).status().expect("run the program").code()
}

/// A state directory with two volumes, and archives of what is to become of them; what they are like before and after.
fn prepare(words: &[&str]) -> (Site, Vec<String>, Picture, Picture) {
    let site = Site::new("");
    let words: Vec<String> =
        words.iter().map(|word| word.replace("{DIR}", &site.path("").display().to_string())).collect();
    let words: Vec<String> = words.iter().map(|word| word.replace("//", "/")).collect();
    let data = site.path("state/volumes/data/data");
    for volume in ["data", "other"] {
        let dir = site.path(&format!("state/volumes/{volume}"));
        fill(&dir.join("data"), "new");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).expect("close it");
    }
    let at = |name: &str| site.path(name).display().to_string();
    assert_eq!(tool(&site, &["volume", "export", "data", "-o", &at("data.tar.gz")]), Some(0), "{}", site.log());
    assert_eq!(tool(&site, &["backup", "-o", &at("backup.tar.gz")]), Some(0), "{}", site.log());
    let new = picture(&site);
    fs::remove_dir_all(data.join("dir")).expect("remove a directory");
    fs::write(data.join("older"), "old").expect("write a file");
    let old = picture(&site);
    assert_ne!(old, new);
    (site, words, old, new)
}

/// One round; what is wrong, and how the victim ended.
fn play(words: &[&str], victim: Victim, boundary: u64) -> (Outcome, Option<String>) {
    let (site, words, old, new) = prepare(words);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (mut child, traced) = site.traced_tool(&words, victim);
    let outcome = traced.run_until_of(victim, boundary);
    child.wait().unwrap_or_default();
    let now = picture(&site);
    let volumes = |all: &Picture| -> Picture {
        all.iter().filter(|(name, _)| !name.starts_with('.')).map(|(name, what)| (name.clone(), what.clone())).collect()
    };
    let mut wrong = None;
    if volumes(&now) != old && volumes(&now) != new {
        wrong = Some(format!("the volumes are neither the old ones nor the new ones: {now:#?}"));
    } else if victim == Victim::Child && matches!(outcome, Outcome::Killed(_)) && now != old {
        wrong = Some(format!("the reader was killed, and the volumes are not as they were: {now:#?}"));
    }
    // A process that was to end with the one that was killed may hold a lock for a moment longer.
    let deadline = Instant::now() + SETTLE;
    let is_swept = || picture(&site) == volumes(&now) && !site.path("state/restore.tmp").exists();
    while tool(&site, &["gc"]) != Some(0) || !is_swept() {
        if Instant::now() > deadline {
            wrong = wrong.or_else(|| Some(format!("something is left: {:#?}", picture(&site))));
            break;
        }
        pause(LOOK_AGAIN);
    }
    if tool(&site, &words) != Some(0) || picture(&site) != new {
        wrong = wrong.or(Some("it cannot be done again".to_owned()));
    }
    (outcome, wrong.map(|wrong| format!("{wrong}\n{}", site.log())))
}

pub(crate) fn run() {
    let full = setting("HALSUP_KILL").as_deref() == Some("full");
    let only = setting("HALSUP_KILL_ONLY").unwrap_or_default();
    let mut violations = 0;
    for (name, words, victim) in ACTS {
        if !only.split(',').any(|part| name.contains(part)) {
            continue;
        }
        let (outcome, wrong) = play(words, victim, u64::MAX);
        assert_eq!(wrong, None, "{name}");
        let Outcome::Ended(all) = outcome else { panic!("{name}: {outcome:?}") };
        assert!(all > 50, "{name}: {all} boundaries are too few to be all");
        let step = if full { 1 } else { (all / SAMPLE).max(1) };
        let mut killed = 0;
        for boundary in (1..=all).step_by(usize::try_from(step).expect("it fits")) {
            let (outcome, wrong) = play(words, victim, boundary);
            killed += u32::from(matches!(outcome, Outcome::Killed(_)));
            if let Some(wrong) = wrong {
                violations += 1;
                say(&format!("{name}:{boundary} {outcome:?}: {wrong}"));
            }
        }
        say(&format!("{name:<20} {all:>10} {killed:>7}"));
    }
    assert_eq!(violations, 0, "the violations are above");
}
