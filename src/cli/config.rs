//! From a file or a command line to a configuration: reads the bytes, and has `spec` say what they mean.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use super::error::Error;
pub(super) use crate::spec::PoolOverrides;
use crate::spec::{CHROMADB_PROGRAM, Config, PoolName, parse_config, pool_from_command};

/// Where the configuration is, unless somebody says otherwise.
pub(super) const DEFAULT_PATH: &str = "/etc/halsup/halsup.toml";

/// Whether there are to be warm workers, where no file says it.
const POOL_ENABLED: &str = "ENABLE_POOL_MANAGER";

/// How much of a file is read, in bytes: one more than a configuration may have, so that `spec` sees that it is too long.
const READ_BYTES_MAX: u64 = (1 << 20) + 1;

/// Reads and checks the file at `path`.
///
/// # Errors
/// The file is not there (exit 5), cannot be read (1), or its content is wrong (2).
pub(super) fn load(path: &Path, environment: &BTreeMap<String, String>) -> Result<Config, Error> {
    let failed = |source: std::io::Error| {
        if source.kind() == ErrorKind::NotFound {
            Error::FileMissing { path: path.into() }
        } else {
            Error::ReadFile { path: path.into(), source }
        }
    };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(READ_BYTES_MAX).read_to_end(&mut bytes)).map_err(failed)?;
    let wrong = |lines: Vec<String>| Error::Config { path: Some(path.into()), lines };
    let text = String::from_utf8(bytes).map_err(|error| wrong(vec![error.utf8_error().to_string()]))?;
    check(path, &text, environment)
}

/// What holds without a file: one pool whose workers can be claimed, warm ones where the variables of the system before this
/// one ask for them, and ChromaDB beside it where that is installed.
///
/// # Errors
/// A variable is wrong (exit 2).
pub(super) fn without_file(environment: &BTreeMap<String, String>) -> Result<&'static str, Error> {
    let is_warm = match environment.get(POOL_ENABLED).map_or("", String::as_str) {
        "true" | "1" => true,
        "" | "false" | "0" => false,
        other => {
            return Err(Error::Usage { reason: format!("{POOL_ENABLED}: found {other:?}; expected true or false") });
        }
    };
    Ok(match (is_warm, Path::new(CHROMADB_PROGRAM).is_file()) {
        (true, true) => "[service.chromadb]\n[pool.hal9000.claims]\n",
        (true, false) => "[pool.hal9000.claims]\n",
        (false, true) => "[service.chromadb]\n[pool.hal9000.claims]\nmin = 0\n",
        (false, false) => "[pool.hal9000.claims]\nmin = 0\n",
    })
}

/// Checks the text of the file at `path`.
///
/// # Errors
/// Its content is wrong (exit 2).
pub(super) fn check(path: &Path, text: &str, environment: &BTreeMap<String, String>) -> Result<Config, Error> {
    parse_config(text, environment)
        .map_err(|errors| Error::Config { path: Some(path.into()), lines: lines_of(&errors) })
}

/// Makes a configuration of one pool out of a command line.
///
/// # Errors
/// What is wrong with the options or the environment (exit 2).
pub(super) fn of_command(
    name: PoolName,
    size: u32,
    command: &[String],
    overrides: &PoolOverrides,
    environment: &BTreeMap<String, String>,
) -> Result<Config, Error> {
    let wrong = |errors| Error::Config { path: None, lines: lines_of(&errors) };
    let mut config = parse_config("", environment).map_err(wrong)?;
    config.pools.push(pool_from_command(name, size, command, overrides, environment).map_err(wrong)?);
    Ok(config)
}

fn lines_of(errors: &impl std::fmt::Display) -> Vec<String> {
    errors.to_string().lines().map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit_code::ExitCode;

    #[test]
    fn a_file_that_is_missing_is_not_one_that_is_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("halsup.toml");
        let load = || load(&path, &BTreeMap::new());
        assert_eq!(load().unwrap_err().exit_code(), ExitCode::NotFound);
        for (content, expected) in [
            (&b"[pool.web]\nsise = 3\ncommand = ['x']\n"[..], "line 2: pool.web.sise: unknown key"),
            (b"\xff", "invalid utf-8"),
            (&vec![b' '; (1 << 20) + 1], "the file has 1048577 bytes"),
        ] {
            std::fs::write(&path, content).unwrap();
            let error = load().unwrap_err();
            assert_eq!(error.exit_code(), ExitCode::Usage);
            let sentence = error.sentence();
            assert!(sentence.starts_with(path.to_str().unwrap()) && sentence.contains(expected), "{sentence}");
        }
        std::fs::write(&path, "[pool.web]\ncommand = ['true']\nsize = 3\n").unwrap();
        assert_eq!(load().unwrap().pools.len(), 1);
    }

    #[test]
    fn a_command_line_is_a_configuration_of_one_pool() {
        let name = PoolName::parse("web").unwrap();
        let of_command = |memory: &str| {
            let overrides = PoolOverrides { memory: Some(memory.into()), ..PoolOverrides::default() };
            of_command(name.clone(), 3, &["/bin/true".into()], &overrides, &BTreeMap::new())
        };
        assert_eq!(of_command("64M").unwrap().pools[0].policy.size.min, 3);
        let error = of_command("4x").unwrap_err();
        assert!(error.sentence().starts_with("--memory: "), "{}", error.sentence());
        assert_eq!(error.exit_code(), ExitCode::Usage);
    }
}
