//! The operator's side of a session: `raw.rs` is the terminal, `relay.rs` carries bytes both ways, `keys.rs` finds the keys
//! that leave, `screen.rs` makes a screen of what was written before.

mod keys;
mod raw;
mod relay;
mod screen;

pub(super) use self::keys::{DETACH_DEFAULT, DetachKeys, of_words};
pub(super) use self::relay::{Left, Relay, code_of, replay};
pub(super) use self::screen::Screen;
