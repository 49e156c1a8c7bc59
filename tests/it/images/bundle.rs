//! Images in parts, written here: OCI layouts and what `docker save` writes, right ones and all kinds of wrong ones.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::archive::{Tar, gzip, root_file_system, written};
use super::{import, names};
use crate::fixture::Daemon;
use crate::look::{wait_healthy, wait_line};
use crate::needs::needs;
use crate::place::directory;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An OCI layout that is put together at the end, so that what leads to something changed can be right or wrong.
#[derive(Debug)]
pub(super) struct Layout {
    layers: Vec<(Vec<u8>, Vec<u8>, String)>,
    config: Value,
    /// Changes to the manifest, and to the descriptor that leads to it.
    manifest: Vec<(String, Value)>,
    descriptor: Vec<(String, Value)>,
    damage: bool,
    copies: usize,
    extra: Vec<(String, Option<Vec<u8>>)>,
    key_twice: bool,
}

impl Layout {
    /// Of layers, the lowest first.
    pub(super) fn of(layers: &[Vec<u8>]) -> Self {
        let config = json!({ "architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z", "config": {} });
        let plain = |tar: &Vec<u8>| (tar.clone(), tar.clone(), LAYER.to_owned());
        Self {
            layers: layers.iter().map(plain).collect(),
            config,
            manifest: Vec::new(),
            descriptor: Vec::new(),
            damage: false,
            copies: 1,
            extra: Vec::new(),
            key_twice: false,
        }
    }

    /// Compresses a layer.
    pub(super) fn compressed(mut self, at: usize, how: &str) -> Self {
        let (packed, tar, media_type) = &mut self.layers[at];
        *packed = match how {
            "gzip" => gzip(tar),
            _ => ruzstd::encoding::compress_to_vec(tar.as_slice(), ruzstd::encoding::CompressionLevel::Fastest),
        };
        *media_type = format!("{LAYER}+{how}");
        self
    }

    pub(super) fn configure(&mut self, key: &str, value: Value) {
        self.config["config"][key] = value;
    }

    pub(super) fn architecture(&mut self, name: &str) {
        self.config["architecture"] = name.into();
    }

    pub(super) fn named(mut self, name: &str) -> Self {
        self.descriptor.push(("annotations".into(), json!({ "org.opencontainers.image.ref.name": name })));
        self
    }

    pub(super) fn damage_layer(&mut self) {
        self.damage = true;
    }

    pub(super) fn lie_about_content(&mut self) {
        self.layers[0].1.push(0);
    }

    pub(super) fn digest(&mut self, digest: &str) {
        self.descriptor.push(("digest".into(), digest.into()));
    }

    pub(super) fn manifest_size(&mut self, size: u64) {
        self.descriptor.push(("size".into(), size.into()));
    }

    pub(super) fn layer_size(&mut self, size: u64) {
        self.manifest.push(("/layers/0/size".into(), size.into()));
    }

    pub(super) fn media_type(&mut self, name: &str) {
        self.descriptor.push(("mediaType".into(), name.into()));
    }

    pub(super) fn add_manifests(&mut self) {
        self.manifest.push(("/manifests".into(), json!([])));
    }

    pub(super) fn say_gzip(&mut self) {
        self.layers[0].2 = format!("{LAYER}+gzip");
    }

    pub(super) fn foreign(&mut self) {
        self.layers[0].2 = "application/vnd.oci.image.layer.nondistributable.v1.tar".into();
    }

    pub(super) fn double(&mut self) {
        self.copies = 2;
    }

    pub(super) fn repeat_index(&mut self) {
        self.extra.push(("index.json".into(), Some(b"{}".to_vec())));
    }

    pub(super) fn link_index(&mut self) {
        self.extra.push(("more.json".into(), None));
    }

    pub(super) fn key_twice(&mut self) {
        self.key_twice = true;
    }

