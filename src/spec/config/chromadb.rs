//! ChromaDB beside the pools: what `[service.chromadb]` is where it names no command.
//!
//! Owns the program's place, the three variables that say how it is run, and what is filled in for keys that nobody wrote.
//! What was written stays: every key of the service means here what it means anywhere.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use super::error::{Fault, Faults, Place};
use super::keys::Bounds;
use super::node::Node;
use super::paths::{self, PATH_BYTES_MAX};
use super::pool::PoolDraft;
use crate::spec::{Probe, Ready};

/// Where `examples/install-chromadb.sh` puts it, unless somebody says otherwise.
pub const CHROMADB_PROGRAM: &str = "/opt/chromadb/bin/chroma";

/// The service that is ChromaDB.
pub(super) const SERVICE: &str = "chromadb";

const HOST: &str = "CHROMADB_HOST";
const PORT: &str = "CHROMADB_PORT";
const DATA_DIR: &str = "CHROMADB_DATA_DIR";
/// The three variables, what they say in the words of the reference, and what holds without them.
pub(super) const VARIABLES: [(&str, &str, &str); 3] = [
    (HOST, "the address that it listens at", HOST_DEFAULT),
    (PORT, "`base_port`", PORT_DEFAULT),
    (DATA_DIR, "where the volume `hal9000-chromadb` is inside, with all that it keeps", DATA_DIR_DEFAULT),
];

/// Whoever reaches it may read and remove everything in it: it asks nobody who they are.
const HOST_DEFAULT: &str = "127.0.0.1";
const PORT_DEFAULT: &str = "8000";
const DATA_DIR_DEFAULT: &str = "/data/chromadb";
const VOLUME: &str = "hal9000-chromadb";
/// Answered as soon as it serves.
const HEARTBEAT: &str = "/api/v2/heartbeat";
/// It has no home on the host, tells nobody that it runs, and writes a log without colours.
const ENV: [(&str, &str); 3] = [("HOME", "{dir}"), ("ANONYMIZED_TELEMETRY", "False"), ("NO_COLOR", "1")];

/// Fills in what the service's table leaves out: from the environment, or else with the default.
pub(super) fn fill(pool: &mut PoolDraft, environment: &BTreeMap<String, String>) -> Faults {
    let mut faults = Faults::default();
    let said = |name: &'static str| environment.get(name).map(String::as_str).filter(|text| !text.is_empty());
    if !pool.written.contains_key("base_port") {
        let place = if said(PORT).is_some() { Place::outside(PORT) } else { pool.place.key("base_port") };
        faults.note(pool.apply("base_port", said(PORT).unwrap_or(PORT_DEFAULT), place));
    }
    if !pool.written.contains_key("ready") {
        pool.spec.ready = Ready::Probe(Probe::Http { path: HEARTBEAT.to_owned() });
    }
    let is_asked = matches!(pool.spec.ready, Ready::Probe(_));
    if is_asked && !pool.written.contains_key("heartbeat") {
        let seconds = Duration::from_secs(5);
        pool.heartbeat.preset(seconds, seconds);
    }
    for (name, value) in ENV {
        pool.spec.env.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }
    let host = faults.note(host(said(HOST).unwrap_or(HOST_DEFAULT), is_asked));
    let data_dir = faults.note(data_dir(pool, said(DATA_DIR).unwrap_or(DATA_DIR_DEFAULT)));
    if let (Some(host), Some(data_dir)) = (host, data_dir) {
        // What the operator says is no template.
        let data_dir = data_dir.replace('{', "{{").replace('}', "}}");
        let words = [CHROMADB_PROGRAM, "run", "--host", &host, "--port", "{port}", "--path", &data_dir];
        pool.spec.command = words.map(str::to_owned).to_vec();
    }
    faults
}

/// The address that it listens at. Where its port is asked whether it answers, that has to reach it.
fn host(text: &str, is_asked: bool) -> Result<String, Fault> {
    let node = Node::outside(text, Place::outside(HOST), Bounds::None);
    let text = node.text()?;
    let address = if text == "localhost" { Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)) } else { text.parse::<IpAddr>() };
    let address = address.ok().ok_or_else(|| node.fault("an address such as 127.0.0.1 or 0.0.0.0, or localhost"))?;
    if is_asked && !address.is_unspecified() && address != IpAddr::V4(Ipv4Addr::LOCALHOST) {
        return Err(node.fault("127.0.0.1, 0.0.0.0 or ::, because `ready` asks 127.0.0.1"));
    }
    Ok(address.to_string())
}

/// Where it keeps its data; the volume appears there, unless the table says itself what is inside.
fn data_dir(pool: &mut PoolDraft, text: &str) -> Result<String, Fault> {
    let path = paths::absolute(&Node::outside(text, Place::outside(DATA_DIR), Bounds::Length(PATH_BYTES_MAX)))?;
    let dir = path.display().to_string();
    let is_bound = pool.spec.binds.iter().any(|bind| Path::new(&dir).starts_with(&bind.target));
    if !is_bound && !pool.written.contains_key("volumes") {
        let volume = format!("{VOLUME}:{dir}");
        let node = Node::outside(&volume, Place::outside(DATA_DIR), Bounds::Length(2 * PATH_BYTES_MAX));
        pool.spec.volumes.push(paths::volume(&node)?);
    }
    Ok(dir)
}
