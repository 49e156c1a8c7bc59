//! Coming from HAL-9000: every command line of halsup in `docs/hal9000.md` is run, in the order of the document, against one
//! real daemon that has no configuration file; each has to end and to say what the document says.

#![expect(clippy::disallowed_types, reason = "the test runs the document's lines in a shell, as its reader does")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::chromadb;
use crate::needs::{Need, met, needs};
use crate::place::{Output, Place, command_of, program};
use crate::ports::free_ports;

/// One line of a table.
#[derive(Debug)]
struct Twin {
    line: usize,
    /// The heading that it stands under.
    section: String,
    command: String,
    status: i32,
    says: String,
}

/// The text between the first two backticks; a pipe in a table is written with a backslash.
fn quoted(cell: &str) -> Option<String> {
    Some(cell.split('`').nth(1)?.replace("\\|", "|"))
}

/// Every row of three cells below the heading `there | here | says`.
fn twins(text: &str) -> Vec<Twin> {
    let mut twins = Vec::new();
    let mut inside = false;
    let mut section = String::new();
    for (number, line) in text.lines().enumerate() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading.to_owned();
        }
        if line == "| there | here | says |" {
            inside = true;
        } else if !line.starts_with('|') {
            inside = false;
        } else if inside && !line.starts_with("|---") {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
            assert_eq!(cells.len(), 3, "line {}: {line}", number + 1);
            let status = cells[2].trim().strip_prefix("exit ").and_then(|rest| rest.split(',').next());
            twins.push(Twin {
                line: number + 1,
                section: section.clone(),
                command: quoted(cells[1]).unwrap_or_else(|| panic!("line {}: no command", number + 1)),
                status: status.map_or(0, |status| status.parse().expect("a status")),
                says: quoted(cells[2]).unwrap_or_default(),
            });
        }
    }
    twins
}

/// Runs a line in a shell that has the variables of this place and nothing else.
fn run(place: &Place, project: &Path, port: u16, line: &str) -> Output {
    let path = format!("{}:{}", place.path("bin").display(), std::env::var("PATH").unwrap_or_default());
    let mut shell: Command = command_of("sh".into());
    shell.args(["-c", line]).current_dir(project).env("PATH", path).env("HAL9000_HOME", place.path("state"));
    shell.env("HALSUP_INSTANCE", place.instance()).env("CHROMADB_PORT", port.to_string());
    shell.env("HALSUP_RUNTIME_DIR", place.path("run")).env("HALSUP_STATE_DIR", place.path("state"));
    place.run_bounded(&mut shell)
}

/// The worker of a session, by the file that tells it.
fn worker_of(home: &Path, session: &str) -> Option<String> {
    let text = fs::read_to_string(home.join("sessions").join(session).with_extension("json")).ok()?;
    let file: serde_json::Value = serde_json::from_str(&text).ok()?;
    Some(file["worker"].as_str()?.to_owned())
}

#[test]
fn every_line_of_the_document_does_what_the_document_says() {
    needs!(Root, CgroupTree);
    assert!(!Path::new("/etc/halsup/halsup.toml").exists(), "the document speaks of a host without a configuration");
    let document = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/hal9000.md");
    let Ok(text) = fs::read_to_string(&document) else { panic!("read {}", document.display()) };
    let twins = twins(&text);
    assert!(twins.len() > 50, "{} lines", twins.len());
    let holds_limits = met(&[Need::Cgroup2("memory"), Need::Cgroup2("cpu"), Need::Cgroup2("pids")]);
    let has_chromadb = met(&[Need::Program(chromadb::PROGRAM), Need::Program("curl")]);
    // The document's ports may be somebody's on this machine.
    let [usual, other] = [free_ports(1), free_ports(1)];
    let place = Place::new("");
    fs::create_dir(place.path("bin")).expect("make a directory");
    std::os::unix::fs::symlink(program(), place.path("bin/halsup")).expect("put halsup on the path");
    // Where projects are by default.
    let project = tempfile::tempdir_in("/root").expect("a project");
    let mut wrong = Vec::new();
    for twin in twins {
        if twin.section == "ChromaDB" && !has_chromadb {
            continue;
        }
        let mut worker = String::new();
        if twin.command.contains("WORKER") && !twin.command.contains("WORKER_") {
            worker = worker_of(&place.path("state"), "my-session").unwrap_or_default();
        }
        let fill = |text: &str| {
            let text = text.replace("/path/to/project", &project.path().display().to_string());
            let text = text.replace("8000", &usual.to_string()).replace("8080", &other.to_string());
            if worker.is_empty() { text } else { text.replace("WORKER", &worker) }
        };
        let refuses = !holds_limits && twin.command.contains("--memory");
        let (status, says) = if refuses { (1, "memory.max".to_owned()) } else { (twin.status, fill(&twin.says)) };
        let output = run(&place, project.path(), usual, &fill(&twin.command));
        if output.status != status || !(output.stdout.contains(&says) || output.stderr.contains(&says)) {
            wrong.push(format!("line {}: {}\n  expected {status}, {says:?}: {output:?}", twin.line, twin.command));
        }
    }
    assert_eq!(run(&place, project.path(), usual, "halsup daemon stop").status, 0);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_row_that_says_nothing_or_the_wrong_thing_is_seen() {
    let rows = twins(
        "| there | here | says |\n|---|---|---|\n| `a` | `b \\| c` | exit 5, `d` |\n| `e` | `f` | |\n\n| `g` | `h` | `i` |\n",
    );
    let seen: Vec<_> = rows.iter().map(|row| (row.command.as_str(), row.status, row.says.as_str())).collect();
    assert_eq!(seen, [("b | c", 5, "d"), ("f", 0, "")]);
}
