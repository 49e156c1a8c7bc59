//! What holds for every verb: how to print, which daemon is meant, where its configuration is.
//!
//! The daemon is found by, in this order: `--socket`; `--config`, by the runtime directory that it says;
//! `HALSUP_RUNTIME_DIR`; the default configuration, where there is one that can be read; the instance's default directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::client::Client;
use super::config;
use super::error::Error;
use super::output::Output;
use crate::protocol::control::{NoParameters, Request, StatusReply};
use crate::spec::{Config, DaemonSpec, InstanceName};

/// The variable that names the instance; `--instance` goes before it.
const INSTANCE: &str = "HALSUP_INSTANCE";

/// The variable that names the directory of the control socket.
const RUNTIME_DIR: &str = "HALSUP_RUNTIME_DIR";

/// The options that hold for every verb, and the environment.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) output: Output,
    socket: Option<PathBuf>,
    config: Option<PathBuf>,
    default_config: &'static Path,
    environment: BTreeMap<String, String>,
}

impl Context {
    /// Reads the environment; an option goes before its variable.
    pub(super) fn new(
        output: Output,
        instance: Option<InstanceName>,
        socket: Option<PathBuf>,
        config: Option<PathBuf>,
    ) -> Self {
        // A variable that is not UTF-8 is not one of ours, and must not make us panic.
        let utf8 = |(key, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((key.into_string().ok()?, value.into_string().ok()?))
        };
        Self::with_environment(output, instance, socket, config, std::env::vars_os().filter_map(utf8).collect())
    }

    pub(super) fn with_environment(
        output: Output,
        instance: Option<InstanceName>,
        socket: Option<PathBuf>,
        config: Option<PathBuf>,
        mut environment: BTreeMap<String, String>,
    ) -> Self {
        if let Some(instance) = instance {
            environment.insert(INSTANCE.into(), instance.to_string());
        }
        Self { output, socket, config, default_config: Path::new(config::DEFAULT_PATH), environment }
    }

    /// The environment that configuration is read with.
    pub(super) const fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }

    /// Where the configuration is: as said, else the default.
    pub(super) fn config_path(&self) -> &Path {
        self.config.as_deref().unwrap_or(self.default_config)
    }

    /// The configuration that a daemon has for want of a file; `None` where there is one, or one was named.
    ///
    /// # Errors
    /// A variable is wrong.
    pub(super) fn config_without_file(&self) -> Result<Option<&'static str>, Error> {
        let missing = self.config.is_none() && !self.default_config.exists();
        missing.then(|| config::without_file(&self.environment)).transpose()
    }

    /// The configuration that a daemon is to have: the file's, or what holds without one.
    pub(super) fn daemon_config(&self) -> Result<Config, Error> {
        match self.config_without_file()? {
            Some(text) => self.check_config(text),
            None => self.load_config(),
        }
    }

    /// Reads the configuration.
    pub(super) fn load_config(&self) -> Result<Config, Error> {
        config::load(self.config_path(), &self.environment)
    }

    /// The configuration of a text that was read before.
    pub(super) fn check_config(&self, text: &str) -> Result<Config, Error> {
        config::check(self.config_path(), text, &self.environment)
    }

    /// Refuses `--socket` where a daemon is made, not talked to.
    pub(super) fn refuse_socket(&self) -> Result<(), Error> {
        match self.socket {
            Some(_) => Err(Error::Usage {
                reason: "--socket says where to ask; where the daemon listens is its `runtime_dir`".into(),
            }),
            None => Ok(()),
        }
    }

    /// The control socket of the daemon that is meant.
    pub(super) fn socket(&self) -> Result<PathBuf, Error> {
        if let Some(socket) = &self.socket {
            return Ok(socket.clone());
        }
        if self.config.is_some() {
            return Ok(socket_in(&self.load_config()?.daemon.runtime_dir));
        }
        let set = |name| self.environment.get(name).filter(|value| !value.is_empty());
        if let Some(directory) = set(RUNTIME_DIR) {
            return Ok(socket_in(Path::new(directory)));
        }
        // A caller who may not read it, or finds it broken, can still ask the daemon in its usual place.
        if let Ok(config) = self.load_config() {
            return Ok(socket_in(&config.daemon.runtime_dir));
        }
        let instance = match set(INSTANCE) {
            Some(name) => {
                InstanceName::parse(name).map_err(|error| Error::Usage { reason: format!("{INSTANCE}: {error}") })?
            }
            None => InstanceName::default(),
        };
        Ok(if instance == InstanceName::default() {
            socket_in(Path::new("/run/halsup"))
        } else {
            socket_in(Path::new(&format!("/run/halsup-{instance}")))
        })
    }

    /// The state directory of the daemon that is meant: by its own word, or where none runs, by its configuration.
    pub(super) fn state_dir(&self) -> Result<PathBuf, Error> {
        let told = self.client().and_then(|mut client| client.call(&Request::Status(NoParameters {})));
        if let Ok(status) = told {
            let status: StatusReply = status;
            return Ok(PathBuf::from(status.state_dir));
        }
        Ok(self.config_or_default()?.daemon.state_dir)
    }

    /// The settings of the daemon that is meant: its configuration's, with the directories that it says itself if it runs.
    pub(super) fn daemon_spec(&self) -> Result<DaemonSpec, Error> {
        let mut spec = self.config_or_default()?.daemon;
        let told = self.client().and_then(|mut client| client.call(&Request::Status(NoParameters {})));
        if let Ok(status) = told {
            let status: StatusReply = status;
            (spec.state_dir, spec.runtime_dir) = (status.state_dir.into(), status.runtime_dir.into());
        }
        Ok(spec)
    }

    /// The configuration, or what holds where there is no file and none was named.
    pub(super) fn config_or_default(&self) -> Result<Config, Error> {
        match self.load_config() {
            Err(Error::FileMissing { .. }) if self.config.is_none() => self.default_config_of_instance(),
            loaded => loaded,
        }
    }

    /// What holds without a file.
    pub(super) fn default_config_of_instance(&self) -> Result<Config, Error> {
        config::check(self.config_path(), "", &self.environment)
    }

    /// Connects to the daemon.
    pub(super) fn client(&self) -> Result<Client, Error> {
        Client::connect(&self.socket()?)
    }
}

