//! Images: archives become root file systems of workers, by name; what is hostile in them becomes nothing.

mod archive;
mod bundle;
#[cfg(target_arch = "x86_64")]
mod captive;
mod hostile;
mod kills;
mod life;
mod limits;
mod pull;
mod readers;

use std::path::Path;

use crate::fixture::Daemon;
use crate::place::Output;

/// `halsup image import` of a file, with further arguments.
fn import(daemon: &Daemon, file: &Path, arguments: &[&str]) -> Output {
    let file = file.to_str().expect("paths of tests are text");
    daemon.cli(&[&["image", "import", file], arguments].concat())
}

/// What is unfinished in the store.
fn unfinished(daemon: &Daemon) -> Vec<String> {
    names(&daemon.path("state/images/tmp"))
}

/// The entries of a directory.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("list").flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Waits until nothing is left of what was not finished.
#[track_caller]
fn wait_clean(daemon: &mut Daemon) {
    daemon.wait_until("an empty images/tmp", |daemon| unfinished(daemon).is_empty().then_some(()));
}
