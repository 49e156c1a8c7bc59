//! What is done to a daemon while it is killed: one order or one mishap each, from the moment that it begins until its goal.
//!
//! Beside its own pools each configuration has the pool `keep`, which no scenario touches.

use std::fs;

use rustix::process::Signal;
use serde_json::json;

use crate::scene::Scene;

/// Where the counting of boundaries begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    /// At the daemon's first instruction.
    Start,
    /// When the order is sent.
    Order,
}

/// What becomes of the pool `keep`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// The next daemon takes its worker over.
    Runs,
    /// It ends with the scenario.
    Ends,
}

/// One scenario.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) from: From,
    pub(crate) config: &'static str,
    /// What becomes of the pool that no scenario touches.
    pub(crate) keep: Keep,
    /// Before the boundaries are counted: waits until everything stands as it has to.
    pub(crate) prepare: fn(&mut Scene<'_>) -> Option<()>,
    /// The order, until its goal is reached.
    pub(crate) act: fn(&mut Scene<'_>) -> Option<()>,
}

const WEB: &str = "[pool.web]\ncommand = [{SLEEP}]\n";
const ELASTIC: &str = "[pool.web]\nmin = 1\nmax = 3\ncommand = [{SLEEP}]\n";
const WEB_OTHERWISE: &str = "[pool.web]\ncommand = [{SLEEP}]\nstop_signal = 'SIGINT'\nenv = { A = 'b' }\n";
const LISTENS: &str = "[pool.web]\ncommand = [{SLEEP}]\nlisten = ['unix:{DIR}/run/web.sock']\n";
const EXITS_0: &str = "[pool.web]\n\
    command = ['sh', '-c', 'trap \"exit 0\" USR1; while :; do sleep 1000 & wait $!; done']\n";
const EXITS_42: &str = "[pool.web]\nrestart = false\n\
    command = ['sh', '-c', 'trap \"exit 42\" USR1; while :; do sleep 1000 & wait $!; done']\n";
const BARRIER: &str =
    "[pool.web]\ncommand = [{SLEEP}]\nrestart = { max_restarts = 1, delay = '10ms', jitter_percent = 0 }\n";
const NEVER_AGAIN: &str = "[pool.web]\ncommand = [{SLEEP}]\nrestart = { max_restarts = 0 }\n";
const NOTIFIES: &str = r#"[pool.web]
ready = 'notify'
command = ['perl', '-MSocket', '-e', 'socket(S, PF_UNIX, SOCK_DGRAM, 0); send(S, "READY=1", 0, sockaddr_un($ENV{{NOTIFY_SOCKET}})) or die; sleep 1000']
"#;
const MAKES_A_FILE: &str = "[pool.web]\nready = 'file:up'\ncommand = ['sh', '-c', 'touch up; exec sleep infinity']\n";
const SPEAKS: &str = r#"[pool.web]
ready = 'channel'
heartbeat = false
command = ['sh', '-c', 'printf "{{\"kind\":\"ready\"}}" >&$HALSUP_CHANNEL_FD; exec sleep infinity']
"#;
const FALLS_SILENT: &str = r#"[pool.web]
ready = 'channel'
heartbeat = { interval = '20ms', timeout = '20ms', max_missed = 1 }
restart = { max_restarts = 0 }
command = ['sh', '-c', 'printf "{{\"kind\":\"ready\"}}" >&$HALSUP_CHANNEL_FD; exec sleep infinity']
"#;
const CLAIMED: &str = "[pool.web]\n[pool.web.claims]\nmin = 1\nmax = 2\nprojects = ['{DIR}/project']\n";
const MAPPED: &str = "[pool.web]\nidentity = 'mapped'\ncommand = [{SLEEP}]\n";
const OWN_ROOT: &str = "[pool.web]\nroot = '{DIR}/root'\ncommand = ['/bin/busybox', 'sleep', 'infinity']\n";
const FLOODS: &str = "[pool.web]\nlog = { max_size = '64k', keep = 1 }\ncommand = ['sh', '-c', 'yes | head -c 300000; exec sleep 1000']\n";

/// All there are.
pub(crate) fn all() -> impl Iterator<Item = &'static Scenario> {
    let others = [crate::requests::ALL, crate::inputs::ALL, crate::leases::ALL, crate::tasks::ALL, crate::tokens::ALL];
    ALL.iter().chain(others.into_iter().flatten())
}

