//! Images: their names, and what one may say of the program in it.
//!
//! One grammar for every entrance: configuration, command line, control socket, and what an archive says of itself. Of an
//! image's own configuration only what is written here is ever read (HARDENING F8).

use std::fmt;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use super::Account;

/// The longest name of an image, tag included, in bytes.
pub const IMAGE_NAME_BYTES_MAX: usize = 255;
/// The longest tag, in bytes.
const TAG_BYTES_MAX: usize = 128;
/// All texts of an image's configuration together, in bytes.
const CONFIG_BYTES_MAX: usize = 32 << 10;
/// Arguments, or variables, of an image.
const ITEMS_MAX: usize = 256;

/// The name of an image, as in `ghcr.io/hellblazer/hal-9000:worker`: always with a tag, `latest` where none was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(String);

/// A text that is no name of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{shown:?} is no name of an image; expected {expected}")]
pub struct ImageNameError {
    /// The text, cut to a printable length.
    pub shown: String,
    /// What was expected instead.
    pub expected: &'static str,
}

const NAME_EXPECTED: &str =
    "one such as alpine, alpine:3.20 or ghcr.io/owner/name:tag, in lower-case letters, digits and . _ -";

impl ImageName {
    /// Reads a name.
    ///
    /// # Errors
    /// [`ImageNameError`] says what was expected.
    pub fn parse(text: &str) -> Result<Self, ImageNameError> {
        let refuse = |expected| ImageNameError { shown: text.chars().take(80).collect(), expected };
        if text.len() > IMAGE_NAME_BYTES_MAX - ":latest".len() {
            return Err(refuse("at most 248 bytes"));
        }
        // A colon before the last slash is a port's.
        let at = text.rfind('/').map_or(0, |slash| slash + 1);
        let (path, tag) = match text.get(at..).and_then(|last| last.find(':')) {
            Some(colon) => (text.get(..at + colon).unwrap_or_default(), text.get(at + colon + 1..).unwrap_or_default()),
            None => (text, "latest"),
        };
        let (host, rest) = path.split_once('/').unwrap_or(("", path));
        let is_host = host.contains(['.', ':']) || host == "localhost";
        let sound =
            if is_host { is_registry(host) && rest.split('/').all(is_part) } else { path.split('/').all(is_part) };
        if sound && is_tag(tag) { Ok(Self(format!("{path}:{tag}"))) } else { Err(refuse(NAME_EXPECTED)) }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Letters and digits, with single separators inside.
fn is_part(part: &str) -> bool {
    let outer = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let inner = |byte: &u8| outer(byte) || matches!(byte, b'.' | b'_' | b'-');
    let bytes = part.as_bytes();
    bytes.first().is_some_and(outer)
        && bytes.last().is_some_and(outer)
        && bytes.iter().all(inner)
        && !part.contains("..")
}

fn is_registry(host: &str) -> bool {
    let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    let digits = |port: &str| (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit());
    is_part(name) && port.is_none_or(digits)
}

fn is_tag(tag: &str) -> bool {
    let first = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let inner = |byte: u8| first(&byte) || matches!(byte, b'.' | b'-');
    tag.len() <= TAG_BYTES_MAX && tag.as_bytes().first().is_some_and(first) && tag.bytes().all(inner)
}

impl TryFrom<String> for ImageName {
    type Error = ImageNameError;

    fn try_from(text: String) -> Result<Self, ImageNameError> {
        Self::parse(&text)
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.0
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a text is a digest as images have them: `sha256:` and 64 hexadecimal digits in lower case.
#[must_use]
pub fn is_image_digest(text: &str) -> bool {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.strip_prefix("sha256:").is_some_and(|digits| digits.len() == 64 && digits.bytes().all(hex))
}

/// What an image says of the program in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// When it was made; RFC 3339, as it says itself.
    pub created: Option<String>,
    /// Program and first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments, or the program where there is no entrypoint.
    pub cmd: Vec<String>,
    /// Variables, `NAME=value`.
    pub env: Vec<String>,
    /// Where the program is to begin; absolute.
    pub working_dir: Option<String>,
    /// Who it is to run as: user, or user and group with a colon between.
    pub user: Option<String>,
    /// What stops it, such as `SIGTERM`.
    pub stop_signal: Option<String>,
}

impl ImageConfig {
    /// Checks every field against its grammar.
    ///
    /// # Errors
    /// What is wrong, as half a sentence.
    pub fn check(&self) -> Result<(), &'static str> {
        let lists = [&self.entrypoint, &self.cmd, &self.env];
        let texts = [&self.created, &self.working_dir, &self.user, &self.stop_signal];
        let all = || lists.into_iter().flatten().chain(texts.into_iter().flatten());
        if lists.iter().any(|list| list.len() > ITEMS_MAX) || all().map(String::len).sum::<usize>() > CONFIG_BYTES_MAX {
            return Err("its configuration is longer than 32 KiB or 256 items");
        }
        if all().any(|text| text.contains('\0')) {
            return Err("its configuration has a NUL in it");
        }
        if self.entrypoint.iter().chain(&self.cmd).next().is_some_and(String::is_empty) {
            return Err("its program has no name");
        }
        if !self.env.iter().all(|variable| is_variable(variable)) {
            return Err("one of its variables is not NAME=value on one line");
        }
        if !self.working_dir.iter().all(|dir| is_working_dir(dir)) {
            return Err("its working directory is not an absolute path, or leads into /proc");
        }
        if !self.user.iter().all(|user| is_user(user)) {
            return Err("its user is no name or number, or two of them with a colon between");
        }
        if !self.stop_signal.iter().all(|signal| super::parse_signal(signal).is_ok()) {
            return Err("its stop signal is none");
        }
        let printable = |text: &String| text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_graphic());
        if !self.created.iter().all(printable) {
            return Err("its date is none");
        }
        Ok(())
    }
}

fn is_variable(text: &str) -> bool {
    let Some((name, value)) = text.split_once('=') else { return false };
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    first && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') && !value.contains('\n')
}

fn is_working_dir(text: &str) -> bool {
    let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    let path = Path::new(text);
    text.starts_with('/')
        && text.len() <= 4095
        && !text.chars().any(char::is_control)
        && path.components().all(plain)
        && !path.starts_with("/proc")
}

fn is_user(text: &str) -> bool {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let sound = |account: &str| match Account::parse(account) {
        Ok(Account::Id(id)) => id <= 65_535,
        Ok(Account::Name(_)) => true,
        Err(_) => false,
    };
    sound(user) && group.is_none_or(sound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images() {
        for (text, name) in [
            ("alpine", "alpine:latest"),
            ("alpine:3.20", "alpine:3.20"),
            ("ghcr.io/hellblazer/hal-9000:worker", "ghcr.io/hellblazer/hal-9000:worker"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("a/b-c_d:V1.0-x", "a/b-c_d:V1.0-x"),
        ] {
            assert_eq!(ImageName::parse(text).unwrap().as_str(), name);
            assert_eq!(ImageName::parse(name).unwrap().as_str(), name, "a name is its own name");
        }
        let long = "a".repeat(249);
        for text in [
            "",
            ":",
            "a:",
            ":b",
            "/",
            "a/",
            "/a",
            "../etc",
            "a/../b",
            "a..b",
            "A",
            "a b",
            "a:b:c",
            "a@sha256:00",
            "-a",
            "a-",
            "a:-x",
            "a\n",
            "a/b:\u{1b}",
            "ä",
            "host:port/a",
            "localhost:123456/a",
            ".",
            &long,
        ] {
            assert!(ImageName::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn digests_have_one_spelling() {
        let hex = "0123456789abcdef".repeat(4);
        assert!(is_image_digest(&format!("sha256:{hex}")));
        for wrong in [
            hex.clone(),
            format!("sha256:{}", hex.to_uppercase()),
            format!("sha512:{hex}"),
            format!("sha256:{hex}0"),
            "sha256:../../x".into(),
        ] {
            assert!(!is_image_digest(&wrong), "{wrong}");
        }
    }

    #[test]
    fn every_field_has_its_grammar() {
        let with = |change: &dyn Fn(&mut ImageConfig)| {
            let mut config = ImageConfig::default();
            change(&mut config);
            config.check()
        };
        for user in ["0", "1000:1000", "www-data", "a:b", "root:0"] {
            assert_eq!(with(&|c| c.user = Some(user.into())), Ok(()), "{user}");
        }
        for user in ["", ":", "0:0:0", "4294967296", "65536", "-1", "+0", "1000x", "a\nroot", "a:"] {
            assert!(with(&|c| c.user = Some(user.into())).is_err(), "{user:?}");
        }
        for env in ["NOEQ", "=x", "1A=x", "A B=x", "A=x\nB=y", "A=\0"] {
            assert!(with(&|c| c.env = vec![env.into()]).is_err(), "{env:?}");
        }
        for dir in ["relative", "/proc/self/fd/3", "/a/../proc", "/a\nb", ""] {
            assert!(with(&|c| c.working_dir = Some(dir.into())).is_err(), "{dir:?}");
        }
        assert!(with(&|c| c.stop_signal = Some("SIGNOPE".into())).is_err());
        assert!(with(&|c| c.entrypoint = vec![String::new()]).is_err());
        assert!(with(&|c| c.cmd = vec!["x".repeat(1000); 100]).is_err());
        assert_eq!(with(&|c| c.stop_signal = Some("SIGTERM".into())), Ok(()));
    }
}
