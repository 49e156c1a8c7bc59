//! halsup keeps pools of isolated Linux workers warm, alive and inside their limits.
//!
//! The map, in the order in which a fact travels:
//!
//! * [`spec`]: what a pool, a worker, a limit *is*; parsing and checking of the configuration.
//! * [`protocol`]: what is *said* between programs: bytes to types and back, with limits, without sockets.
//! * [`engine`]: what to *do* next: a pure state machine, `handle(input, now)` / `poll_effect()` / `next_deadline()`.
//! * [`archive`]: archives, read by a process that is shut in first.
//! * [`host`]: kernel objects made safe: cgroups, namespaces, mounts, children. No policy.
//! * [`sys`]: the only `unsafe` and the only libc.
//! * [`init`]: the PID 1 inside each worker, built without std and embedded here.
//! * [`daemon`]: who *drives*: one `mio` loop that turns readiness into inputs and effects into system calls.
//! * [`cli`]: argv to one call to printed answer.
//! * [`exit_code`]: every status the programs return.
//!
//! Two minutes' route for a newcomer: `daemon/event_loop.rs::run`, then `engine/worker.rs::step`.

pub mod archive;
pub mod cli;
pub mod daemon;
pub mod engine;
pub mod exit_code;
pub mod host;
pub mod init;
pub mod protocol;
pub mod spec;
pub mod sys;
