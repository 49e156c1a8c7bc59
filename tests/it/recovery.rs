//! Volumes out of archives and into them, backup, restore, reset and the remains of what was killed.

#![expect(
    clippy::disallowed_types,
    reason = "commands are killed in the middle, and another program reads what they made"
)]
#![expect(clippy::disallowed_methods, reason = "how long a command takes says when to kill it")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::fixture::Daemon;
use crate::look::{wait_healthy, wait_line};
use crate::needs::needs;
use crate::place::{Place, directory};

/// How often a file is packed that somebody swaps: so often, or where that takes long, at least so often.
const SWAP_ROUNDS: u32 = 1_000;
const SWAP_ROUNDS_MIN: u32 = 40;
const SWAP_TIME: std::time::Duration = std::time::Duration::from_secs(30);

const SLEEPER: &str = "[pool.web]\ncommand = ['sleep', 'infinity']\n";

/// Everything below a directory: path, kind, mode, owner, content or target.
fn picture(dir: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(at) = left.pop() {
        for entry in fs::read_dir(&at).expect("list").flatten() {
            let path = entry.path();
            let meta = fs::symlink_metadata(&path).expect("look at it");
            let content = if meta.is_dir() {
                left.push(path.clone());
                String::new()
            } else if meta.file_type().is_symlink() {
                fs::read_link(&path).expect("read the link").display().to_string()
            } else if meta.is_file() {
                format!("{:?}", fs::read(&path).expect("read"))
            } else {
                String::new()
            };
            let name = path.strip_prefix(dir).expect("below it").display().to_string();
            let mtime = if meta.is_dir() { 0 } else { meta.mtime() };
            all.insert(name, format!("{:o} {} {} {mtime} {content}", meta.mode(), meta.uid(), meta.gid()));
        }
    }
    all
}

