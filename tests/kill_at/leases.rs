//! A scenario with leases: workers that are held for a request whose bytes the daemon never sees.
//!
//! Whenever the daemon dies: what it says became of a lease is what became of it, nobody who was refused has reached a worker,
//! and the worker is free for the next daemon's lease, with nothing of the ones before.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use crate::checker::line::Line;
use crate::checker::{Findings, Invariant, SETTLE, Violation, standing};
use crate::requests::{begun, ledger, web_is_up};
use crate::scenarios::{From, Keep, Scenario};
use crate::scene::Scene;
use crate::site::Site;

/// How long the next daemon may take to grant one.
const PATIENCE: Duration = Duration::from_secs(20);

/// A worker that answers HTTP, one connection at a time, and holds those that ask for `held` until they end.
pub(crate) const WORKER: &str = r#"
use strict;
use IO::Socket::INET;
sub note { open(my $ledger, '>>', '/mnt/ledger') or die; syswrite($ledger, "$_[0]\n") }
my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $ENV{PORT}, Listen => 16, ReuseAddr => 1) or die;
$SIG{PIPE} = 'IGNORE';
while (1) {
    my $client = $listener->accept or next;
    my $head = '';
    while ($head !~ /\r\n\r\n/ && sysread($client, $head, 4096, length $head)) {}
    my ($word) = $head =~ m{^GET /(\w+) } or next;
    note("begin $word");
    if ($word eq 'held') {
        while (sysread($client, my $rest, 4096)) {}
        # It takes its time to let go: whoever is given it before that is given it too early.
        select(undef, undef, undef, 0.02);
        note("left $word");
        next;
    }
    note("end $word");
    syswrite($client, "HTTP/1.1 200 OK\r\nContent-Length: " . length($word) . "\r\nConnection: close\r\n\r\n$word");
}
"#;

const SERVES: &str = "[pool.web]\nserve = 'http'\nbase_port = {PORT}\nbind = ['{DIR}/seen:/mnt:rw']\n\
    command = ['perl', '/mnt/serves.pl']\n[pool.web.dispatch]\nqueue_timeout = '20s'\n";

/// All of them.
pub(crate) const ALL: &[Scenario] = &[Scenario {
    name: "lease",
    from: From::Order,
    keep: Keep::Runs,
    config: SERVES,
    prepare: web_is_up,
    act: three_leases,
}];

/// What was heard of a lease.
#[derive(Debug)]
pub(crate) struct Heard {
    word: &'static str,
    /// The answer, if there was one.
    answer: Option<Value>,
    /// What else was not as it should be.
    wrong: Option<String>,
}

/// A worker that is held.
struct Lease {
    line: Line,
    name: Value,
    worker: File,
}

impl Lease {
    /// Takes one of a daemon; with `None`, what there was instead is in the answer.
    fn take(mut line: Line, word: &str) -> (Option<Value>, Option<Self>) {
        let wanted = json!({ "pool": "web", "correlation": word, "timeout_ms": 60_000 });
        let answer = line.ask("Lease", &wanted);
        let worker = line.take_passed().map(File::from);
        let name = answer.as_ref().map_or(Value::Null, |answer| answer["parameters"]["lease"].clone());
        let granted = worker.filter(|_| name.is_string()).map(|worker| Self { line, name, worker });
        (answer, granted)
    }

