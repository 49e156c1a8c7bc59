//! `halsup backup` and `halsup restore`: all volumes into one archive, and back. Done here, as root.

use std::fs::File;
use std::path::PathBuf;

use clap::Args;

use super::context::Context;
use super::error::Error;
use super::hold::Hold;
use super::human;
use super::output;
use super::table::table;
use crate::archive::Packed;
use crate::daemon::recovery;
use crate::spec::{DaemonSpec, VolumeName};

/// Pack volumes, with the configuration, into one archive; or list the backups that there are.
///
/// The workers that write the volumes are frozen for that time, so that a backup is of one moment.
#[derive(Debug, Args)]
pub(super) struct Backup {
    /// Only these volumes [default: all].
    #[arg(value_name = "VOLUME", value_parser = super::volume_name, conflicts_with = "list")]
    volumes: Vec<VolumeName>,
    /// List the backups, the youngest first.
    #[arg(short, long, visible_alias = "list-backups")]
    list: bool,
    /// Where backups are [default: the state directory's path with .backups behind it].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Write it to this file, never over one that is there.
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["list", "dir"])]
    output: Option<PathBuf>,
    /// Let workers run: files that change meanwhile are counted.
    #[arg(long)]
    live: bool,
}

impl Backup {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let spec = context.daemon_spec()?;
        if self.list {
            return list(context, &recovery::list(&spec, self.dir.as_deref())?);
        }
        let hold = Hold::take(context, &self.volumes, self.live)?;
        let config = std::fs::read_to_string(context.config_path()).ok();
        let target = (self.dir.as_deref(), self.output.as_deref());
        let made = recovery::back_up(&spec, config, &self.volumes, target)?;
        if let Err(error) = hold.release() {
            // It is not of one moment, so it is none.
            std::fs::remove_file(&made.path).map_err(|source| Error::WriteFile { path: made.path, source })?;
            return Err(error);
        }
        warn_of_changes(made.packed);
        record(&spec, "backup", &made.path.display().to_string(), &[("volumes", &made.volumes.join(","))]);
        context.output.answer(&made, |made| {
            let bytes = human::bytes(made.packed.bytes);
            format!("{}: {} ({} entries, {bytes})", made.path.display(), made.volumes.join(", "), made.packed.entries)
        })
    }
}

/// Writes down what was done by hand; where that cannot be, says so: it is done.
pub(super) fn record(spec: &DaemonSpec, event: &str, resource: &str, more: &[(&str, &str)]) {
    if let Err(error) = recovery::record(spec, event, resource, more) {
        output::complain_text(&format!("it is done, but not in the audit log: {}", Error::from(error).sentence()));
    }
}

/// Says what is not quite as it was.
pub(super) fn warn_of_changes(packed: Packed) {
    if packed.changed > 0 {
        output::complain_text(&format!("{} files changed while they were read", packed.changed));
    }
    if packed.left_out > 0 {
        output::complain_text(&format!("{} sockets and devices are left out", packed.left_out));
    }
}

fn list(context: &Context, backups: &[recovery::Backup]) -> Result<(), Error> {
    if context.output.is_json() {
        return backups.iter().try_for_each(|backup| context.output.json_line(backup));
    }
    let rows = backups.iter().map(|backup| {
        let since = std::time::Duration::from_secs(u64::try_from(backup.written).unwrap_or(0));
        let at = std::time::SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(std::time::SystemTime::UNIX_EPOCH);
        let at = humantime::format_rfc3339_seconds(at).to_string();
        [backup.path.display().to_string(), at, human::bytes(backup.bytes)]
    });
    context.output.text(&table(["BACKUP", "WRITTEN", "SIZE"], rows))
}

/// Bring back the volumes of a backup, all or none of them. The daemon has to be stopped.
#[derive(Debug, Args)]
pub(super) struct Restore {
    /// The archive, or `latest`.
    #[arg(value_name = "BACKUP")]
    backup: PathBuf,
    /// Where backups are, for `latest` [default: the state directory's path with .backups behind it].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Give up volumes that the backup does not have.
    #[arg(long)]
    replace: bool,
}

impl Restore {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let spec = context.daemon_spec()?;
        let path = if self.backup.as_os_str() == "latest" {
            let found = recovery::list(&spec, self.dir.as_deref())?;
            let sentence = || "there is no backup: halsup backup --list looks in the same place".to_owned();
            found.into_iter().next().ok_or_else(|| Error::Helper { sentence: sentence() })?.path
        } else {
            self.backup
        };
        let file = File::open(&path).map_err(|source| Error::ReadFile { path: path.clone(), source })?;
        let restored = recovery::restore(&spec, &file, self.replace)?;
        record(&spec, "restore", &path.display().to_string(), &[("volumes", &restored.volumes.join(","))]);
        context.output.answer(&restored, |restored| {
            format!("restored {} from {}; halsup daemon start goes on", restored.volumes.join(", "), path.display())
        })
    }
}