/// What a worker may leave in a volume.
fn fill(data: &Path) {
    fs::create_dir_all(data.join("one/two")).expect("make directories");
    fs::write(data.join("one/file"), b"content\n").expect("write");
    fs::write(data.join("one/two/large"), vec![7; 3 << 20]).expect("write");
    fs::write(data.join("empty"), b"").expect("write");
    fs::hard_link(data.join("one/file"), data.join("again")).expect("link");
    symlink("/etc/shadow", data.join("absolute")).expect("link");
    symlink("one/file", data.join("relative")).expect("link");
    fs::write(data.join("x".repeat(200)), b"a long name").expect("write");
    fs::set_permissions(data.join("one"), fs::Permissions::from_mode(0o700)).expect("close it");
    fs::set_permissions(data.join("empty"), fs::Permissions::from_mode(0o000)).expect("close it");
    std::os::unix::fs::chown(data.join("one/two"), Some(1000), Some(100)).expect("give it away");
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .map(|entries| entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.sort();
    names
}

#[test]
fn what_a_volume_holds_goes_out_and_comes_back_the_same() {
    needs!(Root, CgroupTree, Userns);
    let daemon = Daemon::start(SLEEPER);
    assert_eq!(daemon.cli(&["volume", "create", "chromadb"]).status, 0);
    let data = daemon.path("state/volumes/chromadb/data");
    fill(&data);
    let before = picture(&data);
    let archive = daemon.path("out.tar.gz");
    let at = archive.to_str().expect("ASCII");
    let exported = daemon.cli(&["volume", "export", "chromadb", "-o", at]);
    assert_eq!(exported.status, 0, "{exported:?}");
    assert!(exported.stdout.contains("entries, 3M"), "{exported:?}");
    assert_eq!(fs::metadata(&archive).expect("it is there").permissions().mode() & 0o777, 0o600);
    // Another tar reads it too.
    let listed = Command::new("tar").arg("tzf").arg(&archive).output().expect("run tar");
    assert!(listed.status.success() && String::from_utf8_lossy(&listed.stdout).contains("one/two/large"));
    let again = daemon.cli(&["volume", "export", "chromadb", "-o", at]);
    assert!(again.status == 1 && again.stderr.contains("File exists"), "{again:?}");

    let imported = daemon.cli(&["volume", "import", "copy", at]);
    assert_eq!(imported.status, 0, "{imported:?}");
    assert_eq!(picture(&daemon.path("state/volumes/copy/data")), before);
    let refused = daemon.cli(&["volume", "import", "copy", at]);
    assert!(refused.status == 1 && refused.stderr.contains("is there already"), "{refused:?}");
    fs::write(daemon.path("state/volumes/copy/data/new"), b"x").expect("write");
    assert_eq!(daemon.cli(&["volume", "import", "copy", at, "--replace"]).status, 0);
    assert_eq!(picture(&daemon.path("state/volumes/copy/data")), before);
    assert_eq!(entries(&daemon.path("state/volumes")), ["chromadb", "copy"]);
    let missing = daemon.cli(&["volume", "export", "nothing", "-o", "/dev/null/x"]);
    assert_eq!(missing.status, 5, "{missing:?}");
}

#[test]
fn a_pipe_leads_from_volume_to_volume() {
    needs!(Root, CgroupTree, Userns);
    let daemon = Daemon::start(SLEEPER);
    assert_eq!(daemon.cli(&["volume", "create", "one"]).status, 0);
    fill(&daemon.path("state/volumes/one/data"));
    let mut export = daemon.place().command(&["volume", "export", "one", "-o", "-"]);
    let mut export = export.stdout(Stdio::piped()).spawn().expect("run it");
    let mut import = daemon.place().command(&["volume", "import", "two", "-"]);
    let imported = import.stdin(export.stdout.take().expect("piped")).output().expect("run it");
    assert!(imported.status.success(), "{imported:?}");
    assert!(export.wait().expect("reap it").success());
    assert_eq!(picture(&daemon.path("state/volumes/two/data")), picture(&daemon.path("state/volumes/one/data")));
}

#[test]
fn hostile_archives_leave_the_volume_as_it_was() {
    needs!(Root, CgroupTree, Userns, Python3);
    let daemon = Daemon::start(SLEEPER);
    assert_eq!(daemon.cli(&["volume", "create", "data"]).status, 0);
    fs::write(daemon.path("state/volumes/data/data/kept"), b"kept").expect("write");
    let before = picture(&daemon.path("state/volumes"));
    let script = r"
import io, sys, tarfile
def entry(tar, name, kind=tarfile.REGTYPE, link='', data=b'evil'):
    info = tarfile.TarInfo(name); info.type = kind; info.linkname = link
    info.size = len(data) if kind == tarfile.REGTYPE else 0
    tar.addfile(info, io.BytesIO(data))
which, at = sys.argv[1:]
with tarfile.open(at, 'w:gz') as tar:
    if which == 'dots': entry(tar, '../../../../escaped')
    if which == 'through': entry(tar, 'l', tarfile.SYMTYPE, '/'); entry(tar, 'l/escaped')
    if which == 'hard': entry(tar, 'h', tarfile.LNKTYPE, '/etc/passwd')
if which == 'cut':
    with tarfile.open(at, 'w:gz') as tar: entry(tar, 'x', data=bytes(1 << 20))
    whole = open(at, 'rb').read(); open(at, 'wb').write(whole[:len(whole) // 2])
if which == 'none': open(at, 'wb').write(b'no archive at all' * 100)
";
    for which in ["dots", "through", "hard", "cut", "none"] {
        let archive = daemon.path(which);
        let made = Command::new("python3").args(["-c", script, which]).arg(&archive).status().expect("run python");
        assert!(made.success());
        for arguments in [&["volume", "import", "data", "--replace"][..], &["volume", "import", "new"]] {
            let output = daemon.cli(&[arguments, &[archive.to_str().expect("ASCII")]].concat());
            assert_eq!(output.status, 1, "{which}: {output:?}");
            assert!(output.stderr.starts_with("halsup: ") && output.stderr.lines().count() == 1, "{which}: {output:?}");
        }
        assert_eq!(picture(&daemon.path("state/volumes")), before, "{which}");
    }
    assert!(!Path::new("/escaped").exists());
}

#[test]
fn a_volume_that_is_in_use_is_not_replaced() {
    needs!(Root, CgroupTree, Userns);
    let mut daemon = Daemon::start("[pool.web]\nvolumes = ['data:/data']\ncommand = ['sleep', 'infinity']\n");
    wait_healthy(&mut daemon, 1);
    let archive = daemon.path("out.tar.gz");
    let at = archive.to_str().expect("ASCII");
    assert_eq!(daemon.cli(&["volume", "export", "data", "-o", at]).status, 0);
    let refused = daemon.cli(&["volume", "import", "data", at, "--replace"]);
    assert!(refused.status == 1 && refused.stderr.contains("in use by web: halsup stop web first"), "{refused:?}");
    assert_eq!(daemon.cli(&["stop", "web"]).status, 0);
    assert_eq!(daemon.cli(&["volume", "import", "data", at, "--replace"]).status, 0);
}

#[test]
fn a_backup_is_listed_and_brought_back_whole_into_an_empty_place() {
    needs!(Root, CgroupTree, Userns);
    let mut daemon = Daemon::start(SLEEPER);
    for name in ["hal9000-chromadb", "hal9000-memorybank"] {
        assert_eq!(daemon.cli(&["volume", "create", name]).status, 0);
        fill(&daemon.path(&format!("state/volumes/{name}/data")));
    }
    let before = picture(&daemon.path("state/volumes"));
    let made = daemon.cli(&["backup", "--json"]).json();
    assert_eq!(made["volumes"], serde_json::json!(["hal9000-chromadb", "hal9000-memorybank"]));
    let path = made["path"].as_str().expect("a path").to_owned();
    assert!(path.starts_with(daemon.path("state.backups/halsup-backup-").to_str().expect("ASCII")), "{path}");
    for spelling in ["--list", "--list-backups"] {
        let listed = daemon.cli(&["backup", spelling]);
        assert!(listed.stdout.contains(&path), "{listed:?}");
    }
    let running = daemon.cli(&["restore", &path]);
    assert!(running.status == 1 && running.stderr.contains("halsup daemon stop"), "{running:?}");

    // Back into the same place, from which something was lost.
    assert_eq!(daemon.stop(), 0);
    fs::remove_dir_all(daemon.path("state/volumes/hal9000-chromadb/data/one")).expect("lose it");
    fs::create_dir_all(daemon.path("state/volumes/other/data")).expect("make another");
    let others = daemon.cli(&["restore", "latest"]);
    assert!(others.status == 1 && others.stderr.contains("does not have other"), "{others:?}");
    let restored = daemon.cli(&["restore", "latest", "--replace"]);
    assert_eq!(restored.status, 0, "{restored:?}");
    assert_eq!(picture(&daemon.path("state/volumes")), before);
    assert!(!daemon.path("state/restore.tmp").exists());

    // And into an empty one.
    let place = Place::new(SLEEPER);
    assert_eq!(place.cli(&["restore", &path]).status, 0);
    assert_eq!(picture(&place.path("state/volumes")), before);
    let other = Daemon::start_in(place);
    let listed = other.cli(&["volume", "ls", "--json"]).json();
    assert_eq!(listed["volumes"].as_array().map(Vec::len), Some(2), "{listed}");
}

#[test]
fn a_backup_that_is_not_whole_or_not_one_changes_nothing() {
    needs!(Root, CgroupTree, Userns, Python3);
    let mut daemon = Daemon::start(SLEEPER);
    assert_eq!(daemon.cli(&["volume", "create", "data"]).status, 0);
    fill(&daemon.path("state/volumes/data/data"));
    let good = daemon.path("good.tar.gz");
    assert_eq!(daemon.cli(&["backup", "-o", good.to_str().expect("ASCII")]).status, 0);
    assert_eq!(daemon.stop(), 0);
    let before = picture(&daemon.path("state/volumes"));
    let script = r"
import io, json, sys, tarfile
which, good, at = sys.argv[1:]
if which == 'cut':
    whole = open(good, 'rb').read(); open(at, 'wb').write(whole[:len(whole) * 2 // 3]); sys.exit()
with tarfile.open(good) as source, tarfile.open(at, 'w:gz') as target:
    for info in source:
        data = source.extractfile(info).read() if info.isreg() else None
        if info.name == 'backup.json':
            about = json.loads(data)
            if which == 'format': about['format'] = 2
            if which == 'name': about['volumes'] = ['../../etc']
            if which == 'more': about['volumes'].append('ghost')
            if which == 'nonsense': data = b'[' * 1000
            if which == 'field': about['binds'] = ['/:/host']
            if which != 'nonsense': data = json.dumps(about).encode()
            if which == 'headless': continue
        if which == 'missing' and info.name.endswith('one/file'): continue
        if which == 'endless' and info.name == 'backup-end.json': continue
        if which == 'link' and info.name == 'volumes/data/data': info.type = tarfile.SYMTYPE; info.linkname = '/etc'
        if data is not None: info.size = len(data)
        target.addfile(info, io.BytesIO(data) if data is not None else None)
        if which == 'extra' and info.name == 'backup.json':
            other = tarfile.TarInfo('volumes/planted/data'); other.type = tarfile.DIRTYPE; target.addfile(other)
";
    let all = ["cut", "format", "name", "more", "nonsense", "field", "headless", "missing", "endless", "link", "extra"];
    for which in all {
        let wrong = daemon.path(which);
        let made = Command::new("python3").args(["-c", script, which]).args([&good, &wrong]).status();
        assert!(made.expect("run python").success(), "{which}");
        let output = daemon.cli(&["restore", "--replace", wrong.to_str().expect("ASCII")]);
        assert_eq!(output.status, 1, "{which}: {output:?}");
        assert!(output.stderr.lines().count() == 1, "{which}: {output:?}");
        assert_eq!(picture(&daemon.path("state/volumes")), before, "{which}");
        assert!(!daemon.path("state/restore.tmp").exists(), "{which}");
    }
    assert_eq!(daemon.cli(&["restore", good.to_str().expect("ASCII")]).status, 0);
}

#[test]
fn a_file_that_is_swapped_for_a_link_while_it_is_packed_gives_nothing_of_the_host() {
    needs!(Root, CgroupTree, Userns, Python3);
    let secret = directory();
    let canary = "canary-text-of-the-host";
    fs::write(secret.path().join("secret"), canary).expect("write");
    // The worker swaps a file, and a directory, for links to the host's and back, as fast as it can.
    let script = format!(
        "import os\nos.chdir('/data'); os.mkdir('d'); open('d/secret', 'w').write('mine'); open('f', 'w').write('mine')\n\
        os.symlink('{0}/secret', 'l'); os.symlink('{0}', 'm')\nprint('ready', flush=True)\n\
        import ctypes\nlibc = ctypes.CDLL(None)\n\
        while True:\n  libc.renameat2(-100, b'f', -100, b'l', 2); libc.renameat2(-100, b'd', -100, b'm', 2)\n",
        secret.path().display()
    );
    let mut daemon =
        Daemon::start(&format!("[pool.web]\nvolumes = ['data:/data']\ncommand = ['python3', '-c', '''{script}''']\n"));
    wait_line(&mut daemon, "web.0", |line| line == "ready");
    let begun = std::time::Instant::now();
    let archive = daemon.path("live.tar.gz");
    for round in 0..SWAP_ROUNDS {
        if round >= SWAP_ROUNDS_MIN && begun.elapsed() > SWAP_TIME {
            break;
        }
        let output = daemon.cli(&["volume", "export", "data", "--live", "-o", archive.to_str().expect("ASCII")]);
        assert_eq!(output.status, 0, "{output:?}");
        let text = Command::new("tar").arg("xzOf").arg(&archive).output().expect("run tar");
        assert!(!String::from_utf8_lossy(&text.stdout).contains(canary), "round {round}");
        fs::remove_file(&archive).expect("remove it");
    }
}

/// Runs a command and kills it after a while; whether it was in time.
fn kill_after(place: &Place, arguments: &[&str], microseconds: u64) -> bool {
    let mut child = place.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("run halsup");
    crate::checker::pause(std::time::Duration::from_micros(microseconds));
    let in_time = child.try_wait().expect("look at it").is_none();
    child.kill().expect("kill it");
    child.wait().expect("reap it");
    in_time
}

#[test]
fn a_kill_at_any_moment_leaves_the_old_or_the_new_and_nothing_else() {
    needs!(Root, CgroupTree, Userns);
    let mut daemon = Daemon::start(SLEEPER);
    assert_eq!(daemon.cli(&["volume", "create", "data"]).status, 0);
    let data = daemon.path("state/volumes/data/data");
    fill(&data);
    let new = picture(&daemon.path("state/volumes"));
    let (tar, backup) = (daemon.path("out.tar.gz"), daemon.path("backup.tar.gz"));
    let (tar, backup) = (tar.to_str().expect("ASCII"), backup.to_str().expect("ASCII"));
    assert_eq!(daemon.cli(&["volume", "export", "data", "-o", tar]).status, 0);
    assert_eq!(daemon.cli(&["backup", "-o", backup]).status, 0);
    assert_eq!(daemon.stop(), 0);
    fs::write(data.join("older"), b"older").expect("write");
    fs::remove_file(data.join("empty")).expect("remove");
    let old = picture(&daemon.path("state/volumes"));
    let started = std::time::Instant::now();
    assert_eq!(daemon.cli(&["volume", "import", "other", tar]).status, 0);
    let whole = u64::try_from(started.elapsed().as_micros()).expect("short").max(1_000);
    let mut killed = 0;
    for round in 0..60_u64 {
        let at = whole * (round * 37 % 60) / 60;
        let out = daemon.path("halfway.tar.gz");
        let out = out.to_str().expect("ASCII");
        let command: &[&str] = match round % 4 {
            0 => &["volume", "import", "third", tar],
            1 => &["volume", "import", "data", tar, "--replace"],
            2 => &["restore", backup, "--replace"],
            _ => &["backup", "-o", out],
        };
        killed += u32::from(kill_after(daemon.place(), command, at));
        // What is called a volume is one, whole; what is not is the next one's to sweep.
        let now = picture(&daemon.path("state/volumes/data"));
        let of = |all: &BTreeMap<String, String>| -> BTreeMap<String, String> {
            let own = |(name, what): (&String, &String)| Some((name.strip_prefix("data/")?.to_owned(), what.clone()));
            all.iter().filter_map(own).filter(|(name, _)| name != "volume.json").collect()
        };
        let now: BTreeMap<String, String> = now.into_iter().filter(|(name, _)| name != "volume.json").collect();
        assert!(now == of(&old) || now == of(&new), "round {round}");
        let halfway = Command::new("tar").args(["tzf", out]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(!Path::new(out).exists() || halfway.expect("run tar").success(), "an archive is whole or not there");
        fs::remove_file(out).unwrap_or_default();
        fs::remove_dir_all(daemon.path("state/volumes/third")).unwrap_or_default();
    }
    // How many that are depends on how busy the machine was when the first was timed.
    assert!(killed > 5, "{killed} of 60 were killed in the middle");
    let swept = daemon.cli(&["gc", "--json"]);
    assert_eq!(swept.status, 0, "{swept:?}");
    assert!(entries(&daemon.path("state/volumes")).iter().all(|name| !name.starts_with('.')));
    assert!(!daemon.path("state/restore.tmp").exists());
}

#[test]
fn orphans_are_ended_and_old_files_removed() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start("[pool.web]\non_supervisor_death = 'forever'\ncommand = ['sleep', 'infinity']\n");
    let worker = wait_healthy(&mut daemon, 1).remove(0);
    let pid = crate::look::pid(&worker);
    let old = daemon.path("state/logs/workers/gone.0.log");
    fs::write(&old, "old").expect("write");
    let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs::File::options().write(true).open(&old).expect("open").set_modified(long_ago).expect("age it");
    let kept = daemon.path("state/logs/workers/web.0.log");
    fs::File::options().write(true).open(&kept).expect("open").set_modified(long_ago).expect("age it");
    let beside = daemon.cli(&["gc", "--stale", "7d", "--json"]).json();
    assert_eq!((&beside["orphans"], &beside["files"]), (&0.into(), &1.into()), "{beside}");
    assert!(!old.exists() && kept.exists());
    crate::look::signal(i32::try_from(daemon.pid()).expect("a pid"), rustix::process::Signal::KILL);
    let swept = (0..).map(|_| daemon.cli(&["gc", "--json"]).json()).find(|swept| swept["orphans"] == 1);
    assert!(swept.is_some());
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "it was ended");
    daemon.start_again();
    wait_healthy(&mut daemon, 1);
}

#[test]
fn a_reset_begins_anew_and_asks_before() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start("[pool.web]\nvolumes = ['data:/data']\ncommand = ['sleep', 'infinity']\n");
    wait_healthy(&mut daemon, 1);
    let asked = daemon.cli(&["daemon", "reset"]);
    assert!(asked.status == 2 && asked.stderr.contains("say --yes if that is meant"), "{asked:?}");
    assert!(daemon.path("state/volumes/data/data").exists());
    let kept = daemon.cli(&["daemon", "reset", "--yes", "--keep-volumes"]);
    assert_eq!(kept.status, 0, "{kept:?}");
    assert_eq!(entries(&daemon.path("state")), ["lock", "logs", "volumes"]);
    let reset = daemon.cli(&["daemon", "reset", "--yes"]);
    assert_eq!(reset.status, 0, "{reset:?}");
    assert_eq!(entries(&daemon.path("state")), ["lock", "logs"]);
    let log = fs::read_to_string(daemon.path("state/logs/audit.log")).expect("it says who has done that");
    assert!(log.lines().count() == 1 && log.contains("event=reset user=0 resource=state "), "{log}");
    assert_eq!(entries(&daemon.path("state/logs")), ["audit.log"]);
    assert_eq!(entries(&daemon.path("run")), ["lock"]);
    assert_eq!(daemon.start_again().code(), Some(0));
    wait_healthy(&mut daemon, 1);
    assert!(daemon.path("state/volumes/data/data").exists(), "made on first use");
}
