//! `halsup check`: reads a configuration as the daemon would, and changes nothing.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::config;
use super::context::Context;
use super::error::Error;
use crate::protocol::escape;
use crate::spec::Config;

/// Check a configuration.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// The configuration; without it, the one of --config or the default.
    #[arg(value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
}

/// What a good configuration amounts to.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Summary {
    file: String,
    pools: usize,
    services: usize,
    workers: u64,
}

impl Check {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let path = self.file.as_deref().unwrap_or_else(|| context.config_path());
        let config = config::load(path, context.environment())?;
        context.output.answer(&summary(path.display().to_string(), &config), render)
    }
}

fn summary(file: String, config: &Config) -> Summary {
    let services = config.pools.iter().filter(|pool| pool.service).count();
    Summary {
        file,
        pools: config.pools.len() - services,
        services,
        workers: config.pools.iter().map(|pool| u64::from(pool.policy.size.min)).sum(),
    }
}

fn render(summary: &Summary) -> String {
    let counted = |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let services = match summary.services {
        0 => String::new(),
        services => format!(", {}", counted(number(services), "service")),
    };
    let pools = counted(number(summary.pools), "pool");
    format!("{}: ok, {pools}{services}, {}", escape::text(&summary.file), counted(summary.workers, "worker"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_file_is_one_line() {
        let summary = |pools, services, workers| Summary { file: "a.toml".into(), pools, services, workers };
        assert_eq!(render(&summary(2, 0, 10)), "a.toml: ok, 2 pools, 10 workers");
        assert_eq!(render(&summary(1, 1, 1)), "a.toml: ok, 1 pool, 1 service, 1 worker");
    }
}