/// The control socket of a daemon with this runtime directory.
pub(super) fn socket_in(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("control.sock")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(instance: Option<&str>, socket: Option<&str>, environment: &[(&str, &str)]) -> Result<String, String> {
        let environment = environment.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let instance = instance.map(|name| InstanceName::parse(name).unwrap());
        let mut context =
            Context::with_environment(Output::new(false), instance, socket.map(PathBuf::from), None, environment);
        // This machine's own configuration is no part of the test.
        context.default_config = Path::new("/nonexistent");
        context.socket().map(|path| path.display().to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_socket_is_found_by_option_then_variable_then_default() {
        let named = [("HALSUP_INSTANCE", "blue")];
        let placed = [("HALSUP_RUNTIME_DIR", "/tmp/x"), ("HALSUP_INSTANCE", "blue")];
        assert_eq!(socket(None, None, &[]), Ok("/run/halsup/control.sock".into()));
        assert_eq!(socket(Some("default"), None, &[]), Ok("/run/halsup/control.sock".into()));
        assert_eq!(socket(None, None, &named), Ok("/run/halsup-blue/control.sock".into()));
        assert_eq!(socket(Some("red"), None, &named), Ok("/run/halsup-red/control.sock".into()));
        assert_eq!(socket(None, None, &placed), Ok("/tmp/x/control.sock".into()));
        assert_eq!(socket(Some("red"), Some("/y"), &placed), Ok("/y".into()));
        assert_eq!(socket(None, None, &[("HALSUP_INSTANCE", "")]), Ok("/run/halsup/control.sock".into()));
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("halsup.toml");
        std::fs::write(&config, "[daemon]\nruntime_dir = '/srv/run'\n").unwrap();
        let of_config = |environment: &[(&str, &str)]| {
            let environment = environment.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
            Context::with_environment(Output::new(false), None, None, Some(config.clone()), environment)
                .socket()
                .unwrap()
        };
        assert_eq!(of_config(&[]), Path::new("/srv/run/control.sock"));
        assert_eq!(of_config(&placed), Path::new("/tmp/x/control.sock"));
        assert!(socket(None, None, &[("HALSUP_INSTANCE", "../x")]).unwrap_err().starts_with("HALSUP_INSTANCE: name"));
    }
}
