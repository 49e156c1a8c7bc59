//! Kernel objects made safe: cgroups, mount namespaces, identities, children. No policy: knows no pools, states or timers.

pub mod identity;
pub mod init_image;
pub mod mounts;
pub mod spawn;