    /// The parts of the layout, by name.
    pub(super) fn parts(&self) -> Vec<(String, Vec<u8>)> {
        let mut parts = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
        let mut config = self.config.clone();
        let diff_ids: Vec<String> = self.layers.iter().map(|(_, tar, _)| format!("sha256:{}", sha256(tar))).collect();
        config["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
        let config = config.to_string().into_bytes();
        let descriptor = |media_type: &str, bytes: &[u8]| json!({ "mediaType": media_type, "digest": format!("sha256:{}", sha256(bytes)), "size": bytes.len() });
        let layers: Vec<Value> = self.layers.iter().map(|(packed, _, kind)| descriptor(kind, packed)).collect();
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": layers,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        });
        for (pointer, value) in &self.manifest {
            match manifest.pointer_mut(pointer) {
                Some(place) => *place = value.clone(),
                None => manifest[&pointer[1..]] = value.clone(),
            }
        }
        let manifest = manifest.to_string().into_bytes();
        let mut leads = descriptor(MANIFEST, &manifest);
        for (key, value) in &self.descriptor {
            leads[key] = value.clone();
        }
        let index = json!({ "schemaVersion": 2, "manifests": vec![leads; self.copies] }).to_string();
        let index = if self.key_twice { index.replacen('{', "{\"manifests\":[],", 1) } else { index };
        parts.push(("index.json".to_owned(), index.into_bytes()));
        for bytes in [&config, &manifest].into_iter().chain(self.layers.iter().map(|(packed, _, _)| packed)) {
            parts.push((format!("blobs/sha256/{}", sha256(bytes)), bytes.clone()));
        }
        if self.damage {
            let (_, layer) = parts.last_mut().expect("there is a layer");
            // In the content of a file: the archive stays whole.
            let at = layer.windows(4).position(|piece| piece == b"base").expect("it is there");
            layer[at] = b'x';
        }
        parts.extend(self.extra.iter().filter_map(|(name, bytes)| Some((name.clone(), bytes.clone()?))));
        parts
    }

    /// The layout as a tar.
    pub(super) fn tar(&self) -> Vec<u8> {
        let mut tar = Tar::default();
        for (name, bytes) in self.parts() {
            tar.file(&name, &bytes);
        }
        for (name, _) in self.extra.iter().filter(|(_, bytes)| bytes.is_none()) {
            tar.symlink(name, "index.json");
        }
        tar.end()
    }

    /// The same image as Docker before version 25 saved it.
    fn saved(&self, name: &str) -> Vec<u8> {
        let parts = self.parts();
        let blob = |bytes: &[u8]| sha256(bytes);
        let config = &parts[2].1;
        let config_name = format!("{}.json", blob(config));
        let mut tar = Tar::default();
        let mut layers = Vec::new();
        for (_, bytes, _) in &self.layers {
            let layer = format!("{}/layer.tar", blob(bytes));
            tar.file(&layer, bytes);
            layers.push(layer);
        }
        tar.file(&config_name, config);
        let manifest = json!([{ "Config": config_name, "RepoTags": [name], "Layers": layers }]).to_string();
        tar.file("manifest.json", manifest.as_bytes());
        tar.end()
    }
}

/// Two layers over a root file system: one hides and replaces, one makes hidden names anew.
fn layers() -> Vec<Vec<u8>> {
    let mut base = root_file_system("base");
    base.dir("old/").file("old/a", b"a").dir("opaque/").file("opaque/lower", b"x").file("etc/gone", b"x");
    base.dir("was-dir/").file("was-dir/x", b"x").file("was-file", b"x").file("opt", b"x");
    let mut second = Tar::default();
    second.file(".wh.old", b"").file("etc/.wh.gone", b"").file("etc/marker", b"second\n");
    second.dir("opaque/").file("opaque/upper", b"x").file("opaque/.wh..wh..opq", b"");
    second.file("was-dir", b"now a file").dir("was-file/").file("was-file/x", b"now a directory");
    second.file(".wh.missing", b"").file("no/such/.wh.thing", b"");
    let mut third = Tar::default();
    third.dir("old/").file("old/new", b"x").file(".wh.opt", b"").file("opt", b"made anew");
    vec![base.end(), second.end(), third.end()]
}

#[track_caller]
fn is_put_together(root: &std::path::Path) {
    assert_eq!(
        names(root),
        ["bin", "dev", "etc", "old", "opaque", "opt", "proc", "run", "srv", "sys", "tmp", "was-dir", "was-file"]
    );
    assert_eq!(names(&root.join("old")), ["new"]);
    assert_eq!(names(&root.join("opaque")), ["upper"]);
    assert_eq!(names(&root.join("etc")), ["again", "marker"]);
    let read = |name: &str| std::fs::read_to_string(root.join(name)).expect("read it");
    assert_eq!((read("etc/marker"), read("etc/again")), ("second\n".into(), "base\n".into()));
    assert_eq!((read("was-dir"), read("was-file/x")), ("now a file".into(), "now a directory".into()));
    assert_eq!(read("opt"), "made anew", "a whiteout hides what is below, not what is beside it");
}

#[test]
fn an_image_in_layers_is_put_together_however_it_comes() {
    needs!(Root, CgroupTree, Busybox);
    let dir = directory();
    let daemon = Daemon::start("");
    let all = Layout::of(&layers()).compressed(1, "gzip").compressed(2, "zstd").named("of/layout:1");
    let plain = Layout::of(&layers());
    for (what, bytes, name, more) in [
        ("oci", all.tar(), "of/layout:1", None),
        ("oci-gz", gzip(&all.tar()), "of/layout:1", None),
        ("saved", plain.saved("docker.io/library/saved:2"), "saved:2", None),
        ("saved-gz", gzip(&plain.saved("mine:3")), "mine:3", None),
        ("nameless", plain.tar(), "nameless:latest", None),
        ("named", plain.tar(), "other:4", Some(["--name", "other:4"])),
    ] {
        let archive = written(dir.path(), what, &bytes);
        let arguments = more.as_ref().map_or(&[][..], |words| &words[..]);
        let replace = [arguments, &["--replace"]].concat();
        let output = import(&daemon, &archive, &replace);
        assert_eq!(output.status, 0, "{what}: {output:?}");
        let told = daemon.cli(&["image", "inspect", name, "--json"]).json();
        is_put_together(std::path::Path::new(told["root"].as_str().expect("a path")));
        let config = plain.parts()[2].1.clone();
        assert_eq!(
            told["image"]["digest"],
            format!("sha256:{}", sha256(&config)),
            "{what}: named by its configuration"
        );
    }
    let listed = daemon.cli(&["image", "ls", "--json"]).json();
    assert_eq!(listed["images"].as_array().map(Vec::len), Some(1), "one image by many names: {listed}");
}

#[test]
fn a_program_of_an_image_runs_in_a_pool() {
    needs!(Root, CgroupTree, Overlay, Userns, Busybox);
    let dir = directory();
    let mut layout = Layout::of(&layers()).compressed(0, "zstd").named("app:1");
    layout.configure("Env", json!(["PATH=/bin", "COLOUR=blue"]));
    layout.configure("Entrypoint", json!(["/bin/sh", "-c"]));
    layout.configure("Cmd", json!(["cat /etc/marker"]));
    let archive = written(dir.path(), "app", &layout.tar());
    let look = "command = ['/bin/sh', '-c', 'cat /etc/marker; ls /old; exec sleep 100000']\n";
    let mut daemon = Daemon::start(&format!("[pool.app]\nroot = 'image:app:1'\nidentity = 'mapped'\n{look}"));
    assert_eq!(import(&daemon, &archive, &[]).status, 0);
    wait_line(&mut daemon, "app.0", |line| line == "new");
    wait_healthy(&mut daemon, 1);
    let told = daemon.cli(&["image", "inspect", "app:1", "--json"]).json();
    assert_eq!(told["config"]["env"], json!(["PATH=/bin", "COLOUR=blue"]));
    assert_eq!(told["config"]["entrypoint"], json!(["/bin/sh", "-c"]));
    assert_eq!(daemon.cli(&["inspect", "app.0", "--json"]).json()["workers"][0]["root"], "image:app:1");
}

#[test]
fn a_layout_that_is_a_directory_goes_as_it_is() {
    needs!(Root, CgroupTree, Busybox);
    let dir = directory();
    let layout = Layout::of(&layers()).compressed(1, "gzip").named("of/directory:1");
    for (name, bytes) in layout.parts() {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("it is in the directory")).expect("make directories");
        std::fs::write(path, bytes).expect("write a part");
    }
    let daemon = Daemon::start("");
    assert_eq!(import(&daemon, dir.path(), &[]).status, 0);
    let told = daemon.cli(&["image", "inspect", "of/directory:1", "--json"]).json();
    is_put_together(std::path::Path::new(told["root"].as_str().expect("a path")));
    let plain = directory();
    let refused = import(&daemon, plain.path(), &[]);
    assert_eq!(refused.status, 2);
    assert!(refused.stderr.contains("a root file system goes as a tar, as in `tar -C"), "{refused:?}");
}
