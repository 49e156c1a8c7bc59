//! What README.md states is true: exit codes, limits, verbs and every configuration in it, held against the program.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use halsup::exit_code::ExitCode;
use halsup::spec::parse_config;

fn package(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(package(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The rows of the table under `heading`, without its two head lines, cell by cell.
fn table(heading: &str) -> Vec<Vec<String>> {
    let readme = read("README.md");
    let (_, section) = readme.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no ## {heading}"));
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows: Vec<Vec<String>> = section
        .lines()
        .filter_map(|line| line.strip_prefix('|')?.strip_suffix('|'))
        .map(|line| line.split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect();
    assert!(rows.len() > 2, "## {heading} has no table");
    rows[2..].to_vec()
}

#[test]
fn the_exit_codes_are_those_of_the_program() {
    let rows: Vec<(u8, String)> =
        table("Exit codes").into_iter().map(|row| (row[0].parse().unwrap(), row[1].clone())).collect();
    // Both by the source, so that a code added there is missed here.
    let source = read("src/exit_code.rs");
    let mut expected = Vec::new();
    let mut meaning = String::new();
    for line in source.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("/// ") {
            meaning = text.trim_end_matches('.').to_owned();
        } else if let Some((_, code)) = line.strip_suffix(',').and_then(|line| line.split_once(" = ")) {
            expected.push((code.parse().unwrap(), meaning.clone()));
        }
    }
    assert_eq!(rows, expected);
    assert_eq!(rows.last().map(|row| row.0), Some(ExitCode::CommandNotFound as u8), "the source was read to its end");
}

/// `200 KiB`, `10,000`, `16`, `90 s` as a number in the base unit.
fn amount(text: &str) -> u64 {
    let mut words = text.split(' ');
    let number: u64 = words.next().unwrap_or_default().replace(',', "").parse().unwrap_or_else(|_| panic!("{text}"));
    number
        * match words.next() {
            Some("KiB") => 1 << 10,
            Some("MiB") => 1 << 20,
            Some("GiB") => 1 << 30,
            Some("days") => 86_400,
            Some("hours" | "hour") => 3_600,
            _ => 1,
        }
}

/// The value of `const NAME: … = …;` in a source: products, sums and shifts of whole numbers, also in `from_secs`.
fn constant(source: &str, name: &str) -> Option<u64> {
    let (_, rest) = source.split_once(&format!("const {name}: "))?;
    let (_, value) = rest.split(';').next()?.split_once('=')?;
    let value = value.trim();
    let value = value.strip_prefix("Duration::from_secs(").map_or(value, |inner| inner.trim_end_matches(')'));
    let number = |text: &str| text.trim().replace('_', "").parse::<u64>().ok();
    let product = |text: &str| text.split('*').map(number).product::<Option<u64>>();
    match value.split_once("<<") {
        Some((base, shift)) => Some(number(base)? << number(shift)?),
        None => value.split('+').map(product).sum(),
    }
}

#[test]
fn the_limits_are_those_of_the_source() {
    let mut wrong = Vec::new();
    for row in table("Limits") {
        let [what, limit, place] = &row[..] else { panic!("{row:?}") };
        let (path, name) = place.trim_matches('`').rsplit_once(' ').unwrap_or_else(|| panic!("{what}: {place}"));
        let actual = constant(&read(&format!("src/{path}")), name);
        if actual != Some(amount(limit)) {
            wrong.push(format!("{what}: README says {limit}, {path} has {name} = {actual:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn constants_are_read_as_they_are_written() {
    let source = "pub const A: usize = 256 * 1024;\nconst B: u64 = 1 << 20;\nconst C: u32 = 10_000;\n\
                  const D: Duration = Duration::from_secs(7 * 24 * 3_600);\nconst E: &str = \"x\";";
    let read = ["A", "B", "C", "D", "E", "F"].map(|name| constant(source, name));
    assert_eq!(read, [Some(262_144), Some(1_048_576), Some(10_000), Some(604_800), None, None]);
    assert_eq!(["256 KiB", "1 MiB", "10,000", "7 days"].map(amount), [262_144, 1_048_576, 10_000, 604_800]);
}

/// The verbs that `halsup … --help` lists.
#[expect(clippy::disallowed_types, reason = "runs the program as its user does")]
fn verbs(of: &[&str]) -> Vec<String> {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_halsup"))
        .args(of)
        .arg("--help")
        .stdin(std::process::Stdio::null())
        .output()
        .expect("run halsup --help");
    assert!(output.status.success(), "{of:?}: {output:?}");
    let help = String::from_utf8_lossy(&output.stdout);
    let (_, commands) = help.split_once("Commands:\n").unwrap_or_else(|| panic!("no commands: {help}"));
    commands
        .lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|verb| *verb != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_verb_is_in_the_table_and_no_other() {
    const GROUPS: [&str; 2] = ["daemon", "image"];
    let mut expected: BTreeSet<String> =
        verbs(&[]).into_iter().filter(|verb| !GROUPS.contains(&verb.as_str())).collect();
    for group in GROUPS {
        expected.extend(verbs(&[group]).into_iter().map(|verb| format!("{group} {verb}")));
    }
    assert!(expected.len() > 10, "{expected:?}");
    let known = |command: &str| {
        let words: Vec<&str> = command.split_whitespace().collect();
        expected.iter().find(|verb| words.starts_with(&verb.split(' ').collect::<Vec<_>>())).cloned()
    };
    let named: BTreeSet<String> = table("Commands")
        .iter()
        .map(|row| {
            let command = row[0].trim_matches('`').to_owned();
            known(&command).unwrap_or_else(|| panic!("{command} is no verb"))
        })
        .collect();
    assert_eq!(named, expected);
}

#[test]
fn every_configuration_in_the_texts_is_right() {
    let mut count = 0;
    for path in ["README.md", "docs/worker-contract.md", "docs/configuration.md", "docs/sessions.md", "docs/tasks.md"] {
        let text = read(path);
        for block in text.split("```toml\n").skip(1) {
            let (sample, _) = block.split_once("```").unwrap();
            let config = parse_config(sample, &BTreeMap::new());
            assert!(config.is_ok(), "{path}: {}\n{sample}", config.unwrap_err());
            count += 1;
        }
    }
    assert!(count >= 2, "{count}");
}

#[test]
fn every_link_leads_somewhere() {
    for path in ["README.md", "SECURITY.md"] {
        for link in read(path).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if !link.starts_with("https://") {
                let file = link.split('#').next().unwrap();
                assert!(package(file).exists(), "{path}: {link}");
            }
        }
    }
}

#[test]
fn every_example_that_is_named_exists() {
    for word in read("README.md").split(|c: char| c.is_whitespace() || "`(),;".contains(c)) {
        let word = word.trim_end_matches(['.', ':']);
        if word.starts_with("examples/") || word.starts_with("systemd/") || word.starts_with("tests/") {
            assert!(package(word).exists(), "{word}");
        }
    }
}
