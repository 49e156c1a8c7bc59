//! Archives: read by a process that is shut in before it sees the first byte, and written.
//!
//! `write` puts a tar together, compressed: pure but for where its bytes go.

mod write;

pub use write::{Kind, Meta, Writer};
