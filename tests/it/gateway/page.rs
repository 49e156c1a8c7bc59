//! The dashboard in a real Chromium: clicked, typed into, looked at.

#![expect(clippy::disallowed_types, reason = "the browser is a program of its own")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::Served;
use crate::look::{pid, signal, wait_healthy_of, worker};
use crate::needs::needs;

const DRIVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/gateway/chromium.py");

const SDK: &str = include_str!("../../../examples/sdk/halsup.py");

/// A browser with one page.
struct Browser {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Browser {
    fn start() -> Self {
        let mut child = Command::new("python3")
            .args([DRIVER, "chromium"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the driver");
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("its answers"));
        Self { child, orders, answers }
    }

    #[track_caller]
    fn order(&mut self, what: &str, argument: impl Into<Value>) -> Value {
        let mut order = serde_json::Map::new();
        order.insert(what.to_owned(), argument.into());
        let orders = self.orders.as_mut().expect("it has not ended");
        writeln!(orders, "{}", Value::Object(order)).expect("order something");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("hear an answer");
        let answer: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{what}: {error} in {line:?}"));
        assert!(answer.get("error").is_none(), "{what}: {}", answer["error"].as_str().unwrap_or_default());
        answer["ok"].clone()
    }

    /// Waits until an expression is true.
    #[track_caller]
    fn wait(&mut self, expression: &str) {
        self.order("wait", expression);
    }

    #[track_caller]
    fn evaluate(&mut self, expression: &str) -> Value {
        self.order("evaluate", expression)
    }

    /// Nothing was thrown, and nothing was refused by the page's policy.
    #[track_caller]
    fn is_clean(&mut self) {
        assert_eq!(self.order("errors", true), json!([]));
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        drop(self.orders.take());
        let ended = self.child.wait();
        assert!(std::thread::panicking() || ended.is_ok_and(|status| status.success()), "the driver ends");
    }
}

/// The card of a worker, for an expression.
fn card(name: &str) -> String {
    format!("document.querySelector('.card[aria-label=\"{name}\"]')")
}

fn seen_red(name: &str) -> String {
    format!(
        "window.red = [...(window.red ?? [])]; new MutationObserver(() => {{ const card = {card}; \
         window.red.push([card.dataset.state, 'died' in card.dataset, getComputedStyle(card).getPropertyValue('--state').trim()]); }})\
         .observe({card}, {{ attributes: true }}); 1",
        card = card(name)
    )
}

#[test]
fn a_killed_worker_turns_red_and_comes_back() {
    needs!(Root, CgroupTree, Python3, Program("chromium"));
    let mut served = Served::start(
        "[pool.web]\nsize = 3\ncommand = ['sleep', 'infinity']\n[pool.web.restart]\ndelay = '1s'\njitter_percent = 0\n",
    );
    let workers = wait_healthy_of(&mut served.daemon, "web", 3);
    let mut browser = Browser::start();
    browser.order("open", format!("http://127.0.0.1:{}/", served.port));
    browser.wait("document.querySelectorAll('.card').length === 4");
    browser.wait("document.querySelector('#link').textContent === 'live'");
    assert_eq!(browser.evaluate("location.pathname"), "/pool");
    assert_eq!(browser.evaluate("document.querySelector('#percentage').textContent"), "100%");
    assert_eq!(browser.evaluate("document.querySelector('#total-healthy').textContent"), "4/4");
    let green = browser.evaluate(&format!("getComputedStyle({}).getPropertyValue('--state')", card("web.1")));
    browser.evaluate(&seen_red("web.1"));
    signal(pid(&workers[1]), Signal::KILL);
    let red = browser.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--red').trim()");
    browser.wait(&format!("window.red.some((seen) => seen[2] === {red})"));
    browser.wait(&format!("{}.querySelector('summary b').textContent === 'signal 9'", card("web.1")));
    browser.wait("document.querySelector('#events [data-kind=death] .who').textContent === 'web.1'");
    browser.wait("document.querySelector('#said').textContent.startsWith('web.1 died')");
    browser.wait(&format!("{card}.dataset.state === 'healthy' && !('died' in {card}.dataset)", card = card("web.1")));
    assert_eq!(browser.evaluate(&format!("getComputedStyle({}).getPropertyValue('--state')", card("web.1"))), green);
    browser.wait("document.querySelector('#total-restarts').textContent === '1'");
    // And so does the gateway itself: the page says that it is alone, and goes on by itself.
    browser.evaluate("window.words = []; new MutationObserver(() => window.words.push(document.querySelector('#link').textContent)).observe(document.querySelector('#link'), { childList: true, characterData: true, subtree: true }); 1");
    browser.is_clean();
    signal(pid(&worker(&served.daemon, "gateway")), Signal::KILL);
    browser.wait("window.words.some((words) => words.startsWith('connection lost'))");
    browser.wait("document.querySelector('#link').textContent === 'live' && !('stale' in document.querySelector('main').dataset)");
    browser.wait(&format!("{}.dataset.state === 'healthy'", card("gateway")));
    assert_eq!(browser.evaluate("performance.getEntriesByType('navigation').length"), 1, "it was not loaded again");
}

#[test]
fn breakers_are_reset_by_who_has_a_token_and_all_by_keyboard() {
    needs!(Root, CgroupTree, Python3, Program("chromium"));
    let programs = tempfile::tempdir().expect("a directory of programs");
    std::fs::set_permissions(programs.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("open it");
    for (name, text) in [
        ("halsup.py", SDK),
        (
            "dies.py",
            "import halsup, os\n@halsup.tool\ndef die(context: halsup.Context, args):\n    os._exit(7)\nhalsup.serve()\n",
        ),
    ] {
        std::fs::write(programs.path().join(name), text).expect("write a program");
    }
    let mut served = Served::start(&format!(
        "[pool.fdo]\nsize = 2\nready = 'channel'\nbind = ['{}:/srv']\ncommand = ['python3', '-B', '/srv/dies.py']\n\
         [pool.fdo.dispatch]\nworker_breaker = {{ failures = 1, open_for = '1h' }}\n",
        programs.path().display()
    ));
    wait_healthy_of(&mut served.daemon, "fdo", 2);
    assert_ne!(served.daemon.cli(&["call", "fdo", "die", "1"]).status, 0, "it dies of that");
    wait_healthy_of(&mut served.daemon, "fdo", 2);
    let token = served.token("acts", &[]);
    let mut browser = Browser::start();
    browser.order("open", format!("http://127.0.0.1:{}/pool", served.port));
    browser.wait("document.querySelectorAll('.card').length === 3");
    browser.wait(&format!("{}.querySelector('.breaker').textContent.startsWith('⚠ breaker open')", card("fdo.0")));
    let button = "[aria-label=\"Reset the circuit breaker of fdo.0\"]";
    browser.order("click", button);
    browser.wait("document.querySelector('#ask').open && document.activeElement.id === 'token'");
    browser.order("type", "halsup_wrong");
    browser.order("key", "Enter");
    browser.wait("document.querySelector('#ask-wrong').textContent === 'That is no token that is good.'");
    browser.evaluate("document.querySelector('#token').value = ''; 1");
    browser.order("type", token.as_str());
    browser.order("key", "Enter");
    browser.wait("!document.querySelector('#ask').open");
    browser.wait("document.querySelector('#said').textContent === '1 circuit breakers of fdo.0 reset'");
    browser.wait(&format!("{}.querySelector('.breaker').textContent === 'breaker closed'", card("fdo.0")));
    assert_eq!(browser.evaluate(&format!("document.activeElement === document.querySelector('{button}')")), true);
    // Known from now on, and by nobody else: not asked for again, in no address, in nothing that is kept.
    browser.order("click", "[aria-label=\"Reset all circuit breakers of fdo\"]");
    browser.wait("document.querySelector('#said').textContent === '0 circuit breakers of fdo reset'");
    let kept = browser.evaluate("[localStorage.length, document.cookie, location.href, performance.getEntriesByType('resource').map((one) => one.name).join(' ')]");
    assert_eq!((&kept[0], &kept[1]), (&json!(0), &json!("")));
    assert!(!kept.to_string().contains(&token), "{kept}");
    // By keyboard alone: to the log and back.
    browser.evaluate("document.querySelector('[aria-label=\"Log of fdo.0\"]').focus(); 1");
    browser.order("key", "Enter");
    browser.wait("!document.querySelector('#log').hidden && document.activeElement.id === 'log-close'");
    browser.order("key", "Escape");
    browser.wait(
        "document.querySelector('#log').hidden && document.activeElement.getAttribute('aria-label') === 'Log of fdo.0'",
    );
    browser.evaluate("document.activeElement.blur(); 1");
    let mut seen = Vec::new();
    for _ in 0..12 {
        browser.order("key", "Tab");
        let name = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent";
        seen.push(browser.evaluate(name).as_str().unwrap_or_default().to_owned());
    }
    for name in ["Sign out", "Reset all circuit breakers of fdo", "Reset the circuit breaker of fdo.1", "Log of fdo.1"]
    {
        assert!(seen.iter().any(|seen| seen == name), "{name} in {seen:?}");
    }
    let nameless = "[...document.querySelectorAll('button, input, svg[role=img]')].filter((one) => !(one.getAttribute('aria-label') || one.textContent || one.labels?.length)).length";
    assert_eq!(browser.evaluate(nameless), 0, "what can be used has a name");
    // The refused token was told by the console of the browser, as it has to be.
    let errors = browser.order("errors", true);
    assert!(errors.as_array().is_some_and(|all| all.iter().all(|one| one.to_string().contains("401"))), "{errors}");
}

#[test]
fn what_workers_say_is_text() {
    needs!(Root, CgroupTree, Python3, Program("chromium"));
    let hostile = "<img src=x onerror=alert(1)><script>alert(2)</script>";
    let status = format!(
        "import os, socket, time; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.sendto(b'READY=1\\nSTATUS={hostile}', os.environ['NOTIFY_SOCKET']); print('{hostile}', flush=True)"
    );
    let mut served = Served::start(&format!(
        "[pool.web]\nready = 'notify'\ncommand = ['python3', '-c', '''{status}; time.sleep(100000)''']\n\
         [pool.dies]\ncommand = ['sh', '-c', '''echo \"{hostile}\"; exit 7''']\n[pool.dies.restart]\nmax_restarts = 1\n"
    ));
    served.daemon.wait_until("the other is crashed", |daemon| {
        Some(()).filter(|()| {
            worker(daemon, "dies.0")["state"] == "crashed" && worker(daemon, "web.0")["state"] == "healthy"
        })
    });
    let token = served.token("looks", &["--scope", "observe"]);
    let mut browser = Browser::start();
    let page = format!("http://localhost:{}/pool", served.port);
    browser.order("open", page.as_str());
    browser.wait("document.querySelectorAll('.card').length === 3");
    let output = format!("{}.querySelector('pre').textContent", card("dies.0"));
    let unsaid = browser.evaluate(&output);
    assert!(unsaid.as_str().is_some_and(|unsaid| !unsaid.contains("script")), "without a token: {unsaid}");
    browser.order("click", "[aria-label=\"Log of web.0\"]");
    browser.wait("document.querySelector('#ask').open && document.activeElement.id === 'token'");
    browser.order("type", token.as_str());
    browser.order("key", "Enter");
    browser.wait("!document.querySelector('#log').hidden");
    browser.order("key", "Escape");
    browser.order("open", page.as_str());
    let says = format!("{}.querySelector('.says').textContent", card("web.0"));
    browser.wait(&format!("{} && {says}.includes('<script>')", card("web.0")));
    let said = browser.evaluate(&says);
    assert!(said.as_str().is_some_and(|said| said.contains(hostile)), "{said}");
    browser.evaluate(&format!("{}.querySelector('details').open = true; 1", card("dies.0")));
    browser.wait(&format!("{output}.includes('script')"));
    let output = browser.evaluate(&output);
    assert!(output.as_str().is_some_and(|output| output.contains(hostile)), "{output}");
    assert_eq!(browser.evaluate(&format!("{}.querySelector('summary b').textContent", card("dies.0"))), "exited 7");
    browser.order("click", "[aria-label=\"Log of web.0\"]");
    browser.wait("document.querySelector('#log-lines .what')?.textContent.includes('<script>')");
    assert_eq!(browser.evaluate("document.querySelector('#log-lines .what').textContent"), hostile);
    assert_eq!(
        browser.evaluate("document.querySelectorAll('main img, main script, aside img, aside script').length"),
        0
    );
    browser.is_clean();
}

#[test]
fn it_opens_with_a_ticket_and_fits_every_screen() {
    needs!(Root, CgroupTree, Python3, Program("chromium"));
    let mut served =
        Served::start_with("open_status = false\n", "[pool.web]\nsize = 5\ncommand = ['sleep', 'infinity']\n");
    wait_healthy_of(&mut served.daemon, "web", 5);
    let printed = served.daemon.cli(&["dashboard"]);
    assert_eq!(printed.status, 0, "{printed:?}");
    let address = printed.stdout.trim().to_owned();
    assert!(address.starts_with(&format!("http://127.0.0.1:{}/pool#ticket=", served.port)), "{address}");
    let mut browser = Browser::start();
    browser.order("open", address.as_str());
    browser.wait("document.querySelectorAll('.card').length === 6");
    assert_eq!(browser.evaluate("location.hash"), "", "the ticket is not left in the address");
    browser.is_clean();
    let pictures = std::env::var_os("HALSUP_TEST_PICTURES").map(std::path::PathBuf::from);
    for (width, height, scheme) in [(1280, 800, "light"), (1280, 800, "dark"), (390, 844, "dark"), (320, 640, "light")]
    {
        browser.order("look", json!([width, height, scheme]));
        browser.wait(&format!("innerWidth === {width} && matchMedia('(prefers-color-scheme: {scheme})').matches"));
        let over = browser.evaluate("document.documentElement.scrollWidth - innerWidth");
        assert!(over.as_i64() <= Some(0), "{width}: {over} too wide");
        let small = browser.evaluate("[...document.querySelectorAll('button')].filter((one) => one.offsetHeight > 0 && one.offsetHeight < 24).length");
        assert_eq!(small, 0, "{width}: what is pressed can be hit");
        if let Some(directory) = &pictures {
            let name = directory.join(format!("dashboard-{width}-{scheme}.png"));
            browser.order("screenshot", name.display().to_string());
        }
    }
    browser.order("open", "about:blank");
    browser.order("open", address.as_str());
    browser.wait("document.querySelectorAll('.card').length === 6");
    let mut other = Browser::start();
    other.order("open", address.as_str());
    other.wait("document.querySelector('#ask').open");
    assert_eq!(other.evaluate("document.querySelectorAll('.card').length"), 0, "a ticket is good once");
}
