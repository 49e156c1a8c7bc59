//! What `claim` and `spawn` have in common: the options that say what is brought into a worker and what it may use.

use std::path::Path;

use clap::Args;

use super::client::Client;
use super::error::Error;
use crate::protocol::control::{ClaimRequest, NoParameters, PoolInfo, Request, StatusReply};
use crate::spec::{PoolName, parse_bytes, parse_cpus};

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
    /// Puts them into a request.
    ///
    /// # Errors
    /// For a value that means nothing and for a file that cannot be read.
    pub(super) fn fill(&self, request: &mut ClaimRequest, project: Option<&Path>) -> Result<(), Error> {
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
        Ok(())
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
    let status: StatusReply = client.call(&Request::Status(NoParameters {}))?;
    let is_meant = |pool: &PoolInfo| pool.claims.is_some() && said.is_none_or(|said| pool.name == said.as_str());
    let mut claimable = status.pools.into_iter().filter(is_meant);
    let reason = match (claimable.next(), claimable.next(), said) {
        (Some(pool), None, _) => {
            let name = PoolName::parse(&pool.name).map_err(|error| Error::Usage { reason: error.to_string() })?;
            return Ok((name, pool));
        }
        (Some(_), Some(_), _) => "workers of several pools can be claimed: say which with --pool".to_owned(),
        (None, _, Some(said)) => {
            format!("{said} is no pool whose workers can be claimed: write `claims = true` into it")
        }
        (None, _, None) => "no pool's workers can be claimed: write `claims = true` into one".to_owned(),
    };
    Err(Error::NoClaims { reason })
}
