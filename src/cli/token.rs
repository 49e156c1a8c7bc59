//! `halsup token`: what people who come by HTTP are known by.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::context::Context;
use super::error::Error;
use super::human;
use super::table::table;
use crate::protocol::control::{
    CreateTokenReply, CreateTokenRequest, Empty, ListTokensReply, NoParameters, Request, RevokeTokenRequest, TokenInfo,
    is_token_name,
};
use crate::spec::{PoolName, Role, parse_duration};

/// What can be done about tokens.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make a token and print it. It is shown this once and kept nowhere.
    Create(Create),
    /// List the tokens, without what they are.
    #[command(visible_alias = "ls")]
    List,
    /// Make a token worthless, at once.
    #[command(visible_alias = "rm")]
    Revoke(Revoke),
}

/// What a token allows.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Scope {
    /// To look.
    Observe,
    /// Also to start, stop, call and reset.
    Operate,
    /// Also what is others'.
    Admin,
}

/// Parameters of `create`.
#[derive(Debug, Args)]
pub(super) struct Create {
    /// Its name, by which it is listed and revoked.
    #[arg(value_name = "NAME", value_parser = name)]
    name: String,
    /// What it allows.
    #[arg(long, value_enum, value_name = "SCOPE", default_value = "operate")]
    scope: Scope,
    /// Only on this pool.
    #[arg(long, value_name = "POOL", value_parser = super::pool_name)]
    pool: Option<PoolName>,
    /// It is good for so long, as in `30d` [default: until it is revoked].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    expires: Option<Duration>,
}

/// Parameters of `revoke`.
#[derive(Debug, Args)]
pub(super) struct Revoke {
    /// Its name.
    #[arg(value_name = "NAME", value_parser = name)]
    name: String,
}

fn name(text: &str) -> Result<String, String> {
    let expected = "a token's name has 1 to 64 of letters, digits, '-', '_' and '.'";
    if is_token_name(text) { Ok(text.to_owned()) } else { Err(expected.to_owned()) }
}

/// Days too, which are how people count what a token is good for.
fn duration(text: &str) -> Result<Duration, String> {
    let days = text.strip_suffix('d').and_then(|days| days.parse::<u64>().ok());
    if let Some(days) = days {
        return Ok(Duration::from_secs(days.saturating_mul(86_400)));
    }
    parse_duration(text).map_err(|error| error.to_string())
}

impl Verb {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        match self {
            Self::Create(create) => create.run(context),
            Self::List => list(context),
            Self::Revoke(revoke) => revoke.run(context),
        }
    }
}

impl Create {
    fn run(self, context: &Context) -> Result<(), Error> {
        let role = match self.scope {
            Scope::Observe => Role::Observe,
            Scope::Operate => Role::Operate,
            Scope::Admin => Role::Admin,
        };
        let seconds = self.expires.map(|expires| expires.as_secs());
        let request = CreateTokenRequest { name: self.name, role, pool: self.pool, seconds };
        let reply: CreateTokenReply = context.client()?.call(&Request::CreateToken(request))?;
        context.output.answer(&reply, |reply| reply.token.clone())
    }
}

fn list(context: &Context) -> Result<(), Error> {
    let reply: ListTokensReply = context.client()?.call(&Request::ListTokens(NoParameters {}))?;
    context.output.answer(&reply, |reply| {
        let row = |token: &TokenInfo| {
            let expires = human::or_dash(token.expires.as_ref(), Clone::clone);
            [
                token.name.clone(),
                token.role.clone(),
                human::or_dash(token.pool.as_ref(), Clone::clone),
                token.created.clone(),
                if token.expired { format!("{expires} (over)") } else { expires },
            ]
        };
        table(["NAME", "SCOPE", "POOL", "CREATED", "EXPIRES"], reply.tokens.iter().map(row))
    })
}

impl Revoke {
    fn run(self, context: &Context) -> Result<(), Error> {
        let request = Request::RevokeToken(RevokeTokenRequest { name: self.name.clone() });
        let reply: Empty = context.client()?.call(&request)?;
        context.output.answer(&reply, |_| format!("{}: revoked", self.name))
    }
}
