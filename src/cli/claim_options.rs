//! What `claim` and `spawn` have in common: the options that say what is brought into a worker and what it may use.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use clap::Args;
use rustix::fs::{Mode, OFlags, open};

use super::client::Client;
use super::error::Error;
use crate::protocol::control::{ClaimRequest, NoParameters, PoolInfo, Request, StatusReply};
use crate::spec::{Bind, PoolName, parse_bind, parse_bytes, parse_cpus};

/// What a claim says beside pool and project.
#[derive(Debug, Args)]
pub(super) struct ClaimOptions {
    /// The session's name [default: made up].
    #[arg(short, long, value_name = "NAME")]
    pub(super) name: Option<String>,
    /// Where the project appears inside [default: at its own path, or /workspace in an image].
    #[arg(long, value_name = "PATH")]
    target: Option<String>,
    /// The project can only be read.
    #[arg(long)]
    read_only: bool,
    /// A further directory: /path, /path:/inside or /path:/inside:rw. Can be repeated.
    #[arg(long, value_name = "MOUNT")]
    mount: Vec<String>,
    /// A variable, NAME=value. Can be repeated.
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// A file in /run/secrets with the content of FILE. Can be repeated.
    #[arg(long, value_name = "NAME=FILE")]
    secret: Vec<String>,
    /// Memory limit, such as 512m or 4g.
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// How many processors, such as 2 or 0.5.
    #[arg(long, value_name = "N")]
    cpus: Option<String>,
    /// How many processes.
    #[arg(long, value_name = "N")]
    pids_limit: Option<u64>,
    /// No limits of memory, processors and processes.
    #[arg(long, conflicts_with_all = ["memory", "cpus", "pids_limit"])]
    no_limits: bool,
    /// Something to remember of it, NAME=value. Can be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    pub(super) label: Vec<String>,
    /// The program to start, and its arguments [default: the pool's].
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// The longest file that is a secret, in bytes.
const SECRET_BYTES_MAX: usize = 32 << 10;

impl ClaimOptions {
    /// Puts them into a request; what it names is to be kept open until that is answered.
    ///
    /// # Errors
    /// For a value that means nothing and for a file that cannot be read.
    pub(super) fn fill(&self, request: &mut ClaimRequest, project: Option<&Path>) -> Result<KeptOpen, Error> {
        let some = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
        let usage = |option: &str, expected: &dyn std::fmt::Display| Error::Usage {
            reason: format!("{option}: expected {expected}"),
        };
        request.session.clone_from(&self.name);
        request.project = project.map(real_path).transpose()?;
        request.project_target.clone_from(&self.target);
        request.project_read_only = self.read_only.then_some(true);
        request.mounts = some(&self.mount);
        request.env = some(&self.env);
        request.labels = some(&self.label);
        request.command = some(&self.command);
        let secrets: Result<Vec<String>, Error> = self.secret.iter().map(|text| read_secret(text)).collect();
        request.secrets = some(&secrets?);
        if self.no_limits {
            (request.memory_bytes, request.cpu_millis, request.pids) = (Some(0), Some(0), Some(0));
        }
        if let Some(memory) = &self.memory {
            let parsed = parse_bytes(memory).map_err(|error| usage("--memory", &error.expected))?;
            request.memory_bytes = Some(parsed);
        }
        if let Some(cpus) = &self.cpus {
            request.cpu_millis = Some(parse_cpus(cpus).map_err(|error| usage("--cpus", &error.expected))?);
        }
        if self.pids_limit.is_some() {
            request.pids = self.pids_limit;
        }
        Ok(KeptOpen::of(request))
    }
}

/// What a claim names, kept open: the daemon looks for nothing that is not in the kernel's memory, so that a file system that
/// does not answer holds up whoever named something on it, and nobody else.
#[derive(Debug)]
#[must_use = "it is for the time until the claim is answered"]
pub(super) struct KeptOpen(Vec<OwnedFd>);

impl KeptOpen {
    fn of(request: &ClaimRequest) -> Self {
        let mounts: Vec<Bind> = request.mounts.iter().flatten().filter_map(|text| parse_bind(text).ok()).collect();
        let named = request.project.iter().chain(&request.project_target).map(PathBuf::from);
        let bound = mounts.iter().flat_map(|bind| [bind.source.clone(), bind.target.clone()]);
        let mut kept = Vec::new();
        for path in named.chain(bound) {
            // What is not there is looked for as well, so that the kernel knows of that too; whether it has to be there is
            // for the daemon to say.
            let way: Vec<&Path> = path.ancestors().collect();
            kept.extend(
                way.into_iter().rev().filter_map(|part| open(part, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()),
            );
        }
        Self(kept)
    }

    /// The claim is answered.
    pub(super) fn let_go(self) {
        drop(self.0);
    }
}

/// The path without links, as the daemon takes it.
///
/// # Errors
/// When it does not exist.
pub(super) fn real_path(path: &Path) -> Result<String, Error> {
    match path.canonicalize() {
        Ok(path) => Ok(path.display().to_string()),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::NoDirectory { path: path.to_owned() })
        }
        Err(source) => Err(Error::ReadFile { path: path.to_owned(), source }),
    }
}

