//! The files about configuration that a user copies or reads agree with what is read: examples and reference.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use halsup::spec::{Config, parse_config, reference};

fn of_the_package(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn example(name: &str) -> Config {
    let text = std::fs::read_to_string(of_the_package("examples").join(name));
    let text = text.unwrap_or_else(|error| panic!("{name}: {error}"));
    parse_config(&text, &BTreeMap::new()).unwrap_or_else(|errors| panic!("{name}:\n{errors}"))
}

#[test]
fn every_example_is_right() {
    let mut names: Vec<String> = std::fs::read_dir(of_the_package("examples"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| Path::new(name).extension().is_some_and(|extension| extension == "toml"))
        .collect();
    names.sort();
    assert!(names.contains(&"web.toml".to_owned()) && names.contains(&"full.toml".to_owned()), "{names:?}");
    for name in names {
        assert!(!example(&name).pools.is_empty(), "{name} has no pools");
    }
}

#[test]
fn the_full_example_has_one_of_each() {
    let config = example("full.toml");
    let names: Vec<&str> = config.pools.iter().map(|pool| pool.name.as_str()).collect();
    assert_eq!(names, ["chromadb", "web", "beats", "channel"], "in the order of the file");
    let services: Vec<bool> = config.pools.iter().map(|pool| pool.service).collect();
    assert_eq!(services, [true, false, false, false]);
}

/// `HALSUP_WRITE_REFERENCE=1 cargo test --test configuration` writes the file anew.
#[test]
fn the_reference_in_docs_is_the_one_that_is_read_by() {
    let path = of_the_package("docs/configuration.md");
    if std::env::var_os("HALSUP_WRITE_REFERENCE").is_some() {
        std::fs::write(&path, reference()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == reference(), "docs/configuration.md is not reference(): write it with HALSUP_WRITE_REFERENCE=1");
}

/// The TOML in the reference, which a newcomer copies first, is a configuration.
#[test]
fn the_sample_in_the_reference_is_right() {
    let reference = reference();
    let (_, rest) = reference.split_once("```toml\n").unwrap();
    let (sample, _) = rest.split_once("```").unwrap();
    let config = parse_config(sample, &BTreeMap::new()).unwrap();
    assert_eq!(config.pools.len(), 1);
}
