//! What the helpers of a daemon do: this program once more, with a hidden word and the state directory, or, for what is done to
//! cgroups, the directory of that.
//!
//! Prints one line, or complains and fails. Ends with the daemon that started it, but for the guard of frozen workers, which
//! is there for that moment.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use super::birth::chain;
use super::freezer::{self, GUARD_WORD, RECLAIM_WORD};
use crate::host::own_dir::own_dir;
use crate::host::volume::{Store, removal, repair, usage};
use crate::spec::VolumeName;

/// Does what `word` names; what to print.
///
/// # Errors
/// A sentence.
pub fn help(word: &str, state_dir: &Path, arguments: &[String]) -> Result<String, String> {
    if word == GUARD_WORD {
        return freezer::guard(state_dir);
    }
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|errno| format!("end with the daemon: {errno}"))?;
    if getppid().is_none() {
        return Err("the daemon is gone".to_owned());
    }
    if word == RECLAIM_WORD {
        return freezer::take_memory(state_dir);
    }
    let state = own_dir(state_dir, 0o700).map_err(|error| chain(&error))?;
    let store = Store::open(state.as_fd()).map_err(|error| chain(&error))?;
    match word {
        "volume-usage" => count(&store, arguments),
        "volume-remove" => removal::remove(&store, arguments).map(|()| "{}".to_owned()).map_err(|error| chain(&error)),
        "volume-repair" => {
            for name in arguments {
                let volume = VolumeName::parse(name).map_err(|error| error.to_string())?;
                repair::give_to_root(&store, &volume).map_err(|error| chain(&error))?;
            }
            Ok("{}".to_owned())
        }
        _ => Err(format!("no helper does {word:?}")),
    }
}

fn count(store: &Store, names: &[String]) -> Result<String, String> {
    let mut counted = BTreeMap::new();
    for name in names {
        let volume = VolumeName::parse(name).map_err(|error| error.to_string())?;
        counted.insert(name, usage::count(store, &volume).map_err(|error| chain(&error))?);
    }
    serde_json::to_string(&counted).map_err(|error| error.to_string())
}
