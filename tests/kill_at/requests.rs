//! Scenarios with requests: what callers were told is held against what the worker has written down.
//!
//! Whenever the daemon dies: a caller has one answer or has lost the connection, what it is told is true, nothing that may run once
//! has run twice, and the next daemon has its requests served.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::checker::line::Line;
use crate::checker::{Findings, Invariant};
use crate::scenarios::{From, Keep, Scenario};
use crate::scene::Scene;
use crate::site::Site;

/// A worker that takes one request at a time, as the configuration has it, and writes down what it begins and ends.
pub(crate) const WORKER: &str = r#"
use strict;
open(my $channel, '+<&=', $ENV{HALSUP_CHANNEL_FD}) or die;
my (%held, %gathers);
sub tell_of { defined syswrite($channel, $_[0]) or exit 1 }
sub note { open(my $ledger, '>>', '/mnt/ledger') or die; syswrite($ledger, "$_[0]\n") }
tell_of('{"kind":"hello","protocol":1}');
tell_of('{"kind":"ready"}');
while (sysread($channel, my $frame, 65536)) {
    my ($kind) = $frame =~ /"kind":"(\w+)"/;
    my ($id) = $frame =~ /"id":"?(\w+)/;
    if ($kind eq 'ping') { tell_of(qq({"kind":"pong","id":$id})) }
    if ($kind eq 'drain') { exit 0 }
    if ($kind eq 'forget') { %held = %gathers = (); tell_of('{"kind":"ready"}') }
    if ($kind eq 'chunk' && $gathers{$id}) {
        my ($command, $word) = @{$gathers{$id}};
        my ($number) = $frame =~ /"data":(\d+)/;
        note("took $word $number") if defined $number;
        if ($command eq 'choke' && $number == 2) { kill 'KILL', $$; sleep 10 }
        if ($frame !~ /"end":true/) { tell_of(qq({"kind":"credit","id":"$id","count":1})); next }
        delete $gathers{$id};
        note("end $word");
        tell_of(qq({"kind":"result","id":"$id","result":"$word"}));
    }
    if ($kind eq 'cancel' && (delete $held{$id} || delete $gathers{$id})) { tell_of(qq({"kind":"error","id":"$id","error":{"message":"cancelled"}})) }
    next if $kind ne 'request';
    my ($command) = $frame =~ /"command":"(\w+)"/;
    my ($word) = $frame =~ /"args":"(\w+)"/;
    note("begin $word");
    if ($frame =~ /"input":true/) {
        $gathers{$id} = [$command, $word];
        tell_of(qq({"kind":"credit","id":"$id","count":2}));
        next;
    }
    if ($command eq 'hold') { $held{$id} = 1; next }
    if ($command eq 'die') { kill 'KILL', $$; sleep 10 }
    if ($command eq 'count') { tell_of(qq({"kind":"chunk","id":"$id","data":$_})) for 0 .. 5 }
    note("end $word");
    tell_of(qq({"kind":"result","id":"$id","result":"$word"}));
}
"#;

pub(crate) const SERVES: &str = "[pool.web]\nready = 'channel'\nheartbeat = false\nbind = ['{DIR}/seen:/mnt:rw']\n\
    command = ['perl', '/mnt/worker.pl']\nrestart = { delay = '10ms', jitter_percent = 0, max_restarts = 100 }\n\
    [pool.web.dispatch]\nqueue_timeout = '20s'\nattempts = 3\nquarantine = 0\nworker_breaker = { failures = 0 }\n\
    pool_breaker = { failures = 0 }\n";
/// How often one that may run twice is begun at most.
const ATTEMPTS: usize = 3;

/// All of them.
pub(crate) const ALL: &[Scenario] = &[
    scenario("request", Keep::Runs, |s| ask(s, "echo", "one", &json!({}))),
    scenario("request-queued", Keep::Runs, queued),
    scenario("request-stream", Keep::Runs, |s| ask(s, "count", "streamed", &json!({ "stream": true }))),
    scenario("request-worker-dies", Keep::Runs, worker_dies),
    scenario("request-session", Keep::Runs, session),
    scenario("request-upgrade", Keep::Runs, upgrade),
    scenario("request-shutdown", Keep::Ends, shut_down),
];

