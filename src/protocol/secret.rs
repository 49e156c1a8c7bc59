//! A secret that nobody can guess, as text: what tokens and tickets are made of. Never keeps one.

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// Random bytes in a secret.
const SECRET_BYTES: usize = 32;

/// Makes a secret: 64 hexadecimal digits of the kernel's random numbers.
///
/// # Errors
/// The kernel's, where it gives none.
pub fn secret() -> Result<String, Errno> {
    let mut secret = [0; SECRET_BYTES];
    let mut filled = 0;
    while let Some(rest) = secret.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match getrandom(rest, GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(secret.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_are_alike() {
        let all: BTreeSet<String> = (0..100).map(|_| secret().unwrap()).collect();
        assert_eq!(all.len(), 100);
        assert!(
            all.iter().all(|one| one.len() == 2 * SECRET_BYTES && one.bytes().all(|byte| byte.is_ascii_hexdigit()))
        );
        // Every digit is filled in: none is the same in all of them.
        for at in 0..2 * SECRET_BYTES {
            assert!(all.iter().filter_map(|one| one.get(at..=at)).collect::<BTreeSet<_>>().len() > 4, "digit {at}");
        }
    }
}
