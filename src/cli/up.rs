//! `halsup up`: pools in the foreground, from a configuration or straight from the command line.

use std::path::PathBuf;

use clap::Args;

use super::config::{self, PoolOverrides};
use super::context::Context;
use super::error::Error;
use super::output::{self, Output};
use super::{ps, status};
use crate::daemon::RunOptions;
use crate::protocol::control::{StatusReply, WorkerInfo};
use crate::spec::PoolName;

/// Run pools in the foreground, from a configuration or straight from the command line.
///
/// Ends with everything in it on SIGINT or SIGTERM.
#[derive(Debug, Args)]
#[command(after_help = "Example: halsup up --size 3 --base-port 8000 -- python3 -m http.server {port}")]
pub(super) struct Up {
    /// The configuration; without it and without a command, the one of --config or the default.
    #[arg(value_name = "CONFIG", conflicts_with = "command")]
    pub(super) file: Option<PathBuf>,
    /// How many workers.
    #[arg(long, value_name = "COUNT", default_value_t = 1, requires = "command",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) size: u32,
    /// The pool's name.
    #[arg(long, value_name = "NAME", default_value = "workers", requires = "command",
          value_parser = super::pool_name)]
    pub(super) name: PoolName,
    #[command(flatten)]
    pub(super) options: PoolArguments,
    /// The program and its arguments; {port}, {slot}, {worker} and {dir} are replaced in each worker.
    #[arg(last = true, value_name = "COMMAND")]
    pub(super) command: Vec<String>,
}

/// What can be said of a pool on the command line, in the words of the configuration.
#[derive(Debug, Args)]
pub(super) struct PoolArguments {
    /// Worker N is told port PORT + N.
    #[arg(short = 'p', long, visible_alias = "port", value_name = "PORT", requires = "command")]
    base_port: Option<String>,
    /// Memory limit of each worker, such as 512M.
    #[arg(long, value_name = "SIZE", requires = "command")]
    memory: Option<String>,
    /// Processors for each worker, such as 0.5.
    #[arg(long, value_name = "COUNT", requires = "command")]
    cpus: Option<String>,
    /// Most processes and threads of each worker.
    #[arg(long, value_name = "COUNT", requires = "command")]
    pids: Option<String>,
    /// How a worker becomes ready: exec, notify, channel, tcp, grpc, http:/path, file:NAME, port-file:NAME.
    #[arg(long, value_name = "HOW", requires = "command")]
    ready: Option<String>,
    /// The root file system: host, or a directory.
    #[arg(long, value_name = "ROOT", requires = "command")]
    root: Option<String>,
    /// The network: parent, own, or a path such as /run/netns/blue.
    #[arg(long, value_name = "NET", requires = "command")]
    net: Option<String>,
    /// Who workers run as: dynamic, mapped, host:NAME, unsafe-root.
    #[arg(long, value_name = "WHO", requires = "command")]
    identity: Option<String>,
    /// A variable for the workers, any number of times.
    #[arg(short, long, value_name = "NAME=VALUE", requires = "command")]
    env: Vec<String>,
    /// Files to appear in each worker's directory, any number of times.
    #[arg(short, long, value_name = "PATTERN", requires = "command")]
    link: Vec<String>,
}

impl From<PoolArguments> for PoolOverrides {
    fn from(arguments: PoolArguments) -> Self {
        let PoolArguments { base_port, memory, cpus, pids, ready, root, net, identity, env, link } = arguments;
        Self { memory, cpus, pids, base_port, ready, root, net, identity, env, link }
    }
}

impl Up {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        context.refuse_socket()?;
        let when_ready: Option<fn(&StatusReply, &[WorkerInfo])> = match context.output.is_json() {
            true => Some(print_json),
            false => output::is_terminal().then_some(print_table),
        };
        let (config, config_path) = if self.command.is_empty() {
            let path = self.file.as_deref().unwrap_or_else(|| context.config_path());
            let config = config::load(path, context.environment())?;
            let path = std::path::absolute(path).map_err(|source| Error::ReadFile { path: path.into(), source })?;
            (config, Some(path))
        } else {
            let overrides = self.options.into();
            let environment = context.environment();
            (config::of_command(self.name, self.size, &self.command, &overrides, environment)?, None)
        };
        crate::daemon::run(config, RunOptions { config_path, without_file: None, when_ready, handover: None })?;
        Ok(())
    }
}

/// What somebody who looks on sees, once all is ready. Whether they still look is no concern of the daemon's.
fn print_table(status: &StatusReply, workers: &[WorkerInfo]) {
    let text = format!("{}\n{}", status::render(status), ps::render(workers));
    Output::new(false).text(&text).unwrap_or_default();
}

fn print_json(status: &StatusReply, workers: &[WorkerInfo]) {
    let answer = serde_json::json!({ "status": status, "workers": workers });
    Output::new(true).json_line(&answer).unwrap_or_default();
}
