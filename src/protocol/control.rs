//! The interface `io.halsup.Control`: what one can ask of a daemon and what it answers.
//!
//! [`DESCRIPTION`] is the contract as every client reads it; the types here are the same contract as the daemon and the
//! command line use it. A test holds one against the other, field by field. The daemon calls [`Request::decode`] with a
//! [`super::varlink::Call`], then answers with the reply type of that request; the command line goes the other way.

mod certificate;
mod claim;
mod drain;
mod error;
mod execute;
mod image;
mod lease;
mod reply;
mod request;
mod requested;
mod target;
mod task;
mod token;
mod tools;
mod volume;
mod waiting;
mod worker;

#[cfg(test)]
mod interface_tests;

pub use certificate::{Cause, DeathCertificate, LAST_OUTPUT_BYTES_MAX, StartFailure};
pub use claim::{
    CLAIM_ITEMS_MAX, ClaimReply, ClaimRequest, Claimed, ClaimsInfo, PATIENCE_SECONDS_MAX, PauseRequest, PoolRequest,
    ReleaseReply, ReleaseRequest, TuneRequest, is_session_name,
};
pub use drain::{DRAINED_MAX, DrainReply, DrainRequest};
pub use error::{Error, Failure as CallFailure};
pub use execute::{
    AffinityMode, Bill, BreakerPosition, CloseSessionRequest, DeskStats, ExecuteReply, ExecuteRequest, MadePayload,
    OpenSessionReply, OpenSessionRequest, PoolRequestStats, PoolStatsReply, PoolStatsRequest, REQUEST_NAME_BYTES_MAX,
    REQUEST_TIMEOUT_MS_MAX, RequestFailure, RequestOutcome, ResetBreakersReply, ResetBreakersRequest, SendChunkRequest,
    SentPayload,
};
pub use image::{
    ImageImportReply, ImageImportRequest, ImageInfo, ImageInspectReply, ImageListReply, ImageRemoveReply, ImageRequest,
};
pub use lease::{EndLeaseReply, EndLeaseRequest, LEASE_NOT_MAX, LeaseOutcome, LeaseReply, LeaseRequest};
pub use reply::{
    AttachReply, CertificatesReply, ChangeReply, Check, ConfigReply, DoctorReply, Empty, Event, EventKind, EventsReply,
    Failure, InspectReply, ListReply, LogEntry, LogsReply, ReloadReply, SessionInfo, SessionsReply, SetLogReply,
    ShutdownReply, StatsReply, Stream, UpgradeReply, WorkerStats,
};
pub use request::{
    AttachRequest, CertificatesRequest, EventsRequest, ExecRequest, InterfaceRequest, KillRequest, ListRequest,
    LogsRequest, NoParameters, Object, Request, SEND_BYTES_MAX, ScaleRequest, SendRequest, SetLogRequest,
    ShutdownRequest, StatsRequest, TargetRequest, UpgradeRequest, WatchRequest,
};
pub use requested::{
    CallSessionInfo, ListSessionsReply, RequestInfo, RequestState, RequestStatusReply, RequestStatusRequest,
};
pub use target::{Target, TargetError};
pub use task::{
    CancelTaskReply, FollowTaskReply, FollowTaskRequest, InspectTaskReply, InspectTaskRequest, ListTasksReply,
    PIECE_TASKS_MAX, RunTaskReply, RunTaskRequest, SwitchExecutorReply, SwitchExecutorRequest, TASK_METADATA_BYTES_MAX,
    TASK_NAME_BYTES_MAX, TASK_OUTPUT_BYTES_DEFAULT, TASK_OUTPUT_BYTES_MAX, TASK_PRIORITY_DEFAULT,
    TASK_PROMPT_BYTES_MAX, TASK_PROMPT_CHARS_LISTED, TASK_TIMEOUT_MS_MAX, TASK_WORKER_ID_BYTES_MAX, TaskEvent,
    TaskEventKind, TaskInfo, TaskRequest, TaskState, TaskStatusReply, is_task_name,
};
pub use token::{
    CreateTokenReply, CreateTokenRequest, IdentifyReply, IdentifyRequest, ListTokensReply, RevokeTokenRequest,
    TOKEN_NAME_BYTES_MAX, TOKEN_PREFIX, TOKEN_SECONDS_MAX, TOKENS_MAX, TokenInfo, is_token_name, role_word,
};
pub use tools::{ReplyToolRequest, ServeToolsReply, ServeToolsRequest, TOOLS_MAX, ToolRefusal};
pub use volume::{
    CreateVolumeReply, HoldVolumesReply, HoldVolumesRequest, ListVolumesReply, ListVolumesRequest, VolumeInfo,
    VolumeRequest,
};
pub use waiting::{PoolProgress, WaitPoolReply, WaitPoolRequest};
pub use worker::{
    Controllers, DaemonState, Inspection, LimitInfo, Occupancy, PoolInfo, StateCounts, StatusReply, WorkerInfo,
    WorkerState,
};

/// The interface's name.
pub const INTERFACE: &str = "io.halsup.Control";

/// The interface's description, as `org.varlink.service.GetInterfaceDescription` gives it.
pub const DESCRIPTION: &str = include_str!("io.halsup.Control.varlink");

/// The number that a client and a daemon must share; it changes when old clients would misunderstand.
pub const PROTOCOL: u32 = 1;

/// With `more`, one reply of `List` or `Stats` carries at most this many workers, so that it stays near 100 KiB.
pub const PIECE_WORKERS_MAX: usize = 128;

/// With `more`, one reply of `Inspect` or `Certificates` carries at most this many entries.
pub const PIECE_CERTIFICATES_MAX: usize = 32;

/// With `more`, one reply of `ListSessions` carries at most this many sessions.
pub const PIECE_SESSIONS_MAX: usize = 256;

/// `Logs.lines` where the caller does not say.
pub const LOG_LINES_DEFAULT: u32 = 10;

/// The most that `Logs.lines` may ask for.
pub const LOG_LINES_MAX: u32 = 10_000;

/// `Events.last` and `Certificates.last` where the caller does not say.
pub const LAST_DEFAULT: u32 = 10;

/// The most that `Events.last` and `Certificates.last` may ask for.
pub const LAST_MAX: u32 = 1_000;

/// The most workers that `Scale.count` may ask for; the pool's own maximum may be lower.
pub const SCALE_COUNT_MAX: u32 = 10_000;

/// The longest `Shutdown.timeout_ms`: one day.
pub const SHUTDOWN_TIMEOUT_MS_MAX: u64 = 86_400_000;

/// The longest `SetLog.filter`, in bytes.
pub const LOG_FILTER_BYTES_MAX: usize = 1_024;