/// Those without requests, tasks, tokens or leases.
const ALL: &[Scenario] = &[
    Scenario { name: "start", from: From::Start, keep: Keep::Runs, config: "", prepare: nothing, act: keep_is_up },
    Scenario {
        name: "start-two-pools",
        from: From::Start,
        keep: Keep::Runs,
        config: WEB,
        prepare: nothing,
        act: both_are_up,
    },
    Scenario {
        name: "scale-up",
        from: From::Order,
        keep: Keep::Runs,
        config: ELASTIC,
        prepare: web_is_up,
        act: |s| scale(s, 2),
    },
    Scenario {
        name: "scale-down",
        from: From::Order,
        keep: Keep::Runs,
        config: ELASTIC,
        prepare: three_are_up,
        act: |s| scale(s, 1),
    },
    Scenario { name: "stop", from: From::Order, keep: Keep::Runs, config: WEB, prepare: web_is_up, act: stop },
    Scenario {
        name: "start-a-stopped",
        from: From::Order,
        keep: Keep::Runs,
        config: WEB,
        prepare: web_is_down,
        act: start,
    },
    Scenario { name: "restart", from: From::Order, keep: Keep::Runs, config: WEB, prepare: web_is_up, act: restart },
    Scenario {
        name: "kill-by-order",
        from: From::Order,
        keep: Keep::Runs,
        config: WEB,
        prepare: web_is_up,
        act: kill_by_order,
    },
    Scenario {
        name: "crash",
        from: From::Order,
        keep: Keep::Runs,
        config: WEB,
        prepare: web_is_up,
        act: |s| crash(s, Signal::KILL),
    },
    Scenario {
        name: "exit-0",
        from: From::Order,
        keep: Keep::Runs,
        config: EXITS_0,
        prepare: web_is_at_work,
        act: |s| crash(s, Signal::USR1),
    },
    Scenario {
        name: "exit-42",
        from: From::Order,
        keep: Keep::Runs,
        config: EXITS_42,
        prepare: web_is_at_work,
        act: exits_for_good,
    },
    Scenario {
        name: "ends-by-signal",
        from: From::Order,
        keep: Keep::Runs,
        config: WEB,
        prepare: web_is_up,
        act: |s| crash(s, Signal::SEGV),
    },
    Scenario {
        name: "crash-barrier",
        from: From::Order,
        keep: Keep::Runs,
        config: BARRIER,
        prepare: web_is_up,
        act: meets_its_barrier,
    },
    Scenario {
        name: "reset",
        from: From::Order,
        keep: Keep::Runs,
        config: NEVER_AGAIN,
        prepare: is_down_for_good,
        act: reset,
    },
    Scenario {
        name: "reload-changed",
        from: From::Order,
        keep: Keep::Runs,
        config: WEB,
        prepare: web_is_up,
        act: |s| reload(s, WEB_OTHERWISE, "healthy"),
    },
    Scenario {
        name: "reload-adding",
        from: From::Order,
        keep: Keep::Runs,
        config: "",
        prepare: keep_is_up,
        act: |s| reload(s, WEB, "healthy"),
    },
    Scenario {
        name: "reload-removing",
        from: From::Order,
        keep: Keep::Runs,
        config: WEB,
        prepare: web_is_up,
        act: reload_away,
    },
    Scenario {
        name: "reload-refused",
        from: From::Order,
        keep: Keep::Runs,
        config: WEB,
        prepare: web_is_up,
        act: reload_refused,
    },
    Scenario {
        name: "reload-listener",
        from: From::Order,
        keep: Keep::Runs,
        config: WEB,
        prepare: web_is_up,
        act: |s| reload(s, LISTENS, "healthy"),
    },
    Scenario {
        name: "listener-gone",
        from: From::Order,
        keep: Keep::Runs,
        config: LISTENS,
        prepare: web_is_up,
        act: |s| reload(s, WEB, "healthy"),
    },
    Scenario {
        name: "listener",
        from: From::Order,
        keep: Keep::Runs,
        config: LISTENS,
        prepare: web_is_up,
        act: restart,
    },
    Scenario {
        name: "ready-by-notify",
        from: From::Order,
        keep: Keep::Runs,
        config: NOTIFIES,
        prepare: web_is_down,
        act: start,
    },
    Scenario {
        name: "ready-by-file",
        from: From::Order,
        keep: Keep::Runs,
        config: MAKES_A_FILE,
        prepare: web_is_down,
        act: start,
    },
    Scenario { name: "channel", from: From::Order, keep: Keep::Runs, config: SPEAKS, prepare: web_is_down, act: start },
    Scenario {
        name: "heartbeat-missed",
        from: From::Order,
        keep: Keep::Runs,
        config: FALLS_SILENT,
        prepare: silent_is_down,
        act: falls_silent,
    },
    Scenario {
        name: "mapped-identity",
        from: From::Order,
        keep: Keep::Runs,
        config: MAPPED,
        prepare: web_is_down,
        act: start_and_stop,
    },
    Scenario {
        name: "own-root",
        from: From::Order,
        keep: Keep::Runs,
        config: OWN_ROOT,
        prepare: web_is_down,
        act: start_and_stop,
    },
    Scenario {
        name: "output-flood",
        from: From::Order,
        keep: Keep::Runs,
        config: FLOODS,
        prepare: web_is_down,
        act: flood,
    },
    Scenario {
        name: "client-vanishes",
        from: From::Order,
        keep: Keep::Runs,
        config: WEB,
        prepare: web_is_up,
        act: vanish,
    },
    Scenario { name: "shutdown", from: From::Order, keep: Keep::Ends, config: WEB, prepare: web_is_up, act: shut_down },
    Scenario { name: "leave", from: From::Order, keep: Keep::Runs, config: WEB, prepare: web_is_up, act: leave },
    Scenario {
        name: "image-import",
        from: From::Order,
        keep: Keep::Runs,
        config: "",
        prepare: an_archive_is_there,
        act: import_image,
    },
    Scenario {
        name: "claim",
        from: From::Order,
        keep: Keep::Runs,
        config: CLAIMED,
        prepare: a_project_is_there,
        act: claim,
    },
    Scenario { name: "upgrade", from: From::Order, keep: Keep::Runs, config: WEB, prepare: web_is_up, act: upgrade },
];

