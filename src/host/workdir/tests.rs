//! Work directories in a temporary directory: what is made, what a hostile tree can do to its removal.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use super::*;
use crate::host::test_needs::{Need, met};

struct Place {
    root: tempfile::TempDir,
    parent: OwnedFd,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("run")).unwrap();
        fs::create_dir(root.path().join("outside")).unwrap();
        fs::write(root.path().join("outside/canary"), "alive").unwrap();
        let parent = File::open(root.path().join("run")).unwrap().into();
        Self { root, parent }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.root.path().join(below)
    }

    fn text(&self, below: &str) -> String {
        self.path(below).display().to_string()
    }

    fn create(&self, patterns: &[&str], prefer: LinkKind) -> Result<(WorkDir, LinkReport), WorkDirError> {
        let patterns: Vec<String> = patterns.iter().map(|pattern| self.text(pattern)).collect();
        let links = expand_links(&patterns)?;
        let owner = Owner { uid: rustix::process::getuid().as_raw(), gid: rustix::process::getgid().as_raw() };
        WorkDir::create(self.parent.as_fd(), "w", &links, prefer, owner)
    }

    fn canary_lives(&self) {
        assert_eq!(fs::read_to_string(self.path("outside/canary")).unwrap(), "alive");
    }
}

#[test]
fn links_lead_to_their_sources() {
    let place = Place::new();
    fs::write(place.path("outside/b.py"), "b").unwrap();
    fs::write(place.path("outside/.hidden"), "h").unwrap();
    let (work, report) = place.create(&["outside/*"], LinkKind::Symlink).unwrap();
    assert_eq!(report, LinkReport { symlinks: 2, ..LinkReport::default() });
    assert_eq!(work.name(), "w");
    assert_eq!(fs::read_link(place.path("run/w/b.py")).unwrap(), place.path("outside/b.py"));
    assert!(!place.path("run/w/.hidden").exists());
    assert_eq!(fs::metadata(place.path("run/w")).unwrap().permissions().mode() & 0o7777, 0o700);
}

#[test]
fn the_directory_is_the_owners() {
    if !met(&[Need::Root]) {
        return;
    }
    let place = Place::new();
    let owner = Owner { uid: 54_321, gid: 54_322 };
    WorkDir::create(place.parent.as_fd(), "w", &[], LinkKind::Symlink, owner).unwrap();
    let meta = fs::metadata(place.path("run/w")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (54_321, 54_322));
}

#[test]
fn without_symlinks_a_file_is_linked_or_copied() {
    let place = Place::new();
    let (_, report) = place.create(&["outside/canary"], LinkKind::HardLink).unwrap();
    let (inside, outside) = (place.path("run/w/canary"), place.path("outside/canary"));
    assert_eq!(fs::read(&inside).unwrap(), b"alive");
    let same = fs::metadata(&inside).unwrap().ino() == fs::metadata(&outside).unwrap().ino();
    assert_eq!((report.hard_links, report.copies), if same { (1, 0) } else { (0, 1) });
    remove(place.parent.as_fd(), "w").unwrap();
    place.canary_lives();
}

#[test]
fn a_copy_has_no_set_user_id() {
    // Memory-backed files are another file system than the temporary directory's, so a hard link is impossible.
    let Ok(other) = tempfile::tempdir_in("/dev/shm") else {
        println!("skipped: needs /dev/shm");
        return;
    };
    let place = Place::new();
    let source = other.path().join("tool");
    fs::write(&source, "x").unwrap();
    fs::set_permissions(&source, fs::Permissions::from_mode(0o4755)).unwrap();
    let links = expand_links(&[source.display().to_string()]).unwrap();
    let owner = Owner { uid: rustix::process::getuid().as_raw(), gid: rustix::process::getgid().as_raw() };
    let (_, report) = WorkDir::create(place.parent.as_fd(), "w", &links, LinkKind::HardLink, owner).unwrap();
    assert_eq!(report, LinkReport { copies: 1, ..LinkReport::default() });
    assert_eq!(fs::metadata(place.path("run/w/tool")).unwrap().permissions().mode() & 0o7777, 0o755);
}

#[test]
fn a_source_behind_a_link_or_no_file_is_not_copied() {
    let place = Place::new();
    symlink("canary", place.path("outside/planted")).unwrap();
    symlink(place.path("outside"), place.path("way")).unwrap();
    fs::create_dir(place.path("outside/dir")).unwrap();
    for (source, expected) in
        [("outside/planted", "Too many levels"), ("way/canary", "Too many levels"), ("outside/dir", "")]
    {
        let error = place.create(&[source], LinkKind::HardLink).unwrap_err();
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(cause.starts_with(expected), "{source}: {error}: {cause}");
        assert!(!place.path("run/w").exists(), "nothing is left after {source}");
    }
}

