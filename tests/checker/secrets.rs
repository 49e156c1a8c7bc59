//! Secrets, and where they are seen (I8).
//!
//! A secret is a word that occurs nowhere else. The daemon's, a variable of its environment, may be in no worker; a pool's, a
//! variable of its workers' environment, only in them. Neither may be in a file of the daemon's, but for the configuration
//! that its state holds, which is root's alone.

use std::fs;
use std::path::Path;

use super::proc::Process;
use super::told::Told;
use super::{Findings, Instance, Invariant, files};

/// A file of which only this much is read, from its end.
const BYTES_MAX: u64 = 1 << 20;
const DEPTH_MAX: usize = 8;

/// The secrets that an instance was given.
#[derive(Debug, Clone, Default)]
pub(crate) struct Secrets {
    /// In the daemon's environment.
    pub(crate) daemon: Option<String>,
    /// In the environment of the workers of a pool.
    pub(crate) pools: Vec<(String, String)>,
}

impl Secrets {
    /// All of them, each with the pool whose workers may have it.
    fn all(&self) -> Vec<(&str, Option<&str>)> {
        let pools = self.pools.iter().map(|(pool, secret)| (secret.as_str(), Some(pool.as_str())));
        self.daemon.as_deref().map(|secret| (secret, None)).into_iter().chain(pools).collect()
    }
}

fn holds(text: &[u8], secret: &str) -> bool {
    String::from_utf8_lossy(text).contains(secret)
}

/// I8 of a running instance: the environments and arguments of its workers, its files, what it tells.
pub(crate) fn kept(instance: &Instance, base: Option<&Path>, told: &Told, processes: &[Process], found: &mut Findings) {
    let mut seen = |what: String| found.add(Invariant::Secrets, what);
    let base = base.and_then(|base| base.file_name()).map(|name| format!("/{}/pool.", name.to_string_lossy()));
    for process in processes {
        let Some(inside) = base.as_deref().and_then(|base| Some(process.cgroup.split_once(base)?.1)) else { continue };
        let pool = inside.split('/').next().unwrap_or_default();
        let mut text = process.environment();
        text.extend(process.command_line().into_bytes());
        for (secret, owner) in instance.secrets.all() {
            if owner != Some(pool) && holds(&text, secret) {
                seen(format!(
                    "process {} of pool {pool} has the secret of {}",
                    process.pid,
                    owner.unwrap_or("the daemon")
                ));
            }
        }
    }
    let answer = told.status.to_string();
    for (secret, owner) in instance.secrets.all() {
        if holds(answer.as_bytes(), secret) {
            seen(format!("the status tells the secret of {}", owner.unwrap_or("the daemon")));
        }
    }
    kept_in_files(instance, found);
}

/// I8 of an instance's files: its log, its state, its runtime directory.
pub(crate) fn kept_in_files(instance: &Instance, found: &mut Findings) {
    if instance.secrets.all().is_empty() {
        return;
    }
    for top in [&instance.runtime_dir, &instance.state_dir, &instance.dir.join("stderr")] {
        look_into(top, instance, DEPTH_MAX, found);
    }
}

fn look_into(path: &Path, instance: &Instance, depth: usize, found: &mut Findings) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    if meta.is_dir() && depth > 0 {
        files::entries(path).iter().for_each(|entry| look_into(entry, instance, depth - 1, found));
    }
    if !meta.is_file() {
        return;
    }
    let text = tail(path, meta.len());
    let kept_with_configuration = is_private_state(path, &meta, instance);
    for (secret, owner) in instance.secrets.all() {
        if holds(&text, secret) && !(owner.is_some() && kept_with_configuration) {
            let owner = owner.unwrap_or("the daemon");
            found.add(Invariant::Secrets, format!("the secret of {owner} is in {}", path.display()));
        }
    }
}

/// Whether this is where the daemon keeps the text of its configuration, for root alone: what stands in the one stands in
/// the other.
fn is_private_state(path: &Path, meta: &fs::Metadata, instance: &Instance) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    let state = path == instance.state_dir.join("state") || path.starts_with(instance.state_dir.join("quarantine"));
    state && meta.permissions().mode().trailing_zeros() >= 6
}

fn tail(path: &Path, length: u64) -> Vec<u8> {
    use std::os::unix::fs::FileExt as _;
    let Ok(file) = fs::File::open(path) else { return Vec::new() };
    let mut text = vec![0; usize::try_from(length.min(BYTES_MAX)).expect("a bounded length")];
    let count = file.read_at(&mut text, length.saturating_sub(BYTES_MAX)).unwrap_or(0);
    text.truncate(count);
    text
}
