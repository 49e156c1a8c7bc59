//! `halsup spawn`: a session in a directory; a warm worker if there is one, else a fresh one, and which it was is said.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::Args;

use super::attach::Attach;
use super::claim_options::{ClaimOptions, Wanted, real_path};
use super::context::Context;
use super::error::Error;
use super::terminal::size_of_terminal;
use super::{output, session};
use crate::protocol::control::{ClaimReply, ClaimRequest, Request};
use crate::protocol::escape;
use crate::spec::PoolName;

/// The size of a terminal that nobody sees yet.
const ROWS: u16 = 24;
const COLUMNS: u16 = 80;

/// Begin a session in a directory, or come back to the one that is there.
#[derive(Debug, Args)]
pub(super) struct Spawn {
    /// The project directory [default: the current one].
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The same, as the system before this one said it.
    #[arg(long, value_name = "DIR", num_args = 0..=1, conflicts_with = "dir")]
    via_parent: Option<Option<PathBuf>>,
    /// The pool, which is what says how a session is made [default: the only one whose workers can be claimed].
    #[arg(short, long, visible_alias = "pool", value_name = "NAME", value_parser = super::pool_name)]
    profile: Option<PoolName>,
    /// The image that it is to have, by which a pool is chosen.
    #[arg(short, long, value_name = "IMAGE")]
    image: Option<String>,
    /// The network that it is to have, own or parent, by which a pool is chosen.
    #[arg(long, value_name = "NET", value_parser = ["own", "parent"])]
    net: Option<String>,
    /// Print the session's name instead of attaching to it; so it is too where there is no terminal.
    #[arg(short, long)]
    detach: bool,
    /// Forget the session when its program has ended, as it is by default.
    #[arg(long, overrides_with = "no_rm")]
    rm: bool,
    /// Keep it then, with its exit status and its log, until it is released or begins anew.
    #[arg(long, overrides_with = "rm")]
    no_rm: bool,
    /// Begin a shell, whatever the pool's command is.
    #[arg(short, long)]
    shell: bool,
    /// Begin another session even if the directory has one.
    #[arg(long)]
    new: bool,
    #[command(flatten)]
    options: ClaimOptions,
}

impl Spawn {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let dir = self.dir.or(self.via_parent.flatten()).unwrap_or_else(|| PathBuf::from("."));
        let dir = PathBuf::from(real_path(&dir)?);
        let mut client = context.client()?;
        let usual = self.options.name.clone().unwrap_or_else(|| session::name_of(&dir));
        let there = session::all(&mut client)?;
        let is_there = |name: &str| there.iter().any(|one| one.session.as_ref().is_some_and(|s| s.name == name));
        let kept = session::kept(&mut client)?;
        let ended = |name: &str| kept.iter().find(|one| one.name == name);
        let name = if self.new {
            // The next one that is free; a race for it is refused by the daemon.
            let is_free = |name: &String| !is_there(name) && ended(name).is_none();
            (1..).map(|n| if n == 1 { usual.clone() } else { format!("{usual}-{n}") }).find(is_free)
        } else {
            Some(usual)
        };
        let name = name.unwrap_or_default();
        let attaches =
            !self.detach && !context.output.is_json() && std::io::stdin().is_terminal() && output::is_terminal();
        if is_there(&name) {
            output::complain_text(&format!("session {name} is there already"));
            return if attaches { Attach::to(name).run(context) } else { context.output.text(&escape::text(&name)) };
        }
        let wanted = Wanted { pool: self.profile, image: self.image, net: self.net };
        let (pool, _) = wanted.find(&mut client)?;
        let mut request = ClaimRequest::of(pool);
        let opened = self.options.fill(&mut request, Some(&dir))?;
        request.keep = (self.no_rm && !self.rm).then_some(true);
        let before = ended(&name).and_then(|one| one.exit);
        request.session = Some(name);
        let is_shell = request.command.is_none();
        if self.shell && is_shell {
            request.command = Some(vec!["/bin/bash".to_owned(), "-i".to_owned()]);
        }
        if attaches {
            let size = size_of_terminal("spawn")?;
            (request.rows, request.columns) = (Some(size.rows), Some(size.columns));
        } else if is_shell {
            // A shell without a terminal would end at once: it waits on one that whoever attaches later sees.
            (request.rows, request.columns) = (Some(ROWS), Some(COLUMNS));
        }
        request.detached = Some(!attaches);
        let reply: ClaimReply = client.call(&Request::Claim(Box::new(request)))?;
        opened.let_go();
        if let Some(cause) = before {
            output::complain_text(&format!("session {} had ended ({cause}): it begins anew", reply.session));
        }
        let from = if reply.warm { "warm" } else { "cold" };
        output::complain_text(&format!("session {} runs in {} ({from})", reply.session, reply.worker));
        if !attaches {
            return context.output.answer(&reply, |reply| escape::text(&reply.session).into_owned());
        }
        Attach::to(reply.session).run(context)
    }
}
