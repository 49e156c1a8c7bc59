//! What this package writes is read by others.

#![expect(clippy::disallowed_types, reason = "another implementation reads what was written")]

use halsup::archive::{Kind, Meta, Writer};

/// What `tar` of the host lists and extracts, which is another reader's word.
fn tar(arguments: &[&str]) -> (bool, String) {
    let output = std::process::Command::new("tar").args(arguments).output().expect("run tar");
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn another_tar_reads_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("a.tar.gz");
    let long = "d/".repeat(120) + "file";
    let mut writer = Writer::new(std::fs::File::create(&at).unwrap());
    let meta = Meta { mode: 0o640, uid: 0, gid: 0, mtime: 1_000_000_000 };
    let dir_meta = Meta { mode: 0o755, ..meta };
    writer.entry(b"top", &Kind::Directory, dir_meta).unwrap();
    writer.file(b"top/empty", meta, b"").unwrap();
    writer.file(b"top/file", meta, &vec![b'x'; 1000]).unwrap();
    writer.file(long.as_bytes(), meta, b"deep\n").unwrap();
    writer.entry(b"top/again", &Kind::HardLink(b"top/file".to_vec()), meta).unwrap();
    writer.entry(b"top/link", &Kind::Symlink("x".repeat(200).into_bytes()), meta).unwrap();
    writer.entry(b"top/pipe", &Kind::Fifo, meta).unwrap();
    drop(writer.finish().unwrap());
    let (ok, listed) = tar(&["tzvf", at.to_str().unwrap(), "--full-time", "--numeric-owner"]);
    assert!(ok, "{listed}");
    let names: Vec<&str> = listed.lines().filter_map(|line| line.split_whitespace().nth(5)).collect();
    assert_eq!(names, ["top", "top/empty", "top/file", &long, "top/again", "top/link", "top/pipe"]);
    assert!(listed.contains("2001-09-09 01:46:40") || listed.contains("2001-09-0"), "{listed}");
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    assert!(tar(&["xzf", at.to_str().unwrap(), "-C", out.to_str().unwrap()]).0);
    assert_eq!(std::fs::read(out.join("top/again")).unwrap(), vec![b'x'; 1000]);
    assert_eq!(std::fs::read(out.join(&long)).unwrap(), b"deep\n");
    assert_eq!(std::fs::read_link(out.join("top/link")).unwrap().as_os_str().len(), 200);
}
