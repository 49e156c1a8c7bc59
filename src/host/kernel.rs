//! Which kernel this is.
//!
//! A number tells what should be there and nothing more: whoever needs a call tries it. `doctor` shows it, and seccomp profiles
//! choose rules by it.

/// The oldest kernel that halsup runs on.
pub const OLDEST: (u32, u32) = (6, 1);

/// The running kernel's version, as 6 and 1; zeros if its name has another form.
#[must_use]
pub fn version() -> (u32, u32) {
    rustix::system::uname().release().to_str().ok().and_then(parse).unwrap_or((0, 0))
}

/// The running kernel's full name, such as `6.1.0-18-amd64`.
#[must_use]
pub fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn parse(release: &str) -> Option<(u32, u32)> {
    let (major, rest) = release.split_once('.')?;
    let minor = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions() {
        for (release, version) in
            [("6.1.0-18-amd64", (6, 1)), ("6.18.44-fc-v669", (6, 18)), ("7.0-rc3", (7, 0)), ("6.5", (6, 5))]
        {
            assert_eq!(parse(release), Some(version), "{release}");
        }
        assert_eq!(parse("six"), None);
        assert_eq!(parse("6"), None);
        assert!(version() > (0, 0));
    }
}