/// `NAME=FILE` as `NAME=content`.
fn read_secret(text: &str) -> Result<String, Error> {
    let Some((name, file)) = text.split_once('=') else {
        return Err(Error::Usage { reason: format!("--secret {text:?}: expected NAME=FILE") });
    };
    let path = std::path::PathBuf::from(file);
    let failed = |source| Error::ReadFile { path: path.clone(), source };
    let content = std::fs::read(&path).map_err(failed)?;
    if content.len() > SECRET_BYTES_MAX {
        return Err(Error::Usage {
            reason: format!("--secret {name}: {file} is longer than {SECRET_BYTES_MAX} bytes"),
        });
    }
    let content = String::from_utf8(content)
        .map_err(|_not_utf8| Error::Usage { reason: format!("--secret {name}: {file} is no text") })?;
    Ok(format!("{name}={content}"))
}

/// The pool whose workers are to be claimed: the one that was said, or the only one that there is.
///
/// # Errors
/// When that is not clear.
pub(super) fn pool_of(client: &mut Client, said: Option<PoolName>) -> Result<PoolName, Error> {
    match said {
        Some(pool) => Ok(pool),
        None => claimable_pool(client, None).map(|(pool, _)| pool),
    }
}

/// A pool with claims, by name or as the only one, and what the daemon says of it.
///
/// # Errors
/// When there is none, or more than one.
pub(super) fn claimable_pool(client: &mut Client, said: Option<&PoolName>) -> Result<(PoolName, PoolInfo), Error> {
    Wanted { pool: said.cloned(), ..Wanted::default() }.find(client)
}

/// By what a pool is chosen; nothing said is all the same.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// Its name.
    pub(super) pool: Option<PoolName>,
    /// Its root: the name of an image, a path, or `host`.
    pub(super) image: Option<String>,
    /// Its network: `own` or `parent`.
    pub(super) net: Option<String>,
}

impl Wanted {
    /// The one pool that it is, and what the daemon says of it.
    ///
    /// # Errors
    /// When there is none, with how to make one, or more than one.
    pub(super) fn find(&self, client: &mut Client) -> Result<(PoolName, PoolInfo), Error> {
        let status: StatusReply = client.call(&Request::Status(NoParameters {}))?;
        self.choose(status.pools).map_err(|reason| Error::NoClaims { reason })
    }