const fn scenario(name: &'static str, keep: Keep, act: fn(&mut Scene<'_>) -> Option<()>) -> Scenario {
    Scenario { name, from: From::Order, keep, config: SERVES, prepare: web_is_up, act }
}

/// What a caller has heard of a request.
#[derive(Debug)]
pub(crate) struct Heard {
    word: &'static str,
    idempotent: bool,
    /// The answer that ends it, if the connection did not end before.
    answer: Option<Value>,
    chunks: Vec<Value>,
    /// What came after the answer.
    surplus: u32,
}

/// A caller whose request is on its way.
pub(crate) struct Caller {
    pub(crate) line: Line,
    heard: Heard,
}

impl Caller {
    pub(crate) fn send(scene: &Scene<'_>, command: &str, word: &'static str, more: &Value) -> Option<Self> {
        let mut line = scene.line()?;
        let mut parameters = json!({ "pool": "web", "command": command, "args": word });
        for (name, value) in more.as_object()? {
            parameters[name] = value.clone();
        }
        line.say("Execute", &parameters, more["stream"] == true)?;
        // One whose input has begun is given to no second worker, whatever its caller says.
        let idempotent = more["idempotent"] == true && more["input"] != true;
        Some(Self { line, heard: Heard { word, idempotent, answer: None, chunks: Vec::new(), surplus: 0 } })
    }

    /// Hears all that is said, and keeps it in the books; `None` if the daemon went away before the answer.
    pub(crate) fn hear(mut self, scene: &mut Scene<'_>) -> Option<()> {
        while let Some(reply) = self.line.next() {
            if reply["continues"] == true {
                self.heard.chunks.push(reply["parameters"]["chunk"].clone());
                continue;
            }
            self.heard.answer = Some(reply);
            self.line.surplus();
            self.heard.surplus = self.line.calls.last().map_or(0, |call| call.answers);
            break;
        }
        let answered = self.heard.answer.is_some();
        scene.told.requests.push(self.heard);
        answered.then_some(())
    }
}

pub(crate) fn web_is_up(scene: &mut Scene<'_>) -> Option<()> {
    scene.state("web.0", "healthy")
}

fn ask(scene: &mut Scene<'_>, command: &str, word: &'static str, more: &Value) -> Option<()> {
    Caller::send(scene, command, word, more)?.hear(scene)
}

/// Waits until the worker has begun this.
pub(crate) fn begun(scene: &Scene<'_>, word: &str) -> Option<()> {
    let daemon = format!("/proc/{}", scene.daemon);
    while !ledger(scene.site).iter().any(|line| *line == format!("begin {word}")) {
        fs::metadata(&daemon).ok()?;
        std::thread::yield_now();
    }
    Some(())
}

/// One that the worker has and one that waits.
fn two(scene: &mut Scene<'_>) -> Option<(Caller, Caller)> {
    let held = Caller::send(scene, "hold", "held", &json!({}))?;
    begun(scene, "held")?;
    let waits = Caller::send(scene, "echo", "waits", &json!({ "idempotent": true }))?;
    loop {
        let stats = scene.ask("PoolStats", &json!({ "pool": "web" }))?;
        if stats["parameters"]["pools"][0]["queued"] == 1 {
            return Some((held, waits));
        }
    }
}

fn queued(scene: &mut Scene<'_>) -> Option<()> {
    let (held, waits) = two(scene)?;
    // Nobody wants its answer any more.
    drop(held);
    waits.hear(scene)
}

fn worker_dies(scene: &mut Scene<'_>) -> Option<()> {
    ask(scene, "die", "once", &json!({}))?;
    scene.state("web.0", "healthy")?;
    ask(scene, "die", "often", &json!({ "idempotent": true }))?;
    scene.state("web.0", "healthy")
}

fn session(scene: &mut Scene<'_>) -> Option<()> {
    let session = json!({ "session": "s", "affinity": "strict_queue" });
    scene.ask("OpenSession", &json!({ "pool": "web", "session": "s" }))?;
    ask(scene, "echo", "first", &session)?;
    ask(scene, "echo", "second", &session)?;
    scene.ask("CloseSession", &json!({ "pool": "web", "session": "s" })).map(drop)
}

