//! The shape of the source, held against the rules of the house: who may use whom, what is written where, how long a file is.
//!
//! A rule is a function from one file to the lines that break it. It sees code with comments and literals blanked out, so a
//! word in a comment breaks nothing. Each rule is shown to go red on a planted violation, below.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// What each room of `src` may name of the others; a room may always name itself. `a::b` allows `b` of `a` only.
const MAY_USE: [(&str, &[&str]); 12] = [
    // The init's half of the room speaks the init's protocol, and its entry point calls the init.
    ("sys", &["protocol::init", "init::run"]),
    ("spec", &[]),
    ("exit_code", &[]),
    ("protocol", &["spec"]),
    ("engine", &["spec"]),
    ("host", &["sys", "spec", "protocol::init"]),
    ("init", &["sys::raw", "sys::entry", "sys::pid1", "protocol::init"]),
    ("archive", &["sys", "spec", "host"]),
    ("daemon", &["archive", "engine", "host", "protocol", "spec", "exit_code"]),
    // The command line becomes the daemon: it may start it, and nothing more.
    (
        "cli",
        &[
            "protocol",
            "spec",
            "exit_code",
            // It packs what it sends.
            "archive::Writer",
            "archive::Meta",
            "archive::Packed",
            // This program is also the reader of archives, and packs what it sends.
            "archive::main",
            "archive::VERB",
            "archive::Packer",
            "daemon::run",
            "daemon::hold_cgroup",
            "daemon::RunOptions",
            "daemon::Handover",
            "daemon::Error",
            "daemon::doctor",
            "daemon::help",
            "daemon::recovery",
        ],
    ),
    // It takes the sockets that it is passed, which nobody but `sys` can make descriptors of.
    ("gateway", &["protocol", "spec", "exit_code", "host::spawn::take_inherited"]),
    ("main", &["cli"]),
];
/// The files where `std::process::Command` may be used, never for a worker: helpers, `halsup daemon start`, which runs this
/// program again in the background, `halsup image pull`, which runs skopeo, and `halsup dashboard`, which runs xdg-open.
const MAY_SPAWN: [&str; 4] =
    ["src/host/helper.rs", "src/cli/daemon_start.rs", "src/cli/image_pull.rs", "src/cli/dashboard.rs"];
/// The files that read a clock: the daemon's, and those of commands and of the gateway, which may not use the daemon's.
const CLOCKS: [&str; 3] = ["src/daemon/clock.rs", "src/cli/stopwatch.rs", "src/gateway/clock.rs"];
/// What reads a clock.
const CLOCK_READS: [&str; 3] = ["Instant::now", "SystemTime::now", "clock_gettime"];
/// Reads one behind its back, unless it is the stopwatch of a command that is asked.
const HIDDEN_CLOCK_READ: &str = ".elapsed()";
const LINES_MAX: usize = 600;

/// A file of the package, by its path from the package's root.
struct Source {
    path: String,
    text: String,
    /// The text without comments and with empty literals, line for line.
    code: String,
}

type Rule = fn(&Source) -> Vec<String>;

const RULES: [(&str, Rule); 9] = [
    ("dependencies", dependencies),
    ("super", escapes_by_super),
    ("unsafe", unsafe_outside_sys),
    ("clock", clock_reads),
    ("spawning", spawning),
    ("header", header),
    ("length", length),
    ("unfinished", unfinished),
    ("sleep", sleeping_tests),
];

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned(), code: blank(text) }
    }

    /// The room of `src` that the file belongs to: `src/engine/pool.rs` is in `engine`, `src/main.rs` is `main`.
    fn room(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        Some(inside.split_once('/').map_or_else(|| inside.trim_end_matches(".rs"), |(room, _)| room))
    }

    fn in_room(&self, room: &str) -> bool {
        self.room() == Some(room)
    }

    /// Where in the code `name` stands as a whole path or word, as line numbers.
    fn lines_with(&self, name: &str) -> Vec<usize> {
        let code = squeeze(&self.code);
        let of_word = |c: char| c.is_alphanumeric() || c == '_';
        let whole = |start: usize| {
            let joined_before = name.starts_with(of_word) && code[..start].ends_with(of_word);
            let joined_after = name.ends_with(of_word) && code[start + name.len()..].starts_with(of_word);
            !joined_before && !joined_after
        };
        code.match_indices(name)
            .filter(|&(start, _)| whole(start))
            .map(|(start, _)| 1 + code[..start].matches('\n').count())
            .collect()
    }

    fn complain(&self, lines: Vec<usize>, what: &str) -> Vec<String> {
        lines.into_iter().map(|line| format!("{}:{line}: {what}", self.path)).collect()
    }
}

