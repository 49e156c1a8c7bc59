//! Archives that were made to do harm: each is refused with its reason, or becomes an image in which the harm is not. Nothing
//! outside is touched, and nothing of a refused one is left (HARDENING 2F).

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use super::archive::{Head, Tar, gzip, written};
use super::bundle::Layout;
use super::{import, names, unfinished, wait_clean};
use crate::fixture::Daemon;
use crate::needs::needs;
use crate::place::directory;

/// A header of this type and size, with no content behind it.
fn lone(flag: u8, size: &[u8; 12]) -> Tar {
    let mut tar = Tar::default();
    tar.raw(&Head { name: b"x", flag, size: Some(*size), ..Head::default() }, b"");
    tar
}

/// A header of this format with something where a prefix is in others.
fn prefixed(magic: &[u8]) -> Vec<u8> {
    let mut tar = Tar::default();
    tar.raw(&Head { name: b"a", magic, ..Head::default() }, b"");
    tar.0[345] = b'b';
    // The checksum is one of bytes that are added up.
    let sum: u32 = tar.0[..512]
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
        .sum();
    tar.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.end()
}

fn tar(write: impl for<'t> FnOnce(&'t mut Tar) -> &'t mut Tar) -> Vec<u8> {
    let mut tar = Tar::default();
    write(&mut tar).end()
}

fn tar_of(write: impl FnOnce(&mut Tar)) -> Vec<u8> {
    let mut tar = Tar::default();
    write(&mut tar);
    tar.end()
}

/// Archives of a root file system that have to be refused, and a piece of the reason.
fn refused_trees() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    vec![
        ("dotdot", tar(|tar| tar.file("../escaped", b"x")), "leads up"),
        ("dotdot_inside", tar(|tar| tar.file("a/../../escaped", b"x")), "leads up"),
        ("absolute", tar(|tar| tar.file("/etc/escaped", b"x")), "absolute"),
        (
            "symlink_then_write",
            tar(|tar| tar.symlink("out", "/etc").file("out/escaped", b"x")),
            "it is a symbolic link",
        ),
        (
            "symlink_chain",
            tar(|tar| tar.dir("a/").symlink("a/up", "..").symlink("b", "a/up").file("b/x/escaped", b"x")),
            "it is a symbolic link",
        ),
        ("hardlink_absolute", tar(|tar| tar.hard_link("passwd", "/etc/passwd")), "absolute"),
        ("hardlink_up", tar(|tar| tar.hard_link("passwd", "../../etc/passwd")), "leads up"),
        ("hardlink_missing", tar(|tar| tar.hard_link("passwd", "etc/passwd")), "is not there"),
        (
            "hardlink_through_symlink",
            tar(|tar| tar.symlink("out", "/etc").hard_link("passwd", "out/passwd")),
            "behind a symbolic link",
        ),
        ("hardlink_to_directory", tar(|tar| tar.dir("d/").hard_link("e", "d")), "hard link to a directory"),
        ("hardlink_to_itself", tar(|tar| tar.file("a", b"").hard_link("a", "a")), "link to itself"),
        ("chmod_second_pass", tar(|tar| tar.dir("d/").file("d/x", b"").symlink("d", "/etc")), "was a directory before"),
        ("file_then_below", tar(|tar| tar.file("f", b"").file("f/x", b"")), "is no directory"),
        ("dev_symlink", tar(|tar| tar.symlink("dev", "/dev")), "has to be a directory"),
        ("proc_symlink", tar(|tar| tar.symlink("proc", "etc").dir("etc")), "has to be a directory"),
    ]
}

