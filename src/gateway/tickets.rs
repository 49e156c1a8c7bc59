//! Tickets: what a page shows in an address where it cannot send a header. One is good for one request to one path, and for
//! half a minute; a token is never written into an address.
//!
//! Owns what tickets stand for. Whether that is good for anything is for the daemon to say, when the ticket is used.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use halsup::protocol::secret::secret;
use sha2::{Digest as _, Sha256};

/// How long a ticket is good.
pub(crate) const LIFE: Duration = Duration::from_secs(30);
/// How many there may be at once.
const TICKETS_MAX: usize = 1_024;
/// How many of them of one token.
const OF_ONE_MAX: usize = 32;

type Digest = [u8; 32];

/// What a ticket stands for.
#[derive(Clone, PartialEq, Eq)]
struct Holder {
    token: String,
    path: String,
}

/// Why no ticket was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TicketError {
    /// There are as many as may be.
    #[error("there are too many tickets that nobody has used: wait for half a minute")]
    TooMany,
    /// The kernel gives none.
    #[error("there are no random numbers")]
    NoSecret,
}

/// The tickets there are, by their digests.
#[derive(Clone, Default)]
pub(crate) struct Tickets(Arc<Mutex<BTreeMap<Digest, Holder>>>);

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tickets")
    }
}

impl Tickets {
    /// Makes a ticket with which `token` is shown once to `path`.
    ///
    /// # Errors
    /// [`TicketError`].
    pub(crate) fn issue(&self, token: &str, path: &str) -> Result<String, TicketError> {
        let secret = secret().map_err(|_errno| TicketError::NoSecret)?;
        let digest = digest(&secret);
        let mut held = self.held();
        let own = held.values().filter(|holder| holder.token == token).count();
        if held.len() >= TICKETS_MAX || own >= OF_ONE_MAX {
            return Err(TicketError::TooMany);
        }
        held.insert(digest, Holder { token: token.to_owned(), path: path.to_owned() });
        drop(held);
        let tickets = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(LIFE).await;
            tickets.held().remove(&digest);
        });
        Ok(secret)
    }

    /// The token behind a ticket, which is worth nothing from now on, wherever it was shown.
    pub(crate) fn redeem(&self, ticket: &str, path: &str) -> Option<String> {
        // Looked up by its digest, of which nobody can choose how far it agrees with another.
        let holder = self.held().remove(&digest(ticket));
        holder.filter(|holder| holder.path == path).map(|holder| holder.token)
    }

    fn held(&self) -> std::sync::MutexGuard<'_, BTreeMap<Digest, Holder>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn digest(ticket: &str) -> Digest {
    Sha256::digest(ticket.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paused(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
    }

    #[test]
    fn a_ticket_is_good_once_and_for_what_it_was_made_for() {
        paused(async {
            let tickets = Tickets::default();
            let ticket = tickets.issue("halsup_a", "/events").unwrap();
            assert_ne!(ticket, tickets.issue("halsup_a", "/events").unwrap());
            assert_eq!(tickets.redeem(&ticket, "/events").as_deref(), Some("halsup_a"));
            assert_eq!(tickets.redeem(&ticket, "/events"), None);
            let ticket = tickets.issue("halsup_a", "/events").unwrap();
            assert_eq!(tickets.redeem(&ticket, "/api/watch"), None);
            assert_eq!(tickets.redeem(&ticket, "/events"), None, "shown elsewhere, it is used up");
            assert_eq!(tickets.redeem("", "/events"), None);
        });
    }

    #[test]
    fn nobody_can_have_them_without_end() {
        paused(async {
            let tickets = Tickets::default();
            for _ in 0..OF_ONE_MAX {
                tickets.issue("halsup_a", "/events").unwrap();
            }
            assert_eq!(tickets.issue("halsup_a", "/events"), Err(TicketError::TooMany));
            for other in OF_ONE_MAX..TICKETS_MAX {
                tickets.issue(&format!("halsup_{other}"), "/events").unwrap();
            }
            assert_eq!(tickets.issue("halsup_z", "/events"), Err(TicketError::TooMany));
        });
    }
}
