//! Paths of entries as they are written, made into names below the target, or refused.
//!
//! Decides by the text alone: what the disk holds meanwhile is for `tree` to see.

use super::refusal::Refusal;

/// The longest path, in bytes.
pub(super) const PATH_BYTES_MAX: usize = 4096;
/// The deepest path, in components.
pub(super) const DEPTH_MAX: usize = 128;
/// The longest component, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// A path below the target: components joined by single slashes, none of them `.` or `..`; empty is the target itself.
pub(super) type Name = Vec<u8>;

/// Reads an entry's path, or the target of a hard link, which means the same.
///
/// # Errors
/// An absolute one, one with `..`, one that is too long or too deep, one with NUL.
pub(super) fn name(path: &[u8]) -> Result<Name, Refusal> {
    let refuse = |rule| Err(Refusal::entry(path, rule));
    if path.is_empty() {
        return refuse("it has no name");
    }
    if path.len() > PATH_BYTES_MAX {
        return refuse("its name is longer than 4096 bytes");
    }
    if path.starts_with(b"/") {
        return refuse("its name is absolute; names in an archive are relative");
    }
    if path.contains(&0) {
        return refuse("its name has a NUL in it");
    }
    let mut name = Vec::with_capacity(path.len());
    let mut depth = 0_usize;
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return refuse("its name leads up, by `..`"),
            part if part.len() > NAME_BYTES_MAX => return refuse("a part of its name is longer than 255 bytes"),
            part => {
                depth += 1;
                if depth > 1 {
                    name.push(b'/');
                }
                name.extend_from_slice(part);
            }
        }
    }
    if depth > DEPTH_MAX {
        return refuse("it is deeper than 128 directories");
    }
    Ok(name)
}

/// The directory that a name is in, and its last part; the target itself is in nothing.
pub(super) fn split(name: &[u8]) -> (&[u8], &[u8]) {
    match name.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (name.get(..at).unwrap_or_default(), name.get(at + 1..).unwrap_or_default()),
        None => (b"", name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_below() {
        for (path, expected) in
            [("a", "a"), ("./a//b/", "a/b"), ("./", ""), (".", ""), ("a/./b", "a/b"), ("..a/b..", "..a/b..")]
        {
            assert_eq!(name(path.as_bytes()).unwrap(), expected.as_bytes(), "{path}");
        }
        let deep = "d/".repeat(129);
        let long = "x".repeat(256);
        let longest = "abc/".repeat(1100);
        for path in ["", "/", "/etc/passwd", "..", "a/../b", "../x", "a/..", "a\0b", &deep, &long, &longest] {
            assert!(name(path.as_bytes()).is_err(), "{path:?}");
        }
        assert!(name("d/".repeat(128).as_bytes()).is_ok());
    }

    #[test]
    fn a_name_has_a_directory_and_a_last_part() {
        assert_eq!(split(b"a/b/c"), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(split(b"a"), (&b""[..], &b"a"[..]));
        assert_eq!(split(b""), (&b""[..], &b""[..]));
    }
}
