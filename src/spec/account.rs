//! Users by name or number, and the identities of workers.
//!
//! A number that does not parse is never tried as a name, nothing falls through to root, and nothing is looked up: names
//! are resolved outside the daemon (HARDENING A8, S7).

use super::Identity;
use super::scalar::{ScalarError, parse_digits};

/// The highest uid or gid that may be written: the upper half is where other programs put special meanings.
pub const ACCOUNT_ID_MAX: u32 = 2_147_483_647;

/// A user or group as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    /// By number, 0..=2,147,483,647.
    Id(u32),
    /// By name, `[a-z_][a-z0-9_-]{0,31}`.
    Name(String),
}

impl Account {
    /// Reads a user or group: up to ten digits without leading zero, or a name.
    ///
    /// # Errors
    /// Anything else; a text that begins with a digit is a number or nothing.
    pub fn parse(text: &str) -> Result<Self, ScalarError> {
        let refuse = || ScalarError::new(text, "a number up to 2147483647 or a name of a-z, 0-9, '_' and '-'");
        let first = text.bytes().next().ok_or_else(refuse)?;
        if first.is_ascii_digit() {
            // `010` is eight to some readers and ten to others.
            let plain = text.len() == 1 || (first != b'0' && text.len() <= 10);
            let id = parse_digits(text).filter(|_| plain).and_then(|id| u32::try_from(id).ok());
            return id.filter(|id| *id <= ACCOUNT_ID_MAX).map(Self::Id).ok_or_else(refuse);
        }
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
        if text.len() > 32 || first == b'-' || !text.bytes().all(inner) {
            return Err(refuse());
        }
        Ok(Self::Name(text.to_owned()))
    }
}

impl Identity {
    /// Reads `dynamic`, `mapped`, `host:NAME`, `host:NUMBER` or `unsafe-root`.
    ///
    /// # Errors
    /// Anything else; `host:root` and `host:0` too, because root is only ever had by the word `unsafe-root`.
    pub fn parse(text: &str) -> Result<Self, ScalarError> {
        let refuse = |expected| Err(ScalarError::new(text, expected));
        match text {
            "dynamic" => return Ok(Self::Dynamic),
            "mapped" => return Ok(Self::Mapped),
            "unsafe-root" => return Ok(Self::UnsafeRoot),
            _ => {}
        }
        let Some(user) = text.strip_prefix("host:") else {
            return refuse("dynamic, mapped, host:NAME or unsafe-root");
        };
        match Account::parse(user) {
            Ok(Account::Id(0)) => refuse("a user other than root, or unsafe-root"),
            Ok(Account::Name(name)) if name == "root" => refuse("a user other than root, or unsafe-root"),
            Ok(_) => Ok(Self::Host(user.to_owned())),
            Err(error) => refuse(error.expected),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_users() {
        for (text, id) in [("0", 0), ("1", 1), ("1000", 1000), ("65534", 65534), ("2147483647", ACCOUNT_ID_MAX)] {
            assert_eq!(Account::parse(text), Ok(Account::Id(id)), "{text}");
        }
        let longest = "a".repeat(32);
        for name in ["root", "www-data", "_apt", "a", "x1000", "systemd-network", "null", longest.as_str()] {
            assert_eq!(Account::parse(name), Ok(Account::Name(name.to_owned())), "{name}");
        }
        let too_long = "a".repeat(33);
        for bad in [
            "",
            " ",
            "4294967296",
            "4294967295",
            "2147483648",
            "18446744073709551616",
            "-1",
            "-0",
            "+0",
            "+1",
            "1000x",
            "0x0",
            "0:0",
            "0:0:0",
            "00",
            "007",
            "01",
            "1e3",
            "1.0",
            "1_000",
            "1,000",
            " 0",
            "0 ",
            "0\n",
            "0\0",
            "\u{661}",
            "\u{ff10}",
            "-root",
            "Root",
            "ROOT",
            "ro ot",
            "root\n",
            "root:0",
            "root/",
            "../root",
            "ä",
            "user.name",
            "user$",
            "@user",
            "#0",
            "%n",
            "99999999999",
            too_long.as_str(),
        ] {
            assert!(Account::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn identities() {
        assert_eq!(Identity::parse("dynamic"), Ok(Identity::Dynamic));
        assert_eq!(Identity::parse("mapped"), Ok(Identity::Mapped));
        assert_eq!(Identity::parse("unsafe-root"), Ok(Identity::UnsafeRoot));
        assert_eq!(Identity::parse("host:nobody"), Ok(Identity::Host("nobody".to_owned())));
        assert_eq!(Identity::parse("host:1000"), Ok(Identity::Host("1000".to_owned())));
        for bad in [
            "",
            "root",
            "host",
            "host:",
            "host:root",
            "host:0",
            "host:00",
            "host:-1",
            "Dynamic",
            "dynamic ",
            "host: a",
            "host:4294967296",
            "unsafe_root",
        ] {
            assert!(Identity::parse(bad).is_err(), "{bad:?}");
        }
    }
}
