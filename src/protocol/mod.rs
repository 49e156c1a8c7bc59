//! What is *said* between programs: bytes to types and back, with limits, without sockets.
//!
//! Everything here takes bytes that somebody else wrote. Nothing panics on them, nothing grows without a bound, and an
//! error says what was expected. `daemon` and `cli` own the sockets and call in here; this module may use `spec` alone.

pub mod attach;
pub mod audit;
pub mod channel;
pub mod control;
pub mod escape;
pub mod init;
pub mod json;
pub mod notify;
pub mod secret;
pub mod service;
pub mod varlink;
pub mod verbatim;

#[cfg(test)]
mod seeded;