/// Joins paths that are written with blanks (`crate :: x`), keeping line ends.
fn squeeze(code: &str) -> String {
    code.replace(" ::", "::").replace(":: ", "::")
}

/// The text with comments and the insides of string and character literals replaced by blanks; line ends stay.
fn blank(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let hidden = comment(rest).or_else(|| literal(rest, code.chars().next_back()));
        let length = hidden.unwrap_or_else(|| first.len_utf8());
        let (piece, after) = rest.split_at(length);
        if hidden.is_some() {
            code.extend(piece.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        } else {
            code.push(first);
        }
        rest = after;
    }
    code
}

/// The length of the comment that `rest` begins with.
fn comment(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if !rest.starts_with("/*") {
        return None;
    }
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        let step = match rest.as_bytes().get(at..at + 2) {
            Some(b"/*") => 1,
            Some(b"*/") => -1,
            _ => 0,
        };
        depth += step;
        at += if step == 0 { 1 } else { 2 };
        if depth == 0 {
            return Some(at);
        }
    }
    Some(rest.len())
}

/// The length of the string or character literal that `rest` begins with; `before` tells a literal's prefix from a name's end.
fn literal(rest: &str, before: Option<char>) -> Option<usize> {
    if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
        return None;
    }
    let body = rest.trim_start_matches(['b', 'c']);
    let prefix = rest.len() - body.len();
    if prefix > 1 {
        return None;
    }
    if let Some(raw) = body.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        let close = format!("\"{}", "#".repeat(hashes));
        let inside = raw[hashes..].strip_prefix('"')?;
        return Some(prefix + 1 + hashes + 1 + inside.find(&close).map_or(inside.len(), |end| end + close.len()));
    }
    if let Some(inside) = body.strip_prefix('"') {
        return Some(prefix + 1 + quoted(inside, '"'));
    }
    let inside = body.strip_prefix('\'')?;
    // A lifetime has no quote behind its first character.
    let second = inside.chars().nth(1)?;
    (inside.starts_with('\\') || second == '\'').then(|| prefix + 1 + quoted(inside, '\''))
}

/// The length of what stands before and including the closing quote.
fn quoted(inside: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in inside.char_indices() {
        if !escaped && c == quote {
            return at + c.len_utf8();
        }
        escaped = !escaped && c == '\\';
    }
    inside.len()
}

/// Every path in the code that begins with `root::`, with the line that it is on; groups in braces are taken apart.
fn paths_from(source: &Source, root: &str) -> Vec<(usize, String)> {
    let code = squeeze(&source.code);
    let mut found = Vec::new();
    let start = format!("{root}::");
    for (at, _) in code.match_indices(&start) {
        if !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
            let line = 1 + code[..at].matches('\n').count();
            let mut paths = Vec::new();
            use_tree(&code[at + start.len()..], "", &mut paths);
            found.extend(paths.into_iter().map(|path| (line, path)));
        }
    }
    found
}

/// Adds the paths of a use tree such as `a::{b, c::d}` with `prefix` before each; returns what follows the tree.
fn use_tree<'t>(tree: &'t str, prefix: &str, paths: &mut Vec<String>) -> &'t str {
    let tree = tree.trim_start();
    if let Some(mut rest) = tree.strip_prefix('{') {
        loop {
            rest = rest.trim_start().trim_start_matches(',').trim_start();
            if rest.is_empty() || rest.starts_with('}') {
                return rest.strip_prefix('}').unwrap_or(rest);
            }
            let before = rest.len();
            rest = use_tree(rest, prefix, paths);
            if let Some(renamed) = rest.trim_start().strip_prefix("as ") {
                rest = renamed.trim_start().trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
            }
            if rest.len() == before {
                return rest; // not a use tree: a block that happens to follow
            }
        }
    }
    let end = tree.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '*')).unwrap_or(tree.len());
    let (name, rest) = tree.split_at(end);
    let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}::{name}") };
    if let Some(deeper) = rest.strip_prefix("::") {
        return use_tree(deeper, &path, paths);
    }
    paths.push(path.trim_end_matches("::self").to_owned());
    rest
}