    fn say(&mut self, word: &str) {
        let asked = format!("GET /{word} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        self.worker.write_all(asked.as_bytes()).unwrap_or_default();
    }

    /// All that its worker says.
    fn hear(&mut self) -> String {
        let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            match self.worker.read(&mut buffer) {
                Ok(count @ 1..) => answer.extend_from_slice(&buffer[..count]),
                // The daemon waits for nobody, and the two of them have one connection.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let timeout = Timespec::try_from(PATIENCE).expect("a short time");
                    if poll(&mut [PollFd::new(&self.worker, PollFlags::IN)], Some(&timeout)) == Ok(0) {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => break,
            }
        }
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Asks for a word, and says that it was answered; what is wrong with all of that, `Some(None)` if the daemon has gone.
    fn serve(mut self, word: &str) -> Option<Option<String>> {
        self.say(word);
        let answer = self.hear();
        if !answer.ends_with(&format!("\r\n\r\n{word}")) {
            return Some(Some(format!("its worker answers {answer:?}")));
        }
        let Some(ended) = self.line.ask("EndLease", &json!({ "lease": self.name, "outcome": "done" })) else {
            return Some(None);
        };
        (ended["parameters"]["ended"] != true).then(|| Some(format!("its end is answered by {ended}")))
    }
}

/// Takes one in a scene, and writes down what was heard.
fn take(scene: &mut Scene<'_>, word: &'static str) -> Option<Lease> {
    let (answer, lease) = Lease::take(scene.line()?, word);
    scene.told.leases.push(Heard { word, answer, wrong: None });
    lease
}

fn complain(scene: &mut Scene<'_>, wrong: Option<String>) -> Option<()> {
    scene.told.leases.last_mut()?.wrong = Some(wrong?);
    Some(())
}

/// Takes one, has a word served and ends it.
fn serve(scene: &mut Scene<'_>, word: &'static str) -> Option<()> {
    match take(scene, word)?.serve(word) {
        None => Some(()),
        Some(wrong) => complain(scene, wrong),
    }
}

/// What the daemon says became of it is this.
fn became(scene: &mut Scene<'_>, word: &str, expected: &str) -> Option<()> {
    let told = scene.ask("RequestStatus", &json!({ "request": word }))?;
    if told["parameters"]["requests"][0]["state"] != expected {
        complain(scene, Some(format!("{word} is told as {told}, and is {expected}")))?;
    }
    Some(())
}

fn three_leases(scene: &mut Scene<'_>) -> Option<()> {
    serve(scene, "first")?;
    became(scene, "first", "answered")?;
    let mut held = take(scene, "held")?;
    held.say("held");
    begun(scene, "held")?;
    // Its holder is gone: the next one has the worker when that has let go.
    drop(held);
    let last = take(scene, "last")?;
    if !ledger(scene.site).iter().any(|line| line == "left held") {
        complain(scene, Some("its worker was not free".to_owned()))?;
    }
    became(scene, "held", "in_doubt")?;
    last.serve("last").map_or(Some(()), |wrong| complain(scene, wrong))
}

/// Holds what was heard of leases against what the worker has written down, and has the next daemon grant one.
pub(crate) fn judge(site: &Site, heard: &[Heard], found: &mut Findings) {
    let Ok(line) = Line::connect(&site.instance.control(), PATIENCE) else { return };
    match Lease::take(line, "after") {
        (_, Some(lease)) => {
            if let Some(wrong) = lease.serve("after") {
                found.add(Invariant::Truth, format!("a lease of the next daemon: {wrong:?}"));
            }
        }
        (answer, None) => found.add(Invariant::Truth, format!("the next daemon grants no lease: {answer:?}")),
    }
    let ledger = ledger(site);
    let noted = |what: &str, word: &str| ledger.iter().filter(|line| **line == format!("{what} {word}")).count();
    for Heard { word, answer, wrong } in heard {
        if let Some(wrong) = wrong {
            found.add(Invariant::Truth, format!("the lease of {word}: {wrong}"));
        }
        let begun = noted("begin", word);
        if begun > 1 {
            found.add(Invariant::Answers, format!("{word} was begun {begun} times"));
        }
        let outcome = answer.as_ref().map_or(&Value::Null, |answer| &answer["parameters"]["outcome"]);
        let is_granted = answer.as_ref().is_none_or(|answer| answer["error"].is_null());
        if !is_granted && (outcome != "never_started" || begun > 0) {
            found.add(Invariant::Truth, format!("begun {begun} times, and refused by {answer:?}"));
        }
        let told = asked(site, "RequestStatus", &json!({ "request": word }));
        let state = told["parameters"]["requests"][0]["state"].as_str().map(str::to_owned);
        let is_true = match state.as_deref() {
            // It is gone with the daemon that knew it.
            None => told["error"].as_str().is_some_and(|error| error.ends_with("NotFound")),
            Some("answered") => noted("end", word) == 1,
            Some("never_started") => begun == 0,
            Some(state) => state == "in_doubt",
        };
        if !is_true {
            found.add(Invariant::Truth, format!("begun {begun} times, and {word} is told as {told}"));
        }
    }
    found.0.extend(standing(SETTLE, || nothing_is_held(site)));
}

fn asked(site: &Site, method: &str, parameters: &Value) -> Value {
    let line = Line::connect(&site.instance.control(), PATIENCE).ok();
    line.and_then(|mut line| line.ask(method, parameters)).unwrap_or_default()
}

fn nothing_is_held(site: &Site) -> Vec<Violation> {
    let mut found = Findings::default();
    let stats = asked(site, "PoolStats", &json!({ "pool": "web" }));
    let web = &stats["parameters"]["pools"][0];
    if (&web["in_flight"], &web["queued"], &web["available"]) != (&json!(0), &json!(0), &json!(1)) {
        found.add(Invariant::Truth, format!("nobody has a lease, and the pool is told as {web}"));
    }
    found.0
}
