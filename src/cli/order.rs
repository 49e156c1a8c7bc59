//! What `start`, `stop`, `restart`, `kill`, `reset` and `scale` share: one order for each target, one line for each.
//!
//! An order that was carried out only in part is a failure, whatever else was done: nothing says `done` that is not.

use serde::Serialize;

use super::context::Context;
use super::error::Error;
use super::session::Named;
use crate::protocol::control::{ChangeReply, Request, Target};
use crate::protocol::escape;

/// The answer to one order with what it was about, as JSON prints it.
#[derive(Serialize)]
struct Answered<'a> {
    target: &'a str,
    #[serde(flatten)]
    change: &'a ChangeReply,
}

/// Gives the same order to every target, in their order; stops at the first that is refused.
///
/// # Errors
/// The first refusal, or the first order that was carried out only in part, after all were given.
pub(super) fn give(
    context: &Context,
    verb: &str,
    done: &str,
    targets: &[Named],
    request: impl Fn(Target) -> Request,
) -> Result<(), Error> {
    let mut client = context.client()?;
    let mut first_incomplete = None;
    for target in targets {
        let meant = target.meant(&mut client)?;
        let change: ChangeReply = client.call(&request(meant))?;
        let outcome = report(context, verb, done, &target.to_string(), change)?;
        first_incomplete = first_incomplete.or(outcome);
    }
    first_incomplete.map_or(Ok(()), Err)
}

/// Prints the answer to one order; what is returned is its failure, if it was carried out only in part.
pub(super) fn report(
    context: &Context,
    verb: &str,
    done: &str,
    target: &str,
    change: ChangeReply,
) -> Result<Option<Error>, Error> {
    context.output.answer(&Answered { target, change: &change }, |_| line(done, target, &change))?;
    let ChangeReply { achieved, wanted, failures } = change;
    let what = format!("{verb} {target}");
    Ok((achieved != wanted).then_some(Error::Incomplete { what, achieved, wanted, failures }))
}

/// `web: 3 of 5 stopped`; nothing where there was nothing to do is said as such.
fn line(done: &str, target: &str, change: &ChangeReply) -> String {
    let target = escape::text(target);
    match (change.achieved, change.wanted) {
        (0, 0) => format!("{target}: nothing to do"),
        (achieved, wanted) if achieved == wanted => format!("{target}: {achieved} {done}"),
        (achieved, wanted) => format!("{target}: {achieved} of {wanted} {done}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_many() {
        let change = |achieved, wanted| ChangeReply { achieved, wanted, failures: Vec::new() };
        assert_eq!(line("stopped", "web", &change(5, 5)), "web: 5 stopped");
        assert_eq!(line("stopped", "web", &change(3, 5)), "web: 3 of 5 stopped");
        assert_eq!(line("stopped", "web", &change(0, 0)), "web: nothing to do");
    }
}
