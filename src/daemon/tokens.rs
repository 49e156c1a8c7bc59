//! Tokens of people who come by HTTP: made, looked up, revoked. The gateway passes on what it was shown and decides nothing:
//! what a token allows is looked up here, at every call, so that a revoked one is worth nothing at once.
//!
//! A token is kept as its digest alone: whoever reads the state cannot speak for anybody.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::clock;
use super::control::{Asked, Outcome, Web};
use super::state::Daemon;
use crate::protocol::control::{
    CreateTokenReply, CreateTokenRequest, Empty, Error, ListTokensReply, RevokeTokenRequest, TOKEN_PREFIX, TOKENS_MAX,
    TokenInfo, role_word,
};
use crate::protocol::secret::secret;
use crate::protocol::varlink::Reply;
use crate::spec::{Grantee, PoolName, Role, RoleGrant};

/// What is kept of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Token {
    /// SHA-256 of the token, in hexadecimal.
    digest: String,
    role: String,
    pool: Option<String>,
    /// Seconds since the epoch.
    created: u64,
    expires: Option<u64>,
}

impl Token {
    fn grant(&self) -> Option<(Role, Option<PoolName>)> {
        let role = match self.role.as_str() {
            "observe" => Role::Observe,
            "operate" => Role::Operate,
            "admin" => Role::Admin,
            _ => return None,
        };
        match &self.pool {
            None => Some((role, None)),
            Some(pool) => PoolName::parse(pool).ok().map(|pool| (role, Some(pool))),
        }
    }

    fn is_expired(&self, now: u64) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    fn info(&self, name: &str, now: u64) -> TokenInfo {
        let written = |seconds: u64| clock::rfc3339(std::time::UNIX_EPOCH + Duration::from_secs(seconds));
        TokenInfo {
            name: name.to_owned(),
            role: self.role.clone(),
            pool: self.pool.clone(),
            created: written(self.created),
            expires: self.expires.map(written),
            expired: self.is_expired(now),
        }
    }
}

/// The tokens there are.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    /// By name, each with a number that no other has had in this daemon.
    known: BTreeMap<String, (u32, Token)>,
    next: u32,
}

impl Tokens {
    /// Those that an earlier daemon has left.
    pub(super) fn of(kept: BTreeMap<String, Token>) -> Self {
        let mut tokens = Self::default();
        for (name, token) in kept {
            tokens.insert(name, token);
        }
        tokens
    }

    fn insert(&mut self, name: String, token: Token) {
        self.next = self.next.wrapping_add(1);
        self.known.insert(name, (self.next, token));
    }

    /// Lets go of all that have ended; their names.
    fn take_expired(&mut self, now: u64) -> Vec<String> {
        let expired = self.known.extract_if(.., |_, (_, token)| token.is_expired(now));
        expired.map(|(name, _)| name).collect()
    }

    /// The number of the token that was shown, if it is one and has not ended.
    fn find(&self, shown: &str, now: u64) -> Option<u32> {
        let digest = digest(shown);
        // The digests are compared, of which nobody can choose how far they agree: how long it takes says nothing.
        let mut all = self.known.values();
        all.find(|(_, token)| token.digest == digest && !token.is_expired(now)).map(|(number, _)| *number)
    }

    /// Its name and itself, by number, unless it was revoked or has ended.
    fn get(&self, number: u32, now: u64) -> Option<(&str, &Token)> {
        let mut all = self.known.iter();
        let found = all.find(|(_, (own, token))| *own == number && !token.is_expired(now));
        found.map(|(name, (_, token))| (name.as_str(), token))
    }
}

/// The key of a token in the state.
pub(super) fn token_key(name: &str) -> String {
    format!("token/{name}")
}

