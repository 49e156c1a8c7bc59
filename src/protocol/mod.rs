//! What is said between programs: bytes to types and back, with limits. Never touches sockets.

pub mod init;
