//! `halsup dashboard`: the address of the page, with a ticket where one is needed.
//!
//! Talks HTTP to the gateway for one question: a ticket for a token that it has just made. The token is in no address.

#![expect(clippy::disallowed_types, reason = "runs xdg-open, which is no worker, and waits for it")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::context::Context;
use super::error::Error;
use crate::protocol::control::{
    CreateTokenReply, CreateTokenRequest, InspectReply, Inspection, Request, Target, TargetRequest,
};
use crate::protocol::secret::secret;
use crate::spec::{GatewaySpec, Role};

/// How long the token of a page is good.
const TOKEN_SECONDS: u64 = 12 * 3_600;
/// How long the gateway may be silent.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much of a secret tells the names of two tokens apart.
const SUFFIX_CHARS: usize = 12;
/// The longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Print the address of the dashboard.
///
/// Where status is not told to everybody, and with --sign-in, the address holds a ticket: it opens the page once, within half
/// a minute, with a token of scope operate that is good for 12 hours (`halsup token list`).
#[derive(Debug, Args)]
pub(super) struct Dashboard {
    /// Also open it, by xdg-open.
    #[arg(long)]
    open: bool,
    /// Sign in, so that breakers can be reset without showing a token.
    #[arg(long)]
    sign_in: bool,
}

#[derive(Debug, Serialize)]
struct Answer {
    address: String,
}

#[derive(Debug, Deserialize)]
struct Ticket {
    ticket: String,
}

impl Dashboard {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let gateway = gateway(context)?;
        let at = listens_at(&gateway)?;
        let is_open = gateway.command.iter().any(|argument| argument == "--open-status");
        let mut address = format!("http://{at}/pool");
        if self.sign_in || !is_open {
            let ticket = ticket(context, at)?;
            address.push_str("#ticket=");
            address.push_str(&ticket);
        }
        if self.open {
            open(&address)?;
        }
        context.output.answer(&Answer { address }, |answer| answer.address.clone())
    }
}

fn failed(sentence: impl Into<String>) -> Error {
    Error::Dashboard { sentence: sentence.into() }
}

fn gateway(context: &Context) -> Result<Inspection, Error> {
    let none = || failed("there is no gateway: write a table [gateway] into the configuration");
    let name = GatewaySpec::name().ok_or_else(none)?;
    let request = Request::Inspect(TargetRequest { target: Target::Pool(name) });
    let reply: InspectReply = match context.client()?.call(&request) {
        Err(Error::Refused(_)) => return Err(none()),
        reply => reply?,
    };
    reply.workers.into_iter().next().ok_or_else(none)
}

/// Where it can be asked from here.
fn listens_at(gateway: &Inspection) -> Result<SocketAddr, Error> {
    let mut all = gateway.listen.iter().filter_map(|listen| listen.strip_prefix("tcp:")?.parse::<SocketAddr>().ok());
    let mut at = all.next().ok_or_else(|| failed("the gateway listens nowhere"))?;
    if at.ip().is_unspecified() {
        at.set_ip(match at {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    Ok(at)
}

fn ticket(context: &Context, at: SocketAddr) -> Result<String, Error> {
    let request = CreateTokenRequest {
        name: format!("dashboard-{}", suffix()?),
        role: Role::Operate,
        pool: None,
        seconds: Some(TOKEN_SECONDS),
    };
    let made: CreateTokenReply = context.client()?.call(&Request::CreateToken(request))?;
    let body = r#"{"path":"/api/token"}"#;
    let head = format!(
        "POST /api/ticket HTTP/1.1\r\nHost: {at}\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        made.token,
        body.len()
    );
    let answer =
        exchange(at, head.as_bytes()).map_err(|source| failed(format!("ask the gateway at {at}: {source}")))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let status = head.split(' ').nth(1).unwrap_or("nothing");
    let ticket: Option<Ticket> = serde_json::from_str(body).ok().filter(|_| status == "200");
    ticket.map(|ticket| ticket.ticket).ok_or_else(|| failed(format!("the gateway at {at} answers {status}")))
}

/// Names of tokens are each used once.
fn suffix() -> Result<String, Error> {
    let made = secret().map_err(|errno| failed(format!("find a name for a token: {errno}")))?;
    Ok(made.chars().take(SUFFIX_CHARS).collect())
}

fn exchange(at: SocketAddr, sent: &[u8]) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(sent)?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}

fn open(address: &str) -> Result<(), Error> {
    let run = Command::new("xdg-open").arg(address).stdin(Stdio::null()).stdout(Stdio::null()).status();
    match run {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(failed(format!("xdg-open ended with {status}"))),
        Err(source) => Err(failed(format!("run xdg-open: {source}"))),
    }
}
