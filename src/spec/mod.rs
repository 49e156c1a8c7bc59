//! What a pool, a worker and a limit *are*: validated types, and the parsing of configuration into them.
//!
//! Never touches files. `daemon` and `cli` read the bytes and call in here; `engine` and `host` take the types.

mod names;
mod policy;
mod pool;

pub use names::{Generation, InstanceName, NAME_BYTES_MAX, NameError, PoolId, PoolName, WorkerId};
pub use policy::{Heartbeat, HeartbeatSource, PoolPolicy, Restart, Size, Startup, Stop};
pub use pool::{
    Bind, Config, Cpuset, DaemonSpec, Grantee, Identity, Limit, Limits, LimitsMode, Listen, LogFormat, LogSpec, Net,
    OnSupervisorDeath, PoolSpec, Probe, Ready, Role, RoleGrant, Root, Seccomp,
};
