//! `halsup send` and `halsup broadcast`: types into terminals from outside.

use clap::Args;

use super::context::Context;
use super::error::Error;
use super::order;
use super::sessions;
use super::terminal::of_words;
use crate::protocol::control::{ChangeReply, Request, SendRequest, Target};
use crate::spec::PoolName;

/// Type text into the terminal of a session.
///
/// The words are joined by spaces and typed as they are; nothing else is: --enter presses the key behind them.
#[derive(Debug, Args)]
pub(super) struct Send {
    #[command(flatten)]
    pub(super) typing: Typing,
    /// A session.
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// What is typed.
    #[arg(value_name = "TEXT", allow_hyphen_values = true, trailing_var_arg = true)]
    pub(super) text: Vec<String>,
}

/// Type text into the terminals of all sessions.
#[derive(Debug, Args)]
pub(super) struct Broadcast {
    #[command(flatten)]
    pub(super) typing: Typing,
    /// Only those of this pool.
    #[arg(short, long, value_name = "POOL", value_parser = super::pool_name)]
    pub(super) pool: Option<PoolName>,
    /// What is typed.
    #[arg(value_name = "TEXT", allow_hyphen_values = true, trailing_var_arg = true)]
    pub(super) text: Vec<String>,
}

/// How words become what is typed.
#[derive(Debug, Args)]
pub(super) struct Typing {
    /// Press the enter key at the end.
    #[arg(short, long)]
    pub(super) enter: bool,
    /// The words are names of keys, such as C-c, Escape or Up; what is none is typed as it is, without spaces between.
    #[arg(short, long)]
    pub(super) keys: bool,
}

impl Typing {
    fn text(&self, words: &[String]) -> Result<String, Error> {
        let mut text = if self.keys { of_words(words) } else { words.join(" ") };
        if self.enter {
            text.push('\r');
        }
        if text.is_empty() {
            return Err(Error::Usage { reason: "nothing to type: give a text, or --enter".into() });
        }
        Ok(text)
    }
}

impl Send {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let text = self.typing.text(&self.text)?;
        let (target, name) = sessions::pick(&mut context.client()?, Some(&self.name))?;
        give(context, target, text).map_err(|error| sessions::not_found(error, &name))
    }
}

impl Broadcast {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let text = self.typing.text(&self.text)?;
        give(context, self.pool.map_or(Target::All, Target::Pool), text)
    }
}

fn give(context: &Context, target: Target, text: String) -> Result<(), Error> {
    let shown = target.to_string();
    let change: ChangeReply = context.client()?.call(&Request::Send(SendRequest { target, text }))?;
    order::report(context, "send to", "typed into", &shown, change)?.map_or(Ok(()), Err)
}
