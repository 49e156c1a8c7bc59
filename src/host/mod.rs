//! Kernel objects made safe: each is created, asked and removed here, through descriptors instead of paths.
//!
//! Knows nothing of pools' states or policies and never decides what should happen; `daemon` calls in here to carry out
//! what the engine decided.

pub mod adopt;
pub mod cgroup;
pub mod container;
pub mod doctor;
pub mod handover;
pub mod helper;
pub mod identity;
pub mod image_store;
pub mod init_image;
pub mod init_orders;
pub mod kernel;
pub mod late_binding;
pub mod ledger;
pub mod listener;
pub mod logfile;
pub mod mountinfo;
pub mod mounts;
pub mod output_file;
pub mod own_dir;
pub mod payload;
pub mod port;
pub mod record_dir;
pub mod seccomp;
pub mod sock_diag;
pub mod spawn;
pub mod state_file;
pub mod volume;
pub mod workdir;

#[cfg(test)]
pub(crate) mod test_needs;