fn dependencies(source: &Source) -> Vec<String> {
    let Some(room) = source.room() else { return Vec::new() };
    let Some(&(_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == room) else {
        return if room == "lib" {
            Vec::new()
        } else {
            vec![format!("{}: {room} is not in the table of rooms", source.path)]
        };
    };
    let mut complaints = Vec::new();
    for (line, path) in paths_from(source, "crate").into_iter().chain(paths_from(source, "halsup")) {
        let top = path.split("::").next().unwrap_or_default();
        let is_room = top == "*" || MAY_USE.iter().any(|(name, _)| *name == top);
        let may = allowed.iter().any(|one| path == *one || path.starts_with(&format!("{one}::")));
        if is_room && top != room && !may {
            complaints.push(format!("{}:{line}: {room} may not use {path}", source.path));
        }
    }
    for (number, line) in source.text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with("#[path")) {
        let target = line.split('"').nth(1).unwrap_or_default().trim_start_matches("../").trim_end_matches(".rs");
        let leaves = line.contains("../");
        // A room may be included as a directory too; which of its files are then used is seen in their names.
        let target = target.replace('/', "::");
        let included = |one: &&str| **one == target || one.starts_with(&format!("{target}::"));
        if leaves && !(room == "init" && allowed.iter().any(included)) {
            complaints.push(format!("{}:{}: {room} may not include {target}", source.path, number + 1));
        }
    }
    complaints
}

/// `super::super::…` that climbs to the crate's root would pass by the table.
fn escapes_by_super(source: &Source) -> Vec<String> {
    let Some(inside) = source.path.strip_prefix("src/") else { return Vec::new() };
    let file = inside.trim_end_matches(".rs");
    let base = match file {
        "main" | "lib" => 0,
        // The tests of a module that fill a file of their own are a module inside it.
        _ => file.trim_end_matches("/mod").split('/').count() + usize::from(file.ends_with("_tests")),
    };
    let code = squeeze(&source.code);
    let (mut depth, mut modules, mut complaints) = (0usize, Vec::new(), Vec::new());
    for (at, c) in code.char_indices() {
        match c {
            '{' => {
                let head = code[..at].rsplit([';', '}', '{']).next().unwrap_or_default();
                if head.split_whitespace().any(|word| word == "mod") {
                    modules.push(depth);
                }
                depth += 1;
            }
            '}' => {
                depth = depth.saturating_sub(1);
                modules.pop_if(|opened| *opened == depth);
            }
            _ => {}
        }
        let begins = code[at..].starts_with("super::")
            && !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == ':' || c == '_');
        if begins {
            let climbs = (code[at..].len() - code[at..].trim_start_matches("super::").len()) / "super::".len();
            if climbs >= base + modules.len() {
                let line = 1 + code[..at].matches('\n').count();
                complaints.push(format!("{}:{line}: super:: reaches the crate's root; write crate::", source.path));
            }
        }
    }
    complaints
}

fn unsafe_outside_sys(source: &Source) -> Vec<String> {
    if source.room().is_none() || source.in_room("sys") {
        return Vec::new();
    }
    let mut complaints = source.complain(source.lines_with("unsafe"), "unsafe outside sys");
    complaints.extend(source.complain(source.lines_with("libc"), "libc outside sys"));
    complaints
}

fn clock_reads(source: &Source) -> Vec<String> {
    if source.room().is_none() || CLOCKS.contains(&source.path.as_str()) {
        return Vec::new();
    }
    let mut lines: Vec<usize> = CLOCK_READS.iter().flat_map(|name| source.lines_with(name)).collect();
    if !source.in_room("cli") {
        lines.extend(source.lines_with(HIDDEN_CLOCK_READ));
    }
    source.complain(lines, "reads a clock; only clock.rs of daemon and gateway and cli/stopwatch.rs do")
}

