//! What a pool, a worker and a limit *are*: validated types, and the parsing of configuration into them.
//!
//! Never touches files. `daemon` and `cli` read the bytes and call in here; `engine` and `host` take the types.

mod account;
mod config;
mod cpuset;
mod dispatch;
mod gateway;
mod image;
mod names;
mod policy;
mod pool;
mod ports;
mod scalar;
mod signal;
mod tasks;
mod template;

pub use account::{ACCOUNT_ID_MAX, Account};
pub use config::{
    CHROMADB_PROGRAM, CONFIG_BYTES_MAX, CONFIG_ERRORS_MAX, ConfigError, ConfigErrors, LOG_CATEGORIES, PoolOverrides,
    check_pools, parse_bind, parse_config, pool_from_command, reference,
};
pub use dispatch::{
    Affinity, BreakerPolicy, Budget, BudgetId, BudgetKind, CallSessionPolicy, DispatchPolicy, RecyclePolicy, Select,
};
pub use gateway::{GATEWAY_PROGRAM, GATEWAY_SOCKET_DIR, GatewaySpec};
pub use image::{IMAGE_NAME_BYTES_MAX, ImageConfig, ImageName, ImageNameError, is_image_digest};
pub use names::{Generation, InstanceName, NAME_BYTES_MAX, NameError, PoolId, PoolName, VolumeName, WorkerId};
pub use policy::{ClaimPolicy, Heartbeat, HeartbeatSource, PoolPolicy, Restart, Size, Startup, Stop};
pub use pool::{
    Bind, Config, Cpuset, DaemonSpec, Grantee, Identity, ImagePull, Limit, Limits, LimitsMode, Listen, LogFormat,
    LogSpec, Net, OnSupervisorDeath, PoolSpec, Probe, Ready, Role, RoleGrant, Root, Seccomp, ServeHttp, VOLUMES_MAX,
    VolumeMount,
};
pub use ports::Ports;
pub use scalar::{
    ScalarError, format_bytes, format_cpus, format_duration, is_unlimited, parse_bytes, parse_cpus, parse_duration,
    parse_port,
};
pub use signal::{format_signal, parse_signal};
pub use tasks::{TaskExecutor, TaskPolicy, TasksSpec, estimated_duration};
pub use template::{Placeholders, expand};