#[test]
fn patterns_that_cannot_be_are_refused() {
    let place = Place::new();
    fs::create_dir(place.path("other")).unwrap();
    fs::write(place.path("other/canary"), "second").unwrap();
    let expand = |patterns: &[String]| expand_links(patterns).unwrap_err().to_string();
    assert!(expand(&["relative/*".into()]).contains("absolute"));
    assert!(expand(&["/**/x".into()]).contains("walk"));
    assert!(expand(&["/[".into()]).contains("not a valid pattern"));
    assert!(expand(&[place.text("none-*")]).contains("matches no file"));
    assert!(expand(&[place.text("*/canary")]).contains("same name"));
    let twice = expand_links(&[place.text("outside/*"), place.text("outside/canary")]).unwrap();
    assert_eq!(twice.len(), 1);
}

#[test]
fn an_existing_directory_is_not_taken() {
    let place = Place::new();
    symlink(place.path("outside"), place.path("run/w")).unwrap();
    let error = place.create(&[], LinkKind::Symlink).unwrap_err();
    assert!(matches!(error, WorkDirError::Create { source: Errno::EXIST, .. }), "{error:?}");
    remove(place.parent.as_fd(), "w").unwrap();
    assert!(fs::symlink_metadata(place.path("run/w")).is_err());
    place.canary_lives();
}

#[test]
fn removal_follows_no_link() {
    let place = Place::new();
    fs::create_dir_all(place.path("run/w/a/b")).unwrap();
    symlink(place.path("outside"), place.path("run/w/a/b/dir")).unwrap();
    symlink(place.path("outside/canary"), place.path("run/w/file")).unwrap();
    fs::write(place.path("run/w/a/.removing-1"), "planted").unwrap();
    remove(place.parent.as_fd(), "w").unwrap();
    assert!(!place.path("run/w").exists());
    place.canary_lives();
}

#[test]
fn names_are_single_components() {
    let place = Place::new();
    for name in ["", ".", "..", "../outside", "a/b", "a\0b"] {
        assert!(matches!(remove(place.parent.as_fd(), name), Err(WorkDirError::Name { .. })), "{name:?}");
    }
    remove(place.parent.as_fd(), "never-there").unwrap();
    place.canary_lives();
}

/// Nests `depth` directories, each with a link out of the tree.
fn nest(place: &Place, depth: usize) {
    mkdirat(&place.parent, "w", Mode::RWXU).unwrap();
    let mut dir = open_dir(place.parent.as_fd(), "w").unwrap();
    for _ in 0..depth {
        symlinkat(place.path("outside"), &dir, "out").unwrap();
        mkdirat(&dir, "d", Mode::RWXU).unwrap();
        dir = open_dir(dir.as_fd(), "d").unwrap();
    }
}

#[test]
fn depth_costs_neither_stack_nor_descriptors() {
    let place = Place::new();
    nest(&place, 20_000);
    // Names that the removal would use itself are taken.
    for number in 1..50 {
        mkdirat(&place.parent, format!("w/.removing-{number}"), Mode::RWXU).unwrap();
    }
    let outcome = std::thread::Builder::new().stack_size(64 << 10);
    let parent = place.parent.try_clone().unwrap();
    outcome.spawn(move || remove(parent.as_fd(), "w")).unwrap().join().unwrap().unwrap();
    assert!(!place.path("run/w").exists());
    place.canary_lives();
}

#[test]
fn a_budget_is_kept_and_progress_made() {
    let place = Place::new();
    nest(&place, 100);
    for number in 0..50 {
        fs::write(place.path(&format!("run/w/d/{number}")), "").unwrap();
    }
    let mut calls = 0;
    while remove_bounded(place.parent.as_fd(), "w", 60).unwrap() == Removal::MoreWork {
        calls += 1;
        assert!(calls < 100, "no progress");
    }
    assert!(calls > 1, "one call took more than its budget");
    assert!(!place.path("run/w").exists());
}

#[test]
fn no_mount_is_entered() {
    // Every Linux has a mount below /dev or /sys; entering is all that is tried.
    let crossing = [("/dev", "shm"), ("/dev", "pts"), ("/sys/fs", "cgroup")].into_iter().find(|(parent, name)| {
        let (parent, below) = (fs::metadata(parent), fs::metadata(Path::new(parent).join(name)));
        matches!((parent, below), (Ok(parent), Ok(below)) if parent.dev() != below.dev())
    });
    let Some((parent, name)) = crossing else {
        println!("skipped: needs a mount below /dev or /sys");
        return;
    };
    let parent = File::open(parent).unwrap();
    assert_eq!(open_dir(parent.as_fd(), name).unwrap_err(), Errno::XDEV);
}