fn digest(token: &str) -> String {
    Sha256::digest(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A token that nobody can guess.
fn new_token() -> Result<String, Error> {
    let failed = |errno: rustix::io::Errno| Error::Failed {
        operation: "make".into(),
        object: "a token".into(),
        cause: errno.to_string(),
    };
    Ok(format!("{TOKEN_PREFIX}{}", secret().map_err(failed)?))
}

fn seconds_now() -> u64 {
    clock::wall().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Daemon {
    /// The number of a token that somebody has shown to the gateway.
    pub(super) fn find_token(&self, shown: &str) -> Option<u32> {
        self.tokens.find(shown, seconds_now())
    }

    /// What somebody who came by HTTP may do at this moment: as a grant to the uid that they are known by. None for a token
    /// that is no good any more.
    pub(super) fn web_grant(&self, web: Web, uid: u32) -> Option<RoleGrant> {
        let grantee = Grantee::Uid(uid);
        match web {
            Web::Nobody => {
                let is_open = self.gateway_spec.as_ref().is_some_and(|gateway| gateway.open_status);
                is_open.then_some(RoleGrant { grantee, role: Role::Observe, pool: None })
            }
            Web::Token(number) => {
                let (_, token) = self.tokens.get(number, seconds_now())?;
                token.grant().map(|(role, pool)| RoleGrant { grantee, role, pool })
            }
        }
    }

    /// The name of a token, for people.
    pub(super) fn token_name(&self, number: u32) -> Option<String> {
        self.tokens.get(number, seconds_now()).map(|(name, _)| name.to_owned())
    }

    pub(super) fn create_token(&mut self, asked: Asked, request: &CreateTokenRequest) -> Outcome {
        let refuse = |reason: String| Error::Refused { reason }.into();
        let now = seconds_now();
        if self.tokens.known.get(&request.name).is_some_and(|(_, token)| !token.is_expired(now)) {
            return refuse(format!("there is a token {:?}: revoke it first, or take another name", request.name));
        }
        if self.tokens.known.len() >= TOKENS_MAX {
            // Those that have ended are kept to be looked at, for as long as there is room.
            for name in self.tokens.take_expired(now) {
                self.persist.keep_token(&token_key(&name), None);
            }
        }
        if self.tokens.known.len() >= TOKENS_MAX && !self.tokens.known.contains_key(&request.name) {
            return refuse(format!("there are {TOKENS_MAX} tokens: revoke one first"));
        }
        let secret = match new_token() {
            Ok(secret) => secret,
            Err(error) => return error.into(),
        };
        let token = Token {
            digest: digest(&secret),
            role: role_word(request.role).to_owned(),
            pool: request.pool.as_ref().map(ToString::to_string),
            created: now,
            expires: request.seconds.map(|seconds| now.saturating_add(seconds)),
        };
        if let Err(error) = self.write_token(&request.name, Some(&token)) {
            return error.into();
        }
        self.audit_order_more(asked, "token_create", &request.name, &[("role", &token.role)]);
        let info = token.info(&request.name, now);
        self.tokens.insert(request.name.clone(), token);
        Outcome::Reply(Reply::last(&CreateTokenReply { token: secret, info }))
    }

    pub(super) fn list_tokens(&self) -> Outcome {
        let now = seconds_now();
        let tokens = self.tokens.known.iter().map(|(name, (_, token))| token.info(name, now)).collect();
        Outcome::Reply(Reply::last(&ListTokensReply { tokens }))
    }

    pub(super) fn revoke_token(&mut self, asked: Asked, request: &RevokeTokenRequest) -> Outcome {
        if self.tokens.known.remove(&request.name).is_none() {
            return Error::NotFound { what: format!("token {}", request.name.chars().take(80).collect::<String>()) }
                .into();
        }
        self.audit_order(asked, "token_revoke", &request.name);
        // Whatever comes of it: it is worth nothing to this daemon.
        match self.write_token(&request.name, None) {
            Ok(()) => Outcome::Reply(Reply::last(&Empty {})),
            Err(error) => error.into(),
        }
    }

    /// Writes a token down, or that there is none, before anybody is told so: a daemon that is killed then is followed by one
    /// that knows it.
    fn write_token(&mut self, name: &str, token: Option<&Token>) -> Result<(), Error> {
        self.persist.keep_token(&token_key(name), token);
        self.write_state_now();
        match self.persist.trouble() {
            None => Ok(()),
            Some(trouble) => {
                let cause = trouble.to_owned();
                if token.is_some() {
                    self.persist.keep_token(&token_key(name), None);
                }
                Err(Error::Failed { operation: "write down".into(), object: format!("token {name}"), cause })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str, expires: Option<u64>) -> Token {
        Token { digest: digest(text), role: "observe".into(), pool: None, created: 1, expires }
    }

    #[test]
    fn a_token_is_found_by_itself_until_it_ends_and_makes_room_then() {
        let kept = [("a", token("halsup_a", None)), ("b", token("halsup_b", Some(10)))];
        let mut tokens = Tokens::of(kept.map(|(name, token)| (name.to_owned(), token)).into());
        let number = tokens.find("halsup_b", 9).unwrap();
        assert_eq!(tokens.get(number, 9).map(|(name, _)| name), Some("b"));
        assert!(tokens.find("halsup_b", 10).is_none() && tokens.get(number, 10).is_none());
        assert!(tokens.find("halsup_", 1).is_none() && tokens.find("", 1).is_none());
        assert_ne!(tokens.find("halsup_a", 1), Some(number));
        assert!(tokens.take_expired(9).is_empty());
        assert_eq!(tokens.take_expired(10), ["b"]);
        assert!(tokens.find("halsup_a", u64::MAX).is_some());
    }

    #[test]
    fn no_two_tokens_are_one_and_each_is_known_for_what_it_is() {
        let (one, other) = (new_token().unwrap(), new_token().unwrap());
        assert_ne!(one, other);
        assert!(one.starts_with(TOKEN_PREFIX) && one.len() == TOKEN_PREFIX.len() + 64);
    }
}
