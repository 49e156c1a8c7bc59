//! Archives: read by a process that is shut in before it sees the first byte, and written.
//!
//! The root process reads no archive. It starts this program again as a reader ([`Reading::start`]), which gives up every
//! right (`confine`), then takes the stream apart (`stream`, `header`, `pax`, `entries`: pure) and puts it on the disk
//! (`tree`, `unpack`); an image in parts is put together by `bundle` and `image`. Nothing here knows of pools, or where the target is: in the reader it is
//! `/`. `write` and `pack` put a tar of a directory together, `files` one of a few files.

mod bundle;
mod confine;
mod entries;
mod files;
mod header;
mod image;
mod job;
mod names;
mod pack;
mod pax;
mod reader;
mod refusal;
mod start;
mod stream;
mod tree;
mod unpack;
mod write;

pub use entries::{Entries, Entry, EntryKind};
pub use files::Packer;
pub use job::{Done, Job, Report, Task};
pub use pack::{Pack, Packed};
pub use reader::main;
pub use refusal::Refusal;
pub use start::{Reading, StartError};
pub use unpack::{Limits, Totals};
pub use write::{Kind, Meta, Writer};

/// The word by which this program becomes a reader; never typed by people.
pub const VERB: &str = "archive-reader";
