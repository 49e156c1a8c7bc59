//! A pool from the command line: `halsup up --size 3 -- python3 -m http.server {port}`.
//!
//! Options are texts, read by the same rows of keys as the file, so that `--memory 4g` and `memory = "4g"` cannot differ.

use std::collections::BTreeMap;

use super::error::{ConfigErrors, Faults, Place};
use super::keys::Bounds;
use super::node::Node;
use super::paths::{PATH_BYTES_MAX, pattern};
use super::pool::{PoolDraft, command, variable};
use super::pool_keys::TEXT_BYTES_MAX;
use crate::spec::{PoolName, PoolSpec};

/// What options say about a pool; what they leave out is as in a file that leaves it out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolOverrides {
    /// `--memory`, such as `4g`.
    pub memory: Option<String>,
    /// `--cpus`, such as `0.5`.
    pub cpus: Option<String>,
    /// `--pids`.
    pub pids: Option<String>,
    /// `--base-port`.
    pub base_port: Option<String>,
    /// `--ready`, such as `http:/health`.
    pub ready: Option<String>,
    /// `--root`.
    pub root: Option<String>,
    /// `--net`.
    pub net: Option<String>,
    /// `--identity`.
    pub identity: Option<String>,
    /// `--env NAME=VALUE`, each; a later one wins.
    pub env: Vec<String>,
    /// `--link PATTERN`, each.
    pub link: Vec<String>,
}

/// Makes a pool of `size` workers of a command line and its options, with the defaults and checks of a file.
///
/// # Errors
/// All that is wrong; each error's `key_path` is the option or the variable.
pub fn pool_from_command(
    name: PoolName,
    size: u32,
    words: &[String],
    overrides: &PoolOverrides,
    environment: &BTreeMap<String, String>,
) -> Result<PoolSpec, ConfigErrors> {
    read(name, size, words, overrides, environment).map_err(|faults| faults.into_errors(""))
}

fn read(
    name: PoolName,
    size: u32,
    words: &[String],
    overrides: &PoolOverrides,
    environment: &BTreeMap<String, String>,
) -> Result<PoolSpec, Faults> {
    let mut faults = Faults::default();
    let mut draft = PoolDraft::new(name, Place::outside(""));
    let singles = [
        ("memory", "--memory", &overrides.memory),
        ("cpus", "--cpus", &overrides.cpus),
        ("pids", "--pids", &overrides.pids),
        ("base_port", "--base-port", &overrides.base_port),
        ("ready", "--ready", &overrides.ready),
        ("root", "--root", &overrides.root),
        ("net", "--net", &overrides.net),
        ("identity", "--identity", &overrides.identity),
    ];
    faults.note(draft.apply("size", &size.to_string(), Place::outside("--size")));
    for (key, option, text) in singles {
        if let Some(text) = text {
            faults.note(draft.apply(key, text, Place::outside(option)));
        }
    }
    let place = Place::outside("command");
    draft.written.insert("command", place.clone());
    let word = |(index, word)| Node::outside(word, place.item(index), Bounds::Length(TEXT_BYTES_MAX));
    let words: Vec<_> = words.iter().map(String::as_str).enumerate().map(word).collect();
    let command = at_most(1024, &words, &place).and_then(|()| command(&words, &place));
    draft.spec.command = faults.note(command).unwrap_or_default();
    faults.append(read_lists(&mut draft, overrides));
    faults.append(draft.fill_from(environment));
    if faults.is_empty() { draft.finish().map(|checked| checked.spec) } else { Err(faults) }
}

fn read_lists(draft: &mut PoolDraft, overrides: &PoolOverrides) -> Faults {
    let mut faults = Faults::default();
    let place = Place::outside("--env");
    draft.written.insert("env", place.clone());
    faults.note(at_most(256, &overrides.env, &place));
    for assignment in &overrides.env {
        let split = assignment.split_once('=').ok_or_else(|| place.fault("not an assignment", "NAME=VALUE"));
        let Some((name, value)) = faults.note(split) else { continue };
        let node = Node::outside(value, place.key(name), Bounds::Length(TEXT_BYTES_MAX));
        if let Some(text) = faults.note(variable(name, &node)) {
            draft.spec.env.insert(name.to_owned(), text);
        }
    }
    let place = Place::outside("--link");
    faults.note(at_most(256, &overrides.link, &place));
    for text in &overrides.link {
        let node = Node::outside(text, place.clone(), Bounds::Length(PATH_BYTES_MAX));
        draft.spec.link.extend(faults.note(pattern(&node)));
    }
    faults
}

fn at_most<T>(most: usize, items: &[T], place: &Place) -> Result<(), Faults> {
    if items.len() > most {
        return Err(place.fault(format!("{} of them", items.len()), format!("at most {most}")).into());
    }
    Ok(())
}