fn upgrade(scene: &mut Scene<'_>) -> Option<()> {
    let (held, waits) = two(scene)?;
    let upgraded = scene.ask("Upgrade", &json!({}));
    // What they are told before the end, they are told.
    let told = [held.hear(scene), waits.hear(scene)];
    upgraded?;
    told.into_iter().collect()
}

fn shut_down(scene: &mut Scene<'_>) -> Option<()> {
    let (held, waits) = two(scene)?;
    scene.signal_daemon(Signal::TERM)?;
    let told = [waits.hear(scene), held.hear(scene)];
    scene.until_gone();
    told.into_iter().collect()
}

/// What workers have written down.
pub(crate) fn ledger(site: &Site) -> Vec<String> {
    let text = fs::read_to_string(site.path("seen/ledger")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Holds what callers were told against what the worker has written down.
pub(crate) fn judge(site: &Site, heard: &[Heard], found: &mut Findings) {
    let ledger = ledger(site);
    let noted = |what: &str, word: &str| ledger.iter().filter(|line| **line == format!("{what} {word}")).count();
    // Also of those whose callers had gone before they were told anything.
    let words: BTreeSet<&str> = ledger.iter().filter_map(|line| line.strip_prefix("begin ")).collect();
    for word in words {
        let begun = noted("begin", word);
        let may_run_twice = heard.iter().any(|heard| heard.word == word && heard.idempotent);
        if begun > if may_run_twice { ATTEMPTS } else { 1 } {
            found.add(Invariant::Answers, format!("{word} was begun {begun} times"));
        }
    }
    for heard in heard {
        if heard.surplus > 0 {
            found.add(Invariant::Answers, format!("{heard:?} got more than one answer"));
        }
        let ordered = heard.chunks.iter().enumerate().all(|(at, chunk)| *chunk == json!(at));
        let Some(answer) = &heard.answer else {
            if !ordered {
                found.add(Invariant::Answers, format!("chunks in another order: {heard:?}"));
            }
            continue;
        };
        let (begun, ended) = (noted("begin", heard.word), noted("end", heard.word));
        let is_true = match answer["parameters"]["outcome"].as_str() {
            None => answer["error"].is_null() && answer["parameters"]["result"] == heard.word && ended >= 1,
            Some("never_started") => begun == 0,
            Some("in_doubt") => true,
            Some(_) => false,
        };
        if !is_true || !ordered {
            found.add(Invariant::Truth, format!("begun {begun} times, ended {ended} times, told {heard:?}"));
        }
    }
}

/// The next daemon has its requests served, also those of a session that an earlier one has had.
pub(crate) fn served_again(site: &Site, found: &mut Findings) {
    for (word, more) in [("after", json!({})), ("again", json!({ "session": "s", "affinity": "strict_queue" }))] {
        let mut parameters = json!({ "pool": "web", "command": "echo", "args": word });
        for (name, value) in more.as_object().into_iter().flatten() {
            parameters[name] = value.clone();
        }
        let line = Line::connect(&site.instance.control(), Duration::from_secs(20));
        let answer = line.ok().and_then(|mut line| line.ask("Execute", &parameters)).unwrap_or_default();
        if answer["parameters"]["result"] != word {
            found.add(Invariant::Truth, format!("the next daemon does not have {word} served: {answer}"));
        }
    }
}

/// Makes what workers and test share, before the daemon is started.
pub(crate) fn share(seen: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let open = |path: &std::path::Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("open it to all");
    };
    fs::create_dir(seen).expect("make a directory");
    open(seen, 0o777);
    let programs = [("worker.pl", WORKER), ("serves.pl", crate::leases::WORKER), ("task.sh", crate::tasks::PROGRAM)];
    for (name, text) in programs.into_iter().chain([("ledger", "")]) {
        let path = seen.join(name);
        fs::write(&path, text).expect("write a file");
        open(&path, 0o666);
    }
}
