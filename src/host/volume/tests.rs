//! Volumes in a directory of their own.

use super::*;
use crate::host::test_needs::{Need, met};

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let state = rustix::fs::open(dir.path(), DIRECTORY, Mode::empty()).unwrap();
    let store = Store::open(state.as_fd()).unwrap();
    (dir, store)
}

fn name(text: &str) -> VolumeName {
    VolumeName::parse(text).unwrap()
}

#[test]
fn a_volume_is_made_once_and_listed() {
    let (_dir, store) = store();
    let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    assert!(store.create(&name("hal9000-chromadb"), now).unwrap());
    assert!(!store.create(&name("hal9000-chromadb"), SystemTime::UNIX_EPOCH).unwrap(), "a second time changes nothing");
    assert!(store.create(&name("a"), now).unwrap());
    assert_eq!(store.names().unwrap(), [name("a"), name("hal9000-chromadb")]);
    assert_eq!(store.created(&name("hal9000-chromadb")).as_deref(), Some("2001-09-09T01:46:40Z"));
    assert!(store.unfinished().unwrap().is_empty());
    assert!(matches!(store.data(&name("b")), Err(VolumeError::Missing { .. })));
    assert!(store.room().unwrap().free_bytes > 0);
}

#[test]
fn what_a_kill_left_is_in_nobodys_way() {
    let (dir, store) = store();
    let at = dir.path().join("volumes");
    std::fs::create_dir_all(at.join(".new-a/data")).unwrap();
    std::fs::create_dir(at.join(".removing-a-0")).unwrap();
    assert!(store.names().unwrap().is_empty());
    assert!(store.create(&name("a"), SystemTime::UNIX_EPOCH).unwrap());
    let aside = store.set_aside(&name("a")).unwrap();
    assert_eq!(aside, ".removing-a-1");
    assert!(store.names().unwrap().is_empty());
    let mut left = store.unfinished().unwrap();
    left.sort();
    assert_eq!(left, [".removing-a-0", ".removing-a-1"]);
    removal::remove(&store, &left).unwrap();
    assert_eq!(std::fs::read_dir(&at).unwrap().count(), 0);
    assert!(matches!(store.set_aside(&name("a")), Err(VolumeError::Missing { .. })));
}

#[test]
fn a_link_in_the_place_of_a_volume_is_not_followed() {
    let (dir, store) = store();
    let at = dir.path().join("volumes");
    std::fs::create_dir_all(dir.path().join("elsewhere/data")).unwrap();
    std::os::unix::fs::symlink("../elsewhere", at.join("a")).unwrap();
    assert!(!store.exists(&name("a")).unwrap());
    assert!(store.data(&name("a")).is_err());
    store.create(&name("b"), SystemTime::UNIX_EPOCH).unwrap();
    std::fs::remove_dir(at.join("b/data")).unwrap();
    std::os::unix::fs::symlink("../../elsewhere/data", at.join("b/data")).unwrap();
    assert!(store.data(&name("b")).is_err());
}

#[test]
fn what_is_in_a_volume_is_counted_once_and_nothing_is_followed() {
    let (dir, store) = store();
    store.create(&name("a"), SystemTime::UNIX_EPOCH).unwrap();
    let data = dir.path().join("volumes/a/data");
    let empty = usage::count(&store, &name("a")).unwrap();
    assert_eq!(empty.inodes, 1);
    std::fs::create_dir_all(data.join("one/two/three")).unwrap();
    std::fs::write(data.join("one/file"), vec![1; 100_000]).unwrap();
    std::fs::hard_link(data.join("one/file"), data.join("again")).unwrap();
    std::os::unix::fs::symlink("/", data.join("one/two/root")).unwrap();
    let full = usage::count(&store, &name("a")).unwrap();
    assert_eq!(full.inodes, 6, "three directories, a file with two names, a link, and the volume");
    let grown = full.bytes - empty.bytes;
    assert!((100_000..200_000).contains(&grown), "{grown}");
    if met(&[Need::Root]) {
        std::os::unix::fs::chown(data.join("one/file"), Some(1000), None).unwrap();
        assert_eq!(usage::count(&store, &name("a")).unwrap().foreign, 1);
    }
}