fn nothing(_: &mut Scene<'_>) -> Option<()> {
    Some(())
}

fn keep_is_up(scene: &mut Scene<'_>) -> Option<()> {
    scene.state("keep.0", "healthy")
}

fn web_is_up(scene: &mut Scene<'_>) -> Option<()> {
    scene.state("web.0", "healthy")
}

fn both_are_up(scene: &mut Scene<'_>) -> Option<()> {
    // Whichever came first.
    scene.connect()?;
    scene.state("keep.0", "healthy")?;
    scene.connect()?;
    scene.state("web.0", "healthy")
}

fn web_is_down(scene: &mut Scene<'_>) -> Option<()> {
    web_is_up(scene)?;
    scene.order("Stop", "web.0")?;
    scene.state("web.0", "stopped")
}

fn three_are_up(scene: &mut Scene<'_>) -> Option<()> {
    web_is_up(scene)?;
    scale(scene, 3)
}

fn scale(scene: &mut Scene<'_>, count: u32) -> Option<()> {
    scene.ask("Scale", &json!({ "pool": "web", "count": count })).map(drop)
}

fn stop(scene: &mut Scene<'_>) -> Option<()> {
    scene.order("Stop", "web.0").map(drop)
}

fn start(scene: &mut Scene<'_>) -> Option<()> {
    scene.order("Start", "web.0").map(drop)
}

fn start_and_stop(scene: &mut Scene<'_>) -> Option<()> {
    start(scene)?;
    stop(scene)
}

fn restart(scene: &mut Scene<'_>) -> Option<()> {
    scene.order("Restart", "web.0").map(drop)
}

fn kill_by_order(scene: &mut Scene<'_>) -> Option<()> {
    scene.order("Kill", "web.0")?;
    scene.state("web.0", "healthy")
}

fn crash(scene: &mut Scene<'_>, signal: Signal) -> Option<()> {
    scene.signal("web.0", signal)?;
    scene.state("web.0", "healthy")
}

fn web_is_at_work(scene: &mut Scene<'_>) -> Option<()> {
    web_is_up(scene)?;
    // Its shell is at work before it is signalled: it has a child.
    let pid = scene.worker("web.0")?["pid"].as_u64()?;
    let children = format!("/proc/{pid}/task/{pid}/children");
    while fs::read_to_string(&children).ok()?.is_empty() {
        std::thread::yield_now();
    }
    Some(())
}

