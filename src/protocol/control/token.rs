//! Tokens: what people who come by HTTP are known by. `Identify`, `CreateToken`, `ListTokens`, `RevokeToken`.

use serde::{Deserialize, Serialize};

use super::request::pool_name_option;
use crate::spec::{PoolName, Role};

/// How many tokens there may be.
pub const TOKENS_MAX: usize = 1_000;
/// The longest name of a token, in bytes.
pub const TOKEN_NAME_BYTES_MAX: usize = 64;
/// The longest text that is looked up as a token, in bytes.
const TOKEN_BYTES_MAX: usize = 256;
/// The longest life of a token: ten years.
pub const TOKEN_SECONDS_MAX: u64 = 10 * 365 * 86_400;
/// What every token begins with, so that one that got somewhere by mistake is known for what it is.
pub const TOKEN_PREFIX: &str = "halsup_";

/// Whether a text can be the name of a token: 1 to 64 of letters, digits, '-', '_' and '.'.
#[must_use]
pub fn is_token_name(name: &str) -> bool {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=TOKEN_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_fine)
}

/// Parameters of `Identify`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentifyRequest {
    /// The token that its user has shown; `None` for one who has shown none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

impl IdentifyRequest {
    /// Whether the token could be one.
    pub(super) fn is_sound(&self) -> bool {
        self.token.as_ref().is_none_or(|token| token.len() <= TOKEN_BYTES_MAX)
    }
}

/// Without the token: nothing that is written down may hold it.
impl std::fmt::Debug for IdentifyRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IdentifyRequest").field("token", &self.token.as_ref().map(|_| "…")).finish()
    }
}

/// The answer of `Identify`: on whose behalf the calls of this connection are from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentifyReply {
    /// The token's name; `None` without one.
    pub name: Option<String>,
    /// What it allows: `observe`, `operate` or `admin`.
    pub role: String,
    /// Only on this pool.
    pub pool: Option<String>,
    /// Since when this daemon runs, which tells its events from those of another; RFC 3339. An earlier build does not say.
    pub started: Option<String>,
}

/// Parameters of `CreateToken`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateTokenRequest {
    /// Its name, which is nobody else's.
    pub name: String,
    /// What it allows.
    #[serde(with = "role_word")]
    pub role: Role,
    /// Only on this pool.
    #[serde(with = "pool_name_option", default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// It is good for so long, 1..=[`TOKEN_SECONDS_MAX`]; `None` until it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
}

impl CreateTokenRequest {
    /// Which parameter is none that a token can have.
    pub(super) fn out_of_range(&self) -> Option<&'static str> {
        if !is_token_name(&self.name) {
            return Some("name");
        }
        let is_wrong = |seconds: u64| seconds == 0 || seconds > TOKEN_SECONDS_MAX;
        self.seconds.is_some_and(is_wrong).then_some("seconds")
    }
}

/// The answer of `CreateToken`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateTokenReply {
    /// The token itself, which is told this once and kept nowhere.
    pub token: String,
    /// What is known of it.
    pub info: TokenInfo,
}

/// Without the token.
impl std::fmt::Debug for CreateTokenReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreateTokenReply").field("info", &self.info).finish_non_exhaustive()
    }
}

/// What is known of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// Its name.
    pub name: String,
    /// What it allows.
    pub role: String,
    /// Only on this pool.
    pub pool: Option<String>,
    /// When it was made; RFC 3339.
    pub created: String,
    /// When it ends; RFC 3339.
    pub expires: Option<String>,
    /// Whether it has ended.
    pub expired: bool,
}

/// The answer of `ListTokens`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListTokensReply {
    /// By name.
    pub tokens: Vec<TokenInfo>,
}

/// Parameters of `RevokeToken`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeTokenRequest {
    /// Its name.
    pub name: String,
}

/// The word for a role, as the configuration has it.
#[must_use]
pub const fn role_word(role: Role) -> &'static str {
    match role {
        Role::Observe => "observe",
        Role::Operate => "operate",
        Role::Admin => "admin",
    }
}

/// A role as its word.
mod role_word {
    use serde::{Deserialize as _, Deserializer, Serializer};

    use crate::spec::Role;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's `with` passes references")]
    pub(super) fn serialize<S: Serializer>(role: &Role, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(super::role_word(*role))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Role, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "observe" => Ok(Role::Observe),
            "operate" => Ok(Role::Operate),
            "admin" => Ok(Role::Admin),
            _ => Err(serde::de::Error::custom("expected observe, operate or admin")),
        }
    }
}