/// The same, for what their headers say.
fn refused_headers() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let entry = |head: Head<'static>| tar(|tar| tar.raw(&head, b""));
    let plain = tar(|tar| tar.file("a", &[1; 3000]));
    let mut flipped = plain.clone();
    flipped[10] ^= 1;
    vec![
        ("uid_overflow", entry(Head { name: b"a", ids: (65_536, 0), ..Head::default() }), "above 65535"),
        ("uid_pax_overflow", tar(|tar| tar.pax(&[("uid", b"4294967296")]).file("a", b"")), "above 65535"),
        (
            "pax_malformed",
            tar(|tar| tar.raw(&Head { name: b"p", flag: b'x', ..Head::default() }, b"99 path=a\n")),
            "malformed",
        ),
        ("pax_twice", tar(|tar| tar.pax(&[("path", b"a")]).pax(&[("path", b"b")]).file("c", b"")), "two pax"),
        ("pax_key_twice", tar(|tar| tar.pax(&[("path", b"a"), ("path", b"b")]).file("c", b"")), "twice"),
        ("pax_hugesize", tar(|tar| tar.pax(&[("size", b"9223372036854775807")]).file("a", b"")), "bytes of content"),
        ("pax_orphan", tar(|tar| tar.pax(&[("path", b"a")])), "announced"),
        (
            "pax_global_path",
            tar(|tar| tar.raw(&Head { name: b"g", flag: b'g', ..Head::default() }, b"9 path=a\n").file("b", b"")),
            "global",
        ),
        ("pax_nul", tar(|tar| tar.pax(&[("path", b"a\0b")]).file("c", b"")), "NUL"),
        ("gnu_sparse", entry(Head { name: b"a", flag: b'S', ..Head::default() }), "sparse"),
        ("pax_sparse", tar(|tar| tar.pax(&[("GNU.sparse.major", b"1")]).file("a", b"")), "sparse"),
        ("unknown_type", entry(Head { name: b"a", flag: b'V', ..Head::default() }), "unknown type"),
        (
            "size_base256_overflow",
            lone(b'0', b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff").end(),
            "not a number",
        ),
        ("size_negative", lone(b'0', b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff").end(), "not a number"),
        ("size_2_63", lone(b'0', b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff").end(), "impossible"),
        ("longlink_1g", lone(b'L', b"10000000000\0").end(), "bytes in a name"),
        (
            "longlink_unended",
            tar(|tar| tar.raw(&Head { flag: b'L', ..Head::default() }, b"name").file("a", b"")),
            "end with one",
        ),
        ("prefix_of_gnu", prefixed(b"ustar  \0"), "which its format does not have"),
        ("prefix_of_v7", prefixed(b"\0\0\0\0\0\0\0\0"), "which its format does not have"),
        ("pax_1g", lone(b'x', b"10000000000\0").end(), "bytes in one header"),
        (
            "directory_with_content",
            tar(|tar| tar.raw(&Head { name: b"d/", flag: b'5', ..Head::default() }, b"x")),
            "only files have",
        ),
        ("deep", tar(|tar| tar.pax(&[("path", "d/".repeat(129).as_bytes())]).file("x", b"")), "128 directories"),
        ("long_part", tar(|tar| tar.pax(&[("path", "x".repeat(256).as_bytes())]).file("x", b"")), "255 bytes"),
        ("long_path", tar(|tar| tar.pax(&[("path", "ab/".repeat(1400).as_bytes())]).file("x", b"")), "4096 bytes"),
        ("checksum", flipped, "checksum"),
        ("cut_short", plain[..2000].to_vec(), "cut short"),
        ("after_the_end", [plain.clone(), plain].concat(), "follows the end"),
        ("gzbomb", gzip(&tar(|tar| tar.file("zeros", &vec![0; 128 << 20]))), "200 times"),
        ("xz", b"\xfd7zXZ\0xxxxxx".to_vec(), "xz"),
        ("no_tar", vec![b'x'; 4096], "checksum"),
    ]
}

/// Images in parts that have to be refused.
fn refused_bundles() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let base = || tar(|tar| tar.dir("etc/").file("etc/kept", b"of the base"));
    let over = |write: &dyn for<'t> Fn(&'t mut Tar) -> &'t mut Tar| Layout::of(&[base(), tar(write)]).tar();
    let with = |change: &dyn Fn(&mut Layout)| {
        let mut layout = Layout::of(&[base()]);
        change(&mut layout);
        layout.tar()
    };
    let configured = |key: &str, value: serde_json::Value| {
        let mut layout = Layout::of(&[base()]);
        layout.configure(key, value);
        layout.tar()
    };
    vec![
        ("whiteout_empty", over(&|tar| tar.file("etc/.wh.", b"")), "whiteout of nothing"),
        ("whiteout_dot", over(&|tar| tar.file("etc/.wh..", b"")), "whiteout of nothing"),
        ("whiteout_dotdot", over(&|tar| tar.file("etc/.wh...", b"")), "whiteout of nothing"),
        ("whiteout_aufs", over(&|tar| tar.file(".wh..wh.plnk", b"")), "whiteout of nothing"),
        ("whiteout_content", over(&|tar| tar.file("etc/.wh.kept", b"x")), "no empty file"),
        ("whiteout_directory", over(&|tar| tar.dir(".wh.etc/")), "no empty file"),
        ("whiteout_inside", over(&|tar| tar.file(".wh.etc/x", b"")), "inside a whiteout"),
        ("whiteout_symlink", over(&|tar| tar.symlink("l", "/etc").file("l/.wh.passwd", b"")), "symbolic link"),
        ("opaque_symlink", over(&|tar| tar.symlink("l", "/etc").file("l/.wh..wh..opq", b"")), "symbolic link"),
        ("oci_layer_damaged", with(&|it| it.damage_layer()), "damaged, or not what it says"),
        ("oci_diff_id", with(&|it| it.lie_about_content()), "damaged, or not what it says"),
        ("oci_digest_traversal", with(&|it| it.digest("sha256:../../../../etc/passwd")), "no digest"),
        ("oci_digest_sha512", with(&|it| it.digest("sha512:00")), "no digest"),
        ("oci_digest_upper", with(&|it| it.digest(&format!("sha256:{}", "A".repeat(64)))), "no digest"),
        ("oci_digest_missing", with(&|it| it.digest(&format!("sha256:{}", "0".repeat(64)))), "not there"),
        ("oci_size_lies", with(&|it| it.manifest_size(7)), "another size"),
        ("oci_layer_size_lies", with(&|it| it.layer_size(7)), "another size"),
        ("oci_media_type", with(&|it| it.media_type("application/vnd.oci.image.index.v1+json")), "media type"),
        ("oci_both", with(&|it| it.add_manifests()), "something else too"),
        ("oci_compression_lies", with(&|it| it.say_gzip()), "compressed otherwise"),
        ("oci_two_images", with(&|it| it.double()), "several images"),
        ("oci_architecture", with(&|it| it.architecture("s390x")), "for another machine"),
        ("oci_part_twice", with(&|it| it.repeat_index()), "two parts"),
        ("oci_part_link", with(&|it| it.link_index()), "no file"),
        ("oci_key_twice", with(&|it| it.key_twice()), "not JSON of the form"),
        ("oci_foreign_layer", with(&|it| it.foreign()), "unknown media type"),
        ("oci_workdir_proc", configured("WorkingDir", "/proc/self/fd/3".into()), "working directory"),
        ("oci_workdir_relative", configured("WorkingDir", "../..".into()), "working directory"),
        ("oci_env_noeq", configured("Env", serde_json::json!(["HOME"])), "NAME=value"),
        ("oci_env_newline", configured("Env", serde_json::json!(["HOME=/x\nroot::0:0"])), "NAME=value"),
        ("oci_user_overflow", configured("User", "4294967296".into()), "its user"),
        ("oci_user_newline", configured("User", "x\nroot".into()), "its user"),
        ("oci_user_triple", configured("User", "0:0:0".into()), "its user"),
        ("oci_stop_signal", configured("StopSignal", "SIGWHAT".into()), "stop signal"),
    ]
}

#[test]
fn every_hostile_archive_is_refused_with_its_reason_and_leaves_nothing() {
    needs!(Root, CgroupTree);
    let dir = directory();
    let mut daemon = Daemon::start("");
    let before = names(&daemon.path("state/images"));
    let mut wrong = Vec::new();
    for (what, bytes, reason) in refused_trees().into_iter().chain(refused_headers()).chain(refused_bundles()) {
        let archive = written(dir.path(), what, &bytes);
        let output = import(&daemon, &archive, &["--name", "evil"]);
        let one_line = output.stderr.lines().count() == 1;
        if output.status != 1 || !output.stderr.contains(reason) || !one_line {
            wrong.push(format!("{what}: not {reason:?}: {output:?}"));
            // One that was taken must not be what the next is refused for.
            daemon.cli(&["image", "rm", "evil"]);
        }
        fs::remove_file(archive).expect("remove it");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    wait_clean(&mut daemon);
    assert_eq!(names(&daemon.path("state/images")), before);
    assert!(!PathBuf::from("/etc/escaped").exists() && !daemon.path("state/escaped").exists());
}

/// Imports an archive that is no harm any more; the directory of its files.
#[track_caller]
fn taken(daemon: &Daemon, what: &str, bytes: &[u8]) -> PathBuf {
    let dir = directory();
    let archive = written(dir.path(), what, bytes);
    let output = import(daemon, &archive, &["--name", &what.replace('_', "-")]);
    assert_eq!(output.status, 0, "{what}: {output:?}");
    let told = daemon.cli(&["image", "inspect", &what.replace('_', "-"), "--json"]).json();
    PathBuf::from(told["root"].as_str().expect("a path"))
}

#[test]
fn what_is_taken_has_no_harm_in_it() {
    needs!(Root, CgroupTree);
    let daemon = Daemon::start("");
    let places = ["dev", "proc", "run", "sys", "tmp"];
    let and_places = |own: &[&str]| {
        let mut all: Vec<String> = own.iter().chain(&places).map(|name| (*name).to_owned()).collect();
        all.sort();
        all
    };
    // A header inside a file's content is content, whichever of the two sizes would make it a header.
    let mut inner = Tar::default();
    inner.file("SMUGGLED", b"");
    let size = inner.0.len().to_string();
    let desync = tar_of(|tar| {
        let small = Some(*b"00000000000\0");
        tar.pax(&[("size", size.as_bytes())]);
        tar.raw(&Head { name: b"blob.bin", size: small, ..Head::default() }, &inner.0);
    });
    let root = taken(&daemon, "pax_desync", &desync);
    assert_eq!(names(&root), and_places(&["blob.bin"]));
    assert_eq!(fs::metadata(root.join("blob.bin")).expect("look").len(), inner.0.len() as u64);

    let swap = tar_of(|tar| {
        tar.dir("etc/").symlink("link", "etc");
        tar.raw(&Head { name: b"link/", flag: b'5', mode: 0o777, ..Head::default() }, b"");
    });
    let root = taken(&daemon, "chmod_swap", &swap);
    let mode = |name: &str| fs::symlink_metadata(root.join(name)).expect("look").mode() & 0o7777;
    assert_eq!((mode("etc"), mode("link")), (0o755, 0o777));
    assert!(root.join("link").is_dir() && !root.join("link").is_symlink());

    let special = tar_of(|tar| {
        tar.raw(&Head { name: b"null", flag: b'3', ..Head::default() }, b"");
        tar.raw(&Head { name: b"disk", flag: b'4', ..Head::default() }, b"");
        tar.raw(&Head { name: b"su", mode: 0o6755, ..Head::default() }, b"");
        tar.pax(&[("SCHILY.xattr.security.capability", b"\x01\0\0\x02\xff\xff\xff\xff\0\0\0\0\0\0\0\0\0\0\0\0")]);
        tar.file("caps", b"");
        tar.pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/etc"), ("SCHILY.xattr.user.overlay.opaque", b"y")]);
        tar.dir("redirect/");
        tar.pax(&[("SCHILY.xattr.user.mine", b"kept")]).file("mine", b"");
        tar.dir("etc/").raw(&Head { name: b"etc/passwd", flag: b'6', ..Head::default() }, b"");
        tar.symlink("etc/group", "/dev/zero");
    });
    let root = taken(&daemon, "special", &special);
    assert_eq!(names(&root), and_places(&["caps", "etc", "mine", "redirect", "su"]));
    assert_eq!(fs::metadata(root.join("su")).expect("look").mode() & 0o7777, 0o755);
    let xattrs = |name: &str| {
        let mut list = [0_u8; 4096];
        let length = rustix::fs::listxattr(root.join(name), &mut list).expect("list attributes");
        String::from_utf8_lossy(&list[..length]).into_owned()
    };
    assert_eq!(
        (xattrs("caps"), xattrs("redirect"), xattrs("mine")),
        (String::new(), String::new(), "user.mine\0".into())
    );

    // Names of programs that others would run to unpack it, and a configuration that asks for things to be done.
    let mut layout = Layout::of(&[tar_of(|tar| {
        for tool in ["bin/xz", "bin/unpigz", "bin/gzip", "bin/tar"] {
            tar.program(tool, b"#!/bin/sh\ntouch /ran\n");
        }
        tar.file("lib/libnss_files.so", b"x");
    })]);
    layout.configure("Labels", serde_json::json!({ "containerd.io/logger": "binary:///bin/sh" }));
    layout.configure("Volumes", serde_json::json!({ "/../../etc": {} }));
    let root = taken(&daemon, "oci_labels", &layout.tar());
    assert!(!root.join("ran").exists());
    let told = daemon.cli(&["image", "inspect", "oci-labels", "--json"]).stdout;
    assert!(!told.contains("logger") && !told.contains("olumes"), "{told}");
    assert_eq!(unfinished(&daemon), Vec::<String>::new());
}
