//! Archives, written here byte for byte: what the program reads it must not have written itself.

use std::fs;
use std::path::{Path, PathBuf};

/// A tar archive that is being written; nothing is checked.
#[derive(Debug, Default, Clone)]
pub(super) struct Tar(pub(super) Vec<u8>);

/// A header's fields; the checksum is added.
#[derive(Debug, Clone)]
pub(super) struct Head<'h> {
    pub(super) name: &'h [u8],
    pub(super) flag: u8,
    pub(super) link: &'h [u8],
    pub(super) mode: u32,
    pub(super) ids: (u32, u32),
    /// The size field as it stands there; `None` is that of the content.
    pub(super) size: Option<[u8; 12]>,
    pub(super) magic: &'h [u8],
}

impl Default for Head<'_> {
    fn default() -> Self {
        Self { name: b"", flag: b'0', link: b"", mode: 0o644, ids: (0, 0), size: None, magic: b"ustar\x0000" }
    }
}

impl Tar {
    /// Adds a header and content, padded.
    pub(super) fn raw(&mut self, head: &Head<'_>, content: &[u8]) -> &mut Self {
        let mut block = [0_u8; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, head.name);
        put(100, format!("{:07o}", head.mode).as_bytes());
        put(108, format!("{:07o}", head.ids.0).as_bytes());
        put(116, format!("{:07o}", head.ids.1).as_bytes());
        let size = head.size.unwrap_or_else(|| {
            let text = format!("{:011o}\0", content.len());
            text.as_bytes().try_into().expect("twelve bytes")
        });
        put(124, &size);
        put(136, b"14000000000");
        put(148, b"        ");
        put(156, &[head.flag]);
        put(157, head.link);
        put(257, head.magic);
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&block);
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn file(&mut self, name: &str, content: &[u8]) -> &mut Self {
        self.raw(&Head { name: name.as_bytes(), ..Head::default() }, content)
    }

    pub(super) fn program(&mut self, name: &str, content: &[u8]) -> &mut Self {
        self.raw(&Head { name: name.as_bytes(), mode: 0o755, ..Head::default() }, content)
    }

    pub(super) fn dir(&mut self, name: &str) -> &mut Self {
        self.raw(&Head { name: name.as_bytes(), flag: b'5', mode: 0o755, ..Head::default() }, b"")
    }

    pub(super) fn symlink(&mut self, name: &str, target: &str) -> &mut Self {
        self.raw(&Head { name: name.as_bytes(), flag: b'2', link: target.as_bytes(), ..Head::default() }, b"")
    }

    pub(super) fn hard_link(&mut self, name: &str, target: &str) -> &mut Self {
        self.raw(&Head { name: name.as_bytes(), flag: b'1', link: target.as_bytes(), ..Head::default() }, b"")
    }

    /// Pax records for the next entry.
    pub(super) fn pax(&mut self, records: &[(&str, &[u8])]) -> &mut Self {
        let content: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.raw(&Head { name: b"PaxHeaders/x", flag: b'x', ..Head::default() }, &content)
    }

    /// The whole, with its end.
    pub(super) fn end(&self) -> Vec<u8> {
        let mut all = self.0.clone();
        all.resize(all.len() + 1024, 0);
        all
    }
}

/// One pax record.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = [format!(" {key}=").as_bytes(), value, b"\n"].concat();
    let length = (1..).map(|digits| rest.len() + digits).find(|all| all.to_string().len() + rest.len() == *all);
    [length.expect("some length fits").to_string().as_bytes(), &rest].concat()
}

/// A small root file system: busybox under some names.
pub(super) fn root_file_system(marker: &str) -> Tar {
    let busybox = crate::needs::busybox().expect("needed by every test that calls this");
    let mut tar = Tar::default();
    tar.dir("./").dir("bin/").dir("etc/").dir("srv/");
    tar.program("bin/busybox", &fs::read(busybox).expect("read busybox"));
    for tool in ["sh", "sleep", "cat", "ls", "id", "stat", "echo", "touch"] {
        tar.symlink(&format!("bin/{tool}"), "busybox");
    }
    tar.file("etc/marker", format!("{marker}\n").as_bytes()).hard_link("etc/again", "etc/marker");
    tar
}

/// Writes an archive into a directory.
pub(super) fn written(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, bytes).expect("write an archive");
    path
}

/// The bytes compressed by gzip.
pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("write to memory");
    encoder.finish().expect("write to memory")
}