fn spawning(source: &Source) -> Vec<String> {
    if source.room().is_none() || MAY_SPAWN.contains(&source.path.as_str()) {
        return Vec::new();
    }
    let mut lines = source.lines_with("process::Command");
    lines.extend(
        paths_from(source, "std").into_iter().filter(|(_, path)| path == "process::Command").map(|(line, _)| line),
    );
    let lines: BTreeSet<usize> = lines.into_iter().collect();
    source.complain(lines.into_iter().collect(), "std::process::Command outside the files that may spawn")
}

fn header(source: &Source) -> Vec<String> {
    let described =
        source.text.strip_prefix("//!").is_some_and(|rest| rest.lines().next().is_some_and(|l| !l.trim().is_empty()));
    if described { Vec::new() } else { source.complain(vec![1], "does not begin with a //! comment on the module") }
}

fn length(source: &Source) -> Vec<String> {
    let lines = source.text.lines().count();
    if lines <= LINES_MAX { Vec::new() } else { vec![format!("{}: {lines} lines, at most {LINES_MAX}", source.path)] }
}

fn unfinished(source: &Source) -> Vec<String> {
    let squeezed = Source { code: source.code.replace(" !", "!"), path: source.path.clone(), text: String::new() };
    let mut lines: Vec<usize> =
        ["todo!", "unimplemented!", "dbg!"].iter().flat_map(|name| squeezed.lines_with(name)).collect();
    let marker = concat!("FIX", "ME");
    lines.extend(
        source.text.lines().enumerate().filter(|(_, line)| line.contains(marker)).map(|(number, _)| number + 1),
    );
    source.complain(lines, "unfinished")
}

fn sleeping_tests(source: &Source) -> Vec<String> {
    let mut lines = source.lines_with("thread::sleep");
    lines.extend(
        paths_from(source, "std").into_iter().filter(|(_, path)| path == "thread::sleep").map(|(line, _)| line),
    );
    let lines: BTreeSet<usize> = lines.into_iter().collect();
    source.complain(lines.into_iter().collect(), "sleeps; wait for an event with a deadline")
}

/// Every Rust file of the package.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for top in ["src", "tests", "benches", "fuzz", "examples"] {
        rust_files(&root.join(top), &mut files);
    }
    files.extend(Some(root.join("build.rs")).filter(|path| path.exists()));
    files.sort();
    let name = |path: &PathBuf| path.strip_prefix(root).expect("it is below").to_str().expect("UTF-8").to_owned();
    files.iter().map(|path| Source::new(&name(path), &fs::read_to_string(path).expect("read a source file"))).collect()
}

fn rust_files(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.expect("read a directory").path();
        if path.is_dir() && path.file_name().is_none_or(|name| name != "target" && name != "cache") {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn the_source_keeps_the_rules() {
    let sources = sources();
    assert!(sources.iter().any(|source| source.path == "src/lib.rs"), "the source is not where it is looked for");
    let mut report = String::new();
    for (name, rule) in RULES {
        for complaint in sources.iter().flat_map(rule) {
            report.push_str(&format!("{name}: {complaint}\n"));
        }
    }
    let mut lengths: Vec<usize> = sources.iter().map(|source| source.text.lines().count()).collect();
    lengths.sort_unstable();
    let median = format!("{} files, median {} lines\n", lengths.len(), lengths[lengths.len() / 2]);
    std::io::stderr().write_all(median.as_bytes()).expect("write to stderr");
    assert!(report.is_empty(), "\n{report}");
}

#[test]
fn each_dependency_says_in_one_line_what_it_saves_us() {
    let read = |name: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).expect("read a file");
    let complaints = unjustified(&read("Cargo.toml"), &read(".deny.toml"));
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// The dependencies of `manifest` without a line `# name: why` in `deny`, and such lines without their dependency.
fn unjustified(manifest: &str, deny: &str) -> Vec<String> {
    let manifest: toml::Table = manifest.parse().expect("Cargo.toml is TOML");
    let mut used = BTreeSet::new();
    for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
        used.extend(
            manifest.get(table).and_then(toml::Value::as_table).into_iter().flat_map(toml::Table::keys).cloned(),
        );
    }
    let justified: BTreeSet<String> = deny
        .lines()
        .filter_map(|line| line.strip_prefix("# ")?.split_once(": "))
        .filter(|(name, why)| !name.contains(' ') && why.split_whitespace().count() >= 3)
        .map(|(name, _)| name.to_owned())
        .collect();
    let missing = used.difference(&justified).map(|name| format!("{name} has no line in .deny.toml"));
    let stale =
        justified.difference(&used).map(|name| format!("{name} is justified in .deny.toml, but nobody depends on it"));
    missing.chain(stale).collect()
}

/// Which rules a file breaks.
fn broken(path: &str, text: &str) -> Vec<&'static str> {
    let source = Source::new(path, &format!("//! What this decides.\n{text}"));
    RULES.into_iter().filter(|(_, rule)| !rule(&source).is_empty()).map(|(name, _)| name).collect()
}

