//! The operator's side of a session: `raw.rs` is the terminal, `relay.rs` carries bytes both ways (`pipe_relay.rs` where there is
//! no terminal), `keys.rs` finds the keys
//! that leave, `screen.rs` makes a screen of what was written before.

mod keys;
mod pipe_relay;
mod raw;
mod relay;
mod screen;

pub(super) use self::keys::{DETACH_DEFAULT, DetachKeys, of_words};
pub(super) use self::pipe_relay::{Input, relay as pipe_relay};
pub(super) use self::raw::size_of_terminal;
pub(super) use self::relay::{Left, Relay, code_of, replay};
pub(super) use self::screen::Screen;