    fn choose(&self, pools: Vec<PoolInfo>) -> Result<(PoolName, PoolInfo), String> {
        let mut claimable: Vec<PoolInfo> = pools.into_iter().filter(|pool| pool.claims.is_some()).collect();
        if claimable.is_empty() && self.pool.is_none() {
            return Err("no pool's workers can be claimed: write `claims = true` into one".to_owned());
        }
        if let Some(name) = &self.pool {
            claimable.retain(|pool| pool.name == name.as_str());
            if claimable.is_empty() {
                return Err(format!("{name} is no pool whose workers can be claimed: write `claims = true` into it"));
            }
        }
        if let Some(image) = &self.image {
            let roots: BTreeSet<String> = claimable.iter().map(|pool| image_of(pool).to_owned()).collect();
            claimable.retain(|pool| image_of(pool) == image);
            if claimable.is_empty() {
                let allowed = roots.into_iter().collect::<Vec<_>>().join(" ");
                return Err(format!(
                    "Security violation: image '{image}' not in allowlist ({allowed}): a session has the image of its pool; \
                     write a pool with `claims = true` and `image = \"{image}\"` into the configuration, then halsup daemon reload"
                ));
            }
        }
        if let Some(net) = &self.net {
            claimable.retain(|pool| pool.net == *net);
            if claimable.is_empty() {
                return Err(format!(
                    "no such pool has the network {net:?}: a session has the network of its pool; write a pool with \
                     `claims = true` and `net = \"{net}\"` into the configuration, then halsup daemon reload"
                ));
            }
        }
        let mut left = claimable.into_iter();
        match (left.next(), left.next()) {
            (Some(pool), None) => Ok((PoolName::parse(&pool.name).map_err(|error| error.to_string())?, pool)),
            (Some(first), Some(second)) => {
                let names = [first.name, second.name].into_iter().chain(left.map(|pool| pool.name));
                let names = names.collect::<Vec<_>>().join(", ");
                Err(format!("workers of several pools can be claimed: say which with --pool ({names})"))
            }
            (None, _) => Err("no pool's workers can be claimed: write `claims = true` into one".to_owned()),
        }
    }
}

/// The image that a pool's workers have, as people name it.
fn image_of(pool: &PoolInfo) -> &str {
    pool.root.strip_prefix("image:").unwrap_or(&pool.root)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(name: &str, root: &str, net: &str) -> PoolInfo {
        let (name, root, net) = (name.into(), root.into(), net.into());
        let (claims, counts) = (Some(crate::protocol::control::ClaimsInfo::default()), Default::default());
        PoolInfo { name, service: false, min: 0, max: 5, wanted: 0, root, net, claims, counts, frozen: 0 }
    }

    fn choose(name: &str, image: &str, net: &str) -> Result<String, String> {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let wanted = Wanted { pool: PoolName::parse(name).ok(), image: some(image), net: some(net) };
        let pools = vec![
            pool("base", "host", "parent"),
            pool("java", "image:java:21", "parent"),
            pool("sealed", "image:java:21", "own"),
            PoolInfo { claims: None, ..pool("web", "host", "own") },
        ];
        wanted.choose(pools).map(|(name, _)| name.to_string())
    }

    #[test]
    fn a_pool_is_chosen_by_name_image_and_network() {
        assert_eq!(choose("java", "", ""), Ok("java".into()));
        assert_eq!(choose("", "host", ""), Ok("base".into()));
        assert_eq!(choose("", "java:21", "own"), Ok("sealed".into()));
        assert_eq!(choose("", "", "own"), Ok("sealed".into()));
        let refused = |name, image, net| choose(name, image, net).unwrap_err();
        assert!(refused("", "", "").contains("say which with --pool (base, java, sealed)"));
        assert!(refused("web", "", "").starts_with("web is no pool whose workers can be claimed"));
        let unknown = refused("", "evil", "");
        assert!(unknown.starts_with("Security violation: image 'evil' not in allowlist (host java:21)"), "{unknown}");
        assert!(unknown.contains("image = \"evil\""), "{unknown}");
        assert!(refused("base", "java:21", "").starts_with("Security violation: image 'java:21'"));
        assert!(refused("base", "", "own").contains("network \"own\""));
    }
}