/// A rule, a path, and a text that breaks this rule and no other when it is in that file.
const PLANTED: [(&str, &str, &str); 38] = [
    ("dependencies", "src/engine/pool.rs", "use crate::host::cgroup::Cgroup;"),
    ("dependencies", "src/engine/pool.rs", "fn f() { crate::daemon::clock::now(); }"),
    ("dependencies", "src/engine/pool.rs", "use crate::{\n    spec::PoolId,\n    sys::raw,\n};"),
    ("dependencies", "src/engine/pool.rs", "use crate::*;"),
    ("dependencies", "src/engine/pool.rs", "use crate :: host as h;"),
    ("dependencies", "src/spec/pool.rs", "use crate::protocol::Call;"),
    ("dependencies", "src/protocol/frame.rs", "use crate::sys::socket;"),
    ("dependencies", "src/host/spawn.rs", "use crate::protocol::{init::Report, control};"),
    ("dependencies", "src/sys/raw.rs", "use crate::spec::Limit;"),
    ("dependencies", "src/daemon/run.rs", "use crate::sys::raw;"),
    ("dependencies", "src/init/main.rs", "use crate::sys::clone;"),
    ("dependencies", "src/init/main.rs", "#[path = \"../host/spawn.rs\"]\nmod spawn;"),
    ("dependencies", "src/daemon/run.rs", "#[path = \"../sys/raw.rs\"]\nmod raw;"),
    ("dependencies", "src/cli/ps.rs", "use crate::daemon::{self, run};"),
    ("dependencies", "src/cli/ps.rs", "use crate::daemon::event_loop;"),
    ("dependencies", "src/gateway/proxy.rs", "use crate::engine::Effect;"),
    ("dependencies", "src/main.rs", "fn main() { halsup::daemon::run(); }"),
    ("dependencies", "src/util/mod.rs", ""),
    ("super", "src/engine/pool.rs", "use super::super::host::Cgroup;"),
    ("super", "src/engine/mod.rs", "use super::host::Cgroup;"),
    ("super", "src/engine/mod.rs", "mod tests { use super::super::host; }"),
    ("super", "src/protocol/varlink_tests.rs", "use super::super::super::engine::Time;"),
    ("unsafe", "src/host/spawn.rs", "fn f() { unsafe { g() } }"),
    ("unsafe", "src/host/spawn.rs", "use libc::pid_t;"),
    ("unsafe", "src/daemon/run.rs", "fn f() -> i32 { nix::libc::EAGAIN }"),
    ("clock", "src/daemon/run.rs", "fn f() { let now = Instant::now(); }"),
    ("clock", "src/cli/ps.rs", "fn f() { std::time::SystemTime::now(); }"),
    ("clock", "src/host/psi.rs", "fn f() { rustix::time::clock_gettime(id); }"),
    ("clock", "src/daemon/run.rs", "fn f(start: Instant) -> Duration { start.elapsed() }"),
    ("spawning", "src/cli/logs.rs", "use std::process::Command;"),
    ("spawning", "src/cli/logs.rs", "use std::{io, process::{Command, Stdio}};"),
    ("spawning", "src/cli/logs.rs", "use std::process;\nfn f() { process::Command::new(x); }"),
    ("unfinished", "src/cli/logs.rs", "fn f() { todo!() }"),
    ("unfinished", "src/cli/logs.rs", "fn f() { unimplemented !() }"),
    ("unfinished", "src/cli/logs.rs", "fn f() { dbg!(1); }"),
    ("unfinished", "src/cli/logs.rs", concat!("// FIX", "ME later")),
    ("sleep", "tests/it/life.rs", "fn f() { std::thread::sleep(ms); }"),
    ("sleep", "tests/it/life.rs", "use std::thread::{sleep, spawn};"),
];

