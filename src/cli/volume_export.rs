//! `halsup volume export` and `import`: one volume out of, and into, an archive. Done here, as root, with or without a daemon.

use std::fs::File;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use clap::Args;

use super::context::Context;
use super::error::Error;
use super::hold::Hold;
use super::human;
use crate::daemon::recovery;
use crate::protocol::control::{ListReply, ListRequest, ListVolumesReply, ListVolumesRequest, Request};
use crate::spec::{PoolName, VolumeName};

/// Pack what a volume holds into a tar, compressed by gzip. Its workers are frozen for that time, so that it is of one moment.
#[derive(Debug, Args)]
pub(super) struct Export {
    /// The volume.
    #[arg(value_name = "NAME", value_parser = super::volume_name)]
    name: VolumeName,
    /// Where to write it, never over a file that is there; `-` is standard output [default: NAME.tar.gz].
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Let its workers run: files that change meanwhile are counted.
    #[arg(long)]
    live: bool,
}

impl Export {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let spec = context.daemon_spec()?;
        let path = self.output.unwrap_or_else(|| PathBuf::from(format!("{}.tar.gz", self.name)));
        let stdout = std::io::stdout();
        let is_stdout = path == Path::new("-");
        if is_stdout && stdout.is_terminal() {
            return Err(Error::Usage { reason: "an archive is nothing for a terminal: name a file by -o".into() });
        }
        let hold = Hold::take(context, std::slice::from_ref(&self.name), self.live)?;
        let packed = recovery::export(&spec, &self.name, (!is_stdout).then_some(&*path), &stdout)?;
        hold.release()?;
        super::backup::warn_of_changes(packed);
        let to = path.display().to_string();
        super::backup::record(&spec, "volume_export", self.name.as_str(), &[("to", &to)]);
        if is_stdout {
            return Ok(());
        }
        context.output.answer(&packed, |packed| {
            format!("{}: {} entries, {}", path.display(), packed.entries, human::bytes(packed.bytes))
        })
    }
}

/// Make a volume of a tar, as it is or compressed. A volume that is there is replaced as a whole, or stays as it is.
#[derive(Debug, Args)]
pub(super) struct Import {
    /// The volume.
    #[arg(value_name = "NAME", value_parser = super::volume_name)]
    name: VolumeName,
    /// The archive; `-` reads it from standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Give up what is in a volume of that name.
    #[arg(long)]
    replace: bool,
}

impl Import {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let spec = context.daemon_spec()?;
        refuse_in_use(context, &self.name)?;
        let imported = if self.file == Path::new("-") {
            recovery::import(&spec, &self.name, &std::io::stdin(), self.replace)?
        } else {
            let failed = |source| Error::ReadFile { path: self.file.clone(), source };
            recovery::import(&spec, &self.name, &File::open(&self.file).map_err(failed)?, self.replace)?
        };
        let (entries, replaced) = (imported.entries.to_string(), imported.replaced.to_string());
        let more = [("entries", &*entries), ("replaced", &*replaced)];
        super::backup::record(&spec, "volume_import", self.name.as_str(), &more);
        context.output.answer(&imported, |imported| {
            format!("{}: {} entries, {}", self.name, imported.entries, human::bytes(imported.bytes))
        })
    }
}

/// Workers that run would go on with what is replaced.
fn refuse_in_use(context: &Context, name: &VolumeName) -> Result<(), Error> {
    let mut client = match context.client() {
        Ok(client) => client,
        Err(Error::Unreachable { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    let request = ListVolumesRequest { name: None, usage: None };
    let listed: ListVolumesReply = client.call(&Request::ListVolumes(request))?;
    let pools = listed.volumes.into_iter().find(|volume| volume.name == name.as_str()).map(|volume| volume.pools);
    for pool in pools.unwrap_or_default() {
        let named = PoolName::parse(&pool).ok();
        let mut runs = false;
        client.call_more(&Request::List(ListRequest { pool: named }), |reply: ListReply| {
            runs |= reply.workers.iter().any(|worker| worker.pid.is_some());
            Ok(())
        })?;
        if runs {
            return Err(Error::Helper {
                sentence: format!(
                    "volume {name} is in use by {pool}: halsup stop {pool} first, and start it afterwards"
                ),
            });
        }
    }
    Ok(())
}
