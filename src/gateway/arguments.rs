//! What the daemon tells the gateway when it starts it.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use halsup::spec::PoolName;

/// HTTP for a halsup daemon. Started by the daemon, by `[gateway]` of its configuration.
#[derive(Debug, Clone, Parser)]
#[command(name = "halsup-gateway", version)]
pub(crate) struct Arguments {
    /// A name that the `Host` of a request may have, beside those of loopback.
    #[arg(long = "host", value_name = "NAME")]
    pub(crate) hosts: Vec<String>,
    /// Tell status to whoever shows no token.
    #[arg(long)]
    pub(crate) open_status: bool,
    /// The pool that `/health/pool` speaks of.
    #[arg(long, value_name = "NAME")]
    pub(crate) pool: Option<String>,
    /// A socket that was passed and the pool that is alone behind it.
    #[arg(long = "door", value_name = "ADDRESS=POOL", value_parser = door)]
    pub(crate) doors: Vec<(SocketAddr, PoolName)>,
    /// What `/hello` says that it is called.
    #[arg(long, value_name = "ID", default_value = "worker-1")]
    pub(crate) worker_id: String,
    /// The same for people.
    #[arg(long, value_name = "NAME", default_value = "ClaudeWorker-1")]
    pub(crate) worker_name: String,
    /// The daemon's socket for it.
    #[arg(long, value_name = "PATH", default_value = "/daemon/control.sock")]
    pub(crate) daemon: PathBuf,
}

fn door(text: &str) -> Result<(SocketAddr, PoolName), String> {
    let (address, pool) = text.split_once('=').ok_or("an address, = and a pool")?;
    let address = address.parse().map_err(|error| format!("{address}: {error}"))?;
    Ok((address, PoolName::parse(pool).map_err(|error| format!("{pool}: {}", error.expected))?))
}
