//! What must hold for any bytes from outside, one function for each decoder that they reach first.
//!
//! Each function panics when a promise is broken: bounds, round trips, one meaning for one text. Where a promise is a
//! grammar or a framing, it is written a second time here, apart from the code that it is held against. Called by the
//! targets of libFuzzer in `fuzz_targets/`, and by `tests/fuzz_corpus.rs`, which includes this file and needs no libFuzzer.

mod archive;
mod attach;
mod host;
mod past;
mod revival;
mod spec;
mod talk;

pub use archive::archive;
pub use attach::attach_frame;
pub use host::{mountinfo, seccomp_profile};
pub use past::{birth_record, ledger, state};
pub use spec::{config, target_names};
pub use talk::{channel_frame, control_frame, sd_notify};
