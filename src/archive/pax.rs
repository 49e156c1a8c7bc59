//! Pax records: what they say of the next entry. Anything malformed, doubled or meant for sparse files is refused, never
//! skipped: a reader that skips what another one believes sees another archive (HARDENING F3).

/// What the records of one header say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Records {
    /// The path.
    pub(super) path: Option<Vec<u8>>,
    /// The target of a link.
    pub(super) link: Option<Vec<u8>>,
    /// How many bytes follow the entry's header.
    pub(super) size: Option<u64>,
    /// Owner.
    pub(super) uid: Option<u64>,
    /// Group.
    pub(super) gid: Option<u64>,
    /// Seconds since 1970; 0 for what was before.
    pub(super) mtime: Option<u64>,
    /// Extended attributes, by name.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Most extended attributes of one entry.
const XATTRS_MAX: usize = 64;
const MALFORMED: &str = "its pax records are malformed";

/// Reads the records of one header. `global` ones may say nothing that changes what an entry is.
///
/// # Errors
/// The rule that they break.
pub(super) fn parse(mut bytes: &[u8], global: bool) -> Result<Records, &'static str> {
    let mut records = Records::default();
    let mut seen: Vec<&[u8]> = Vec::new();
    while !bytes.is_empty() {
        let (key, value, rest) = record(bytes).ok_or(MALFORMED)?;
        bytes = rest;
        if seen.contains(&key) {
            return Err("its pax records say one thing twice");
        }
        seen.push(key);
        if seen.len() > 1024 {
            return Err("it has more than 1024 pax records");
        }
        let is_known = apply(&mut records, key, value)?;
        if global && is_known {
            return Err("the archive's global pax records would change every entry");
        }
    }
    Ok(records)
}

/// The first record, `LENGTH KEY=VALUE\n`, and what follows it.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = bytes.iter().position(|byte| *byte == b' ').filter(|at| (1..=10).contains(at))?;
    let length = usize::try_from(decimal(bytes.get(..blank)?)?).ok()?;
    let whole = bytes.get(..length)?;
    let (body, end) = whole.get(blank + 1..)?.split_at_checked(length.checked_sub(blank + 2)?)?;
    let equals = body.iter().position(|byte| *byte == b'=').filter(|at| *at > 0)?;
    (end == b"\n").then_some((body.get(..equals)?, body.get(equals + 1..)?, bytes.get(length..)?))
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| plain)?.parse().ok()
}

/// Seconds with an optional sign and fraction.
fn time(text: &[u8]) -> Option<u64> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds = decimal(parts.next()?)?;
    let fraction = parts.next().is_none_or(|digits| digits.iter().all(u8::is_ascii_digit));
    fraction.then_some(if negative { 0 } else { seconds })
}

fn apply(records: &mut Records, key: &[u8], value: &[u8]) -> Result<bool, &'static str> {
    let named = || {
        let sound = !value.is_empty() && !value.contains(&0);
        if sound { Ok(Some(value.to_vec())) } else { Err("a name in its pax records is empty or has a NUL in it") }
    };
    let number = || decimal(value).map(Some).ok_or("a number in its pax records is none");
    match key {
        b"path" => records.path = named()?,
        b"linkpath" => records.link = named()?,
        b"size" => records.size = number()?,
        b"uid" => records.uid = number()?,
        b"gid" => records.gid = number()?,
        b"mtime" => records.mtime = Some(time(value).ok_or("a time in its pax records is none")?),
        b"hdrcharset" if value != b"ISO-IR 10646 2000 UTF-8" && value != b"BINARY" => {
            return Err("its names are in an unknown character set");
        }
        key if key.starts_with(b"GNU.sparse.") => return Err("it is a sparse file in GNU's format, which is not read"),
        key => {
            let Some(name) = key.strip_prefix(b"SCHILY.xattr.") else { return Ok(false) };
            if records.xattrs.len() >= XATTRS_MAX {
                return Err("it has more than 64 extended attributes");
            }
            records.xattrs.push((name.to_vec(), value.to_vec()));
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record as a writer makes it.
    fn said(key: &str, value: &str) -> Vec<u8> {
        let body = format!(" {key}={value}\n");
        let length =
            (1..).map(|digits| body.len() + digits).find(|length| length.to_string().len() + body.len() == *length);
        format!("{}{body}", length.unwrap()).into_bytes()
    }

    #[test]
    fn records_are_read_whole_or_not_at_all() {
        let all = [said("path", "a/b"), said("size", "77"), said("mtime", "12.500000"), said("SCHILY.xattr.user", "x")];
        let records = parse(&all.concat(), false).unwrap();
        assert_eq!((records.path.as_deref(), records.size, records.mtime), (Some(&b"a/b"[..]), Some(77), Some(12)));
        assert_eq!(records.xattrs, [(b"user".to_vec(), b"x".to_vec())]);
        for (key, value) in [
            ("path", ""),
            ("path", "\0a"),
            ("linkpath", "a\0"),
            ("size", "-1"),
            ("size", "0x10"),
            ("size", ""),
            ("uid", "99999999999999999999"),
            ("mtime", "soon"),
            ("mtime", "1.x"),
            ("GNU.sparse.major", "1"),
            ("hdrcharset", "KOI8"),
        ] {
            assert!(parse(&said(key, value), false).is_err(), "{key}={value:?}");
        }
        let twice = [said("path", "a"), said("path", "b")].concat();
        assert!(parse(&twice, false).is_err());
        for wrong in [
            "12 path=a/b",
            "13 path=a/b\n",
            "11 path=a/b\n",
            "0 path=a\n",
            "99999999999 path=a\n",
            " path=a\n",
            "+9 path=a\n",
            "6 path\n",
            "5 =a\n",
            "3 \n",
            "9path=ab\n",
        ] {
            assert!(parse(wrong.as_bytes(), false).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn global_records_change_nothing() {
        assert!(parse(b"20 comment=whatever\n", true).is_ok());
        assert!(parse(b"9 path=a\n", true).is_err());
        assert!(parse(b"9 size=1\n", true).is_err());
    }
}