/// A path and a text that may stand there.
const ALLOWED: [(&str, &str); 15] = [
    ("src/engine/pool.rs", "use crate::engine::Time;\nuse crate::spec::{PoolId, WorkerId as Id};\nuse super::Input;"),
    ("src/engine/pool.rs", "mod tests {\n    use super::super::Time;\n    use super::*;\n}"),
    ("src/protocol/varlink_tests.rs", "use super::super::seeded::Seeded;"),
    ("src/host/spawn.rs", "use crate::protocol::init::{Order, Report};\nuse crate::sys;"),
    (
        "src/init/main.rs",
        "#[path = \"../sys/raw.rs\"]\nmod raw;\n#[path = \"reap.rs\"]\nmod reap;\nuse crate::reap::all;",
    ),
    ("src/cli/daemon.rs", "use crate::daemon::{RunOptions, run};\nfn f() { crate::daemon::doctor::report(); }"),
    ("src/main.rs", "fn main() { halsup::cli::main() }"),
    ("src/sys/raw.rs", "fn f() { unsafe { libc::getpid() } }"),
    ("src/daemon/clock.rs", "fn f() { Instant::now(); }"),
    ("src/engine/pool.rs", "// unsafe libc::kill Instant::now()\n/* crate::host /* todo!() */ unsafe */"),
    ("src/engine/pool.rs", "const A: &str = \"unsafe \\\" crate::host::x\";\nconst B: &str = r#\"todo!() \" libc\"#;"),
    ("src/engine/pool.rs", "fn f<'a>(x: &'a str) -> char { '\"' }\n// '\"' unsafe\nconst C: u8 = b'\\'';"),
    ("src/engine/pool.rs", "fn f(elapsed: Duration, not_libc: u8, unsafe_root: bool) {}"),
    ("src/cli/ps.rs", "fn f(stopwatch: Stopwatch) { stopwatch.elapsed(); }"),
    ("src/cli/args.rs", "use clap::Command;\nfn f() -> Command { Command::new(x) }"),
];

#[test]
fn each_rule_goes_red_on_a_planted_violation() {
    for (rule, path, text) in PLANTED {
        assert_eq!(broken(path, text), [rule], "{path}: {text}");
    }
    assert_eq!(broken("src/cli/ps.rs", &"\n".repeat(LINES_MAX)), ["length"]);
    for text in ["fn f() {}", "// what\nfn f() {}", "//!\nfn f() {}", "\n//! late"] {
        assert_eq!(header(&Source::new("src/cli/ps.rs", text)).len(), 1, "{text}");
    }
    let shown: BTreeSet<&str> = PLANTED.iter().map(|(rule, ..)| *rule).chain(["length", "header"]).collect();
    assert_eq!(shown, RULES.into_iter().map(|(name, _)| name).collect(), "every rule has its planted violation");
}

#[test]
fn what_the_rules_allow_breaks_none() {
    for (path, text) in ALLOWED {
        assert_eq!(broken(path, text), [""; 0], "{path}: {text}");
    }
}

#[test]
fn a_dependency_without_its_reason_is_named_and_so_is_a_reason_without_its_dependency() {
    let manifest = "[dependencies]\nmio = '1'\ncaps = '0.5'\n[dev-dependencies]\ntempfile = '3'\n";
    let deny = "# mio: readiness on many descriptors\n# tempfile: short\n# nix: calls that rustix lacks\n";
    assert_eq!(
        unjustified(manifest, deny),
        [
            "caps has no line in .deny.toml",
            "tempfile has no line in .deny.toml",
            "nix is justified in .deny.toml, but nobody depends on it"
        ]
    );
}