fn exits_for_good(scene: &mut Scene<'_>) -> Option<()> {
    scene.signal("web.0", Signal::USR1)?;
    scene.state("web.0", "crashed")
}

fn meets_its_barrier(scene: &mut Scene<'_>) -> Option<()> {
    crash(scene, Signal::KILL)?;
    scene.signal("web.0", Signal::KILL)?;
    scene.state("web.0", "crashed")
}

fn is_down_for_good(scene: &mut Scene<'_>) -> Option<()> {
    web_is_up(scene)?;
    scene.signal("web.0", Signal::KILL)?;
    scene.state("web.0", "crashed")
}

fn reset(scene: &mut Scene<'_>) -> Option<()> {
    scene.order("Reset", "web.0")?;
    scene.state("web.0", "healthy")
}

fn reload(scene: &mut Scene<'_>, config: &str, state: &str) -> Option<()> {
    scene.site.configure(config);
    scene.ask("Reload", &json!({}))?;
    scene.state("web.0", state)
}

fn reload_away(scene: &mut Scene<'_>) -> Option<()> {
    scene.site.configure("");
    scene.ask("Reload", &json!({}))?;
    scene.death("web.0")
}

fn reload_refused(scene: &mut Scene<'_>) -> Option<()> {
    // The second pool cannot be prepared; what was prepared for the first is undone.
    let refused = LISTENS.replace("pool.web", "pool.new");
    scene.site.configure(&format!("{WEB}{refused}[pool.worse]\ncommand = [{{SLEEP}}]\nroot = '/dev/null/none'\n"));
    let answer = scene.ask("Reload", &json!({}));
    // Whether or not there is still a daemon that minds: the next one is to start.
    scene.site.configure(WEB);
    answer.map(drop)
}

fn silent_is_down(scene: &mut Scene<'_>) -> Option<()> {
    scene.state("web.0", "crashed")
}

fn falls_silent(scene: &mut Scene<'_>) -> Option<()> {
    scene.order("Reset", "web.0")?;
    scene.state("web.0", "crashed")
}

fn flood(scene: &mut Scene<'_>) -> Option<()> {
    start(scene)?;
    let full = scene.site.path("state/logs/workers/web.0.log.1");
    let daemon = format!("/proc/{}", scene.daemon);
    while !full.exists() {
        fs::metadata(&daemon).ok()?;
        std::thread::yield_now();
    }
    scene.ask("Ping", &json!({})).map(drop)
}

fn vanish(scene: &mut Scene<'_>) -> Option<()> {
    let mut half = scene.line()?;
    half.say_bytes(b"{\"method\":\"io.halsup.Control.Stop\",\"parameters\":{\"tar");
    drop(half);
    let mut whole = scene.line()?;
    whole.say("Stop", &json!({ "target": "web.0" }), false)?;
    scene.state("web.0", "draining")?;
    drop(whole);
    scene.state("web.0", "stopped")?;
    scene.ask("Ping", &json!({})).map(drop)
}

fn shut_down(scene: &mut Scene<'_>) -> Option<()> {
    scene.signal_daemon(Signal::TERM)?;
    scene.state("web.0", "stopped")
}

fn leave(scene: &mut Scene<'_>) -> Option<()> {
    scene.signal_daemon(Signal::USR2)?;
    scene.until_gone();
    Some(())
}

fn upgrade(scene: &mut Scene<'_>) -> Option<()> {
    scene.ask("Upgrade", &json!({})).map(drop)
}

fn an_archive_is_there(scene: &mut Scene<'_>) -> Option<()> {
    keep_is_up(scene)?;
    scene.site.make_archive();
    Some(())
}

fn import_image(scene: &mut Scene<'_>) -> Option<()> {
    scene.site.import_image().then_some(())
}

fn a_project_is_there(scene: &mut Scene<'_>) -> Option<()> {
    web_is_up(scene)?;
    fs::create_dir_all(scene.site.path("project")).ok()
}

fn claim(scene: &mut Scene<'_>) -> Option<()> {
    let project = scene.site.path("project").display().to_string();
    let wanted = json!({ "pool": "web", "session": "one", "project": project, "env": ["A=b"],
        "secrets": ["key=of-nobody-else"], "command": ["sleep", "infinity"] });
    let claimed = scene.ask("Claim", &wanted)?;
    assert_eq!(claimed["parameters"]["session"], "one", "{claimed}");
    scene.state("web.1", "healthy")
}
