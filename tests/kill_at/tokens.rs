//! A scenario with tokens of people who come by HTTP: two are made, one of them is revoked.
//!
//! Whenever the daemon dies: a token that was answered is good, one whose revocation was answered is not, one that was not
//! answered is there as it was asked for or not at all; and no file has a token in it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::checker::line::Line;
use crate::checker::secrets::{self, Secrets};
use crate::checker::{Findings, Instance, Invariant};
use crate::scenarios::{From, Keep, Scenario};
use crate::scene::Scene;
use crate::site::Site;

/// How long the next daemon may take for an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// What its directory has of all that is root's alone.
const PRIVATE: [&str; 2] = ["state", "lock"];

/// All of them.
pub(crate) const ALL: &[Scenario] = &[Scenario {
    name: "token",
    from: From::Order,
    keep: Keep::Runs,
    config: "[gateway]\nlisten = ['127.0.0.1:{PORT}']\n",
    prepare: gateway_is_up,
    act: make_and_revoke,
}];

/// What was asked about a token, and what was answered.
#[derive(Debug)]
pub(crate) struct Heard {
    name: &'static str,
    revokes: bool,
    answer: Option<Value>,
}

fn gateway_is_up(scene: &mut Scene<'_>) -> Option<()> {
    scene.state("gateway", "healthy")
}

fn wanted(name: &str) -> Value {
    json!({ "name": name, "role": "observe", "pool": "keep" })
}

fn make(scene: &mut Scene<'_>, name: &'static str) -> Option<()> {
    let answer = scene.ask("CreateToken", &wanted(name));
    let made = answer.as_ref().map(drop);
    scene.told.tokens.push(Heard { name, revokes: false, answer });
    made
}

fn make_and_revoke(scene: &mut Scene<'_>) -> Option<()> {
    make(scene, "first")?;
    let answer = scene.ask("RevokeToken", &json!({ "name": "first" }));
    let revoked = answer.as_ref().map(drop);
    scene.told.tokens.push(Heard { name: "first", revokes: true, answer });
    revoked?;
    make(scene, "second")
}

/// What is to be of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    There,
    Gone,
    /// Nobody was told.
    Either,
}

/// What was heard of one of this name: what is to be of it, and itself, if anybody has it.
fn fate(heard: &[Heard], name: &str) -> (Fate, Option<String>) {
    let (mut fate, mut token) = (Fate::Gone, None);
    for one in heard.iter().filter(|one| one.name == name) {
        fate = match (&one.answer, one.revokes) {
            (None, _) => Fate::Either,
            (Some(_), true) => Fate::Gone,
            (Some(_), false) => Fate::There,
        };
        let said = one.answer.as_ref().and_then(|answer| answer["parameters"]["token"].as_str());
        token = said.map(str::to_owned).or(token);
    }
    (fate, token)
}

fn asked(site: &Site, method: &str, parameters: &Value) -> Value {
    let line = Line::connect(&site.instance.control(), PATIENCE).ok();
    line.and_then(|mut line| line.ask(method, parameters)).unwrap_or_default()
}

/// Whether the daemon takes it, from where the gateway speaks.
fn is_good(site: &Site, token: &str) -> bool {
    let line = Line::connect(&site.instance.runtime_dir.join("gateway/inside/control.sock"), PATIENCE).ok();
    let answer = line.and_then(|mut line| line.ask("Identify", &json!({ "token": token }))).unwrap_or_default();
    answer["error"].is_null() && answer["parameters"]["role"] == "observe" && answer["parameters"]["pool"] == "keep"
}

/// Holds what was heard of tokens against those that the next daemon knows, and has it make and revoke one.
pub(crate) fn judge(site: &Site, heard: &[Heard], found: &mut Findings) {
    let listed = asked(site, "ListTokens", &json!({}));
    let listed = listed["parameters"]["tokens"].as_array().cloned().unwrap_or_default();
    let mut all = Vec::new();
    for name in ["first", "second"] {
        let (fate, token) = fate(heard, name);
        let entry = listed.iter().find(|entry| entry["name"] == name);
        if fate != Fate::Either && entry.is_some() != (fate == Fate::There) {
            found.add(Invariant::Truth, format!("token {name} is to be {fate:?}, and is listed as {entry:?}"));
        }
        let is_whole = |entry: &Value| {
            entry["role"] == "observe"
                && entry["pool"] == "keep"
                && entry["expired"] == false
                && entry["created"].is_string()
        };
        if let Some(entry) = entry.filter(|entry| !is_whole(entry)) {
            found.add(Invariant::Truth, format!("token {name} is not as it was asked for: {entry}"));
        }
        if let Some(token) = token {
            if is_good(site, &token) != entry.is_some() {
                found.add(Invariant::Truth, format!("token {name} is listed as {entry:?}, and its worth is another"));
            }
            all.push(token);
        }
    }
    if let Some(entry) = listed.iter().find(|entry| entry["name"] != "first" && entry["name"] != "second") {
        found.add(Invariant::Truth, format!("nobody has asked for {entry}"));
    }
    all.extend(make_another(site, found));
    are_private(site, &all, found);
}

/// The next daemon makes one, under the name of one that is gone, and revokes it.
fn make_another(site: &Site, found: &mut Findings) -> Option<String> {
    asked(site, "RevokeToken", &json!({ "name": "first" }));
    let made = asked(site, "CreateToken", &wanted("first"));
    let token = made["parameters"]["token"].as_str().map(str::to_owned);
    if !token.as_ref().is_some_and(|token| is_good(site, token)) {
        found.add(Invariant::Truth, "the next daemon makes no token that is good");
    }
    let revoked = asked(site, "RevokeToken", &json!({ "name": "first" }));
    if !revoked["error"].is_null() || token.as_ref().is_some_and(|token| is_good(site, token)) {
        found.add(Invariant::Truth, format!("the next daemon does not revoke a token: {revoked}"));
    }
    token
}

/// No token is in a file, their digests are in one that is root's alone, and that is not damaged.
fn are_private(site: &Site, tokens: &[String], found: &mut Findings) {
    for token in tokens {
        let secrets = Secrets { daemon: Some(token.clone()), pools: Vec::new() };
        secrets::kept_in_files(&Instance { secrets, ..site.instance.clone() }, found);
    }
    for name in PRIVATE {
        let mode =
            fs::metadata(site.instance.state_dir.join(name)).map_or(0, |meta| meta.permissions().mode() & 0o7777);
        if mode != 0o600 {
            found.add(Invariant::Secrets, format!("the file {name} of the state is of mode {mode:o}"));
        }
    }
    for damaged in fs::read_dir(site.instance.state_dir.join("quarantine")).into_iter().flatten().flatten() {
        found.add(Invariant::Truth, format!("the state was damaged: {}", damaged.path().display()));
    }
}
