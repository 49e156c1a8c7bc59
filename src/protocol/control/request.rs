//! Everything that can be asked, as one closed enum, decoded from a call.
//!
//! The daemon decides by [`Request::role`] and [`Request::object`] whether the caller may ask it: on the decoded request,
//! never on its text.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::super::service::{self, ServiceError};
use super::super::varlink::Call;
use super::{
    ClaimRequest, CloseSessionRequest, CreateTokenRequest, DrainRequest, EndLeaseRequest, ExecuteRequest,
    FollowTaskRequest, HoldVolumesRequest, INTERFACE, IdentifyRequest, ImageImportRequest, ImageRequest,
    InspectTaskRequest, LAST_DEFAULT, LAST_MAX, LOG_FILTER_BYTES_MAX, LOG_LINES_DEFAULT, LOG_LINES_MAX, LeaseRequest,
    ListVolumesRequest, OpenSessionRequest, PauseRequest, PoolRequest, PoolStatsRequest, ReleaseRequest,
    ReplyToolRequest, RequestStatusRequest, ResetBreakersRequest, RevokeTokenRequest, RunTaskRequest, SCALE_COUNT_MAX,
    SHUTDOWN_TIMEOUT_MS_MAX, SendChunkRequest, ServeToolsRequest, SwitchExecutorRequest, TASK_OUTPUT_BYTES_MAX, Target,
    TaskRequest, TuneRequest, VolumeRequest, WaitPoolRequest, is_token_name,
};
use crate::spec::{PoolName, Role};

mod names;
mod object;
mod parameters;
mod session;

pub(super) use names::{pool_name, pool_name_option};
pub use object::Object;
pub use session::{AttachRequest, ExecRequest, SEND_BYTES_MAX, SendRequest, WatchRequest};

/// No parameters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoParameters {}

/// Parameters of `org.varlink.service.GetInterfaceDescription`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterfaceRequest {
    /// Which.
    pub interface: String,
}

/// Parameters of `List`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListRequest {
    /// Only this pool.
    #[serde(with = "pool_name_option", default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
}

/// Parameters of `Inspect`, `Start`, `Stop`, `Restart` and `Reset`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetRequest {
    /// What it is about.
    pub target: Target,
}

/// Parameters of `Kill`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KillRequest {
    /// What it is about.
    pub target: Target,
    /// Signal for the main processes, 1..=64; `None` kills every process of the workers at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
}

/// Parameters of `Scale`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScaleRequest {
    /// Which pool.
    #[serde(with = "pool_name")]
    pub pool: PoolName,
    /// How many workers, 0..=[`SCALE_COUNT_MAX`].
    pub count: u32,
}

/// Parameters of `Logs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogsRequest {
    /// One worker, or a service; a pool of more than one worker gives the lines of all.
    pub worker: Target,
    /// The last so many lines, 0..=[`LOG_LINES_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<u32>,
    /// Whether further lines are wanted as they are written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<bool>,
    /// Instead of `worker`, which is then its pool: the session of this name, which has ended and is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

impl LogsRequest {
    /// `lines`, or what it is where the caller does not say.
    #[must_use]
    pub fn lines(&self) -> u32 {
        self.lines.unwrap_or(LOG_LINES_DEFAULT)
    }
}

/// Parameters of `Events`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsRequest {
    /// The last so many, 0..=[`LAST_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<u32>,
    /// Whether further events are wanted as they happen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<bool>,
    /// Whether telemetry is wanted instead, from now on; only with `follow`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub telemetry: Option<bool>,
    /// Only those of this pool; not of telemetry.
    #[serde(with = "pool_name_option", default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
}

impl EventsRequest {
    /// `last`, or what it is where the caller does not say.
    #[must_use]
    pub fn last(&self) -> u32 {
        self.last.unwrap_or(LAST_DEFAULT)
    }
}

/// Parameters of `Stats`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatsRequest {
    /// Only this; `None` is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
}

/// Parameters of `Certificates`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificatesRequest {
    /// Only this; `None` is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// The last so many, 0..=[`LAST_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<u32>,
}

impl CertificatesRequest {
    /// `last`, or what it is where the caller does not say.
    #[must_use]
    pub fn last(&self) -> u32 {
        self.last.unwrap_or(LAST_DEFAULT)
    }
}

/// Longest path of a program, in bytes.
const PATH_BYTES_MAX: usize = 4096;

/// Parameters of `Upgrade`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpgradeRequest {
    /// Absolute path of the program to become; `None` is what lies where the running one was started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<String>,
}

/// Parameters of `Shutdown`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShutdownRequest {
    /// After this long everything is killed, in milliseconds, 0..=[`SHUTDOWN_TIMEOUT_MS_MAX`]; `None` is as configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Whether the workers go on, to be taken over by the next daemon; then `timeout_ms` means nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_workers: Option<bool>,
}

/// Parameters of `SetLog`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetLogRequest {
    /// Such as `info,heartbeat=debug`; at most [`LOG_FILTER_BYTES_MAX`].
    pub filter: String,
}

macro_rules! requests {
    ($($(#[$doc:meta])* $variant:ident($parameters:ty) = $interface:ident $role:ident,)+) => {
        /// Everything that can be asked of a daemon.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Request {
            $($(#[$doc])* $variant($parameters),)+
        }

        impl Request {
            /// Interface and name of every method.
            pub const METHODS: &'static [(&'static str, &'static str)] = &[$(($interface, stringify!($variant)),)+];

            /// Interface and name of this method.
            #[must_use]
            pub const fn method(&self) -> (&'static str, &'static str) {
                match self {
                    $(Self::$variant(_) => ($interface, stringify!($variant)),)+
                }
            }

            /// What the caller must at least be.
            #[must_use]
            pub const fn role(&self) -> Role {
                match self {
                    $(Self::$variant(_) => Role::$role,)+
                }
            }

            fn decode_method(interface: &str, name: &str, fields: Map<String, Value>) -> Result<Self, ServiceError> {
                $(if interface == $interface && name == stringify!($variant) {
                    return parameters::decode(fields).map(Self::$variant);
                })+
                Err(ServiceError::MethodNotFound { method: shown(&format!("{interface}.{name}")) })
            }

            fn parameters(&self) -> Map<String, Value> {
                match self {
                    $(Self::$variant(parameters) => parameters::encode(parameters),)+
                }
            }
        }
    };
}

const SERVICE: &str = service::INTERFACE;

requests! {
    /// Who answers here.
    GetInfo(NoParameters) = SERVICE Observe,
    /// The text of an interface.
    GetInterfaceDescription(InterfaceRequest) = SERVICE Observe,
    /// Answer at once.
    Ping(NoParameters) = INTERFACE Observe,
    /// The daemon itself.
    Status(NoParameters) = INTERFACE Observe,
    /// The workers.
    List(ListRequest) = INTERFACE Observe,
    /// Wait for pools to be there.
    WaitPool(WaitPoolRequest) = INTERFACE Observe,
    /// All about some workers.
    Inspect(TargetRequest) = INTERFACE Observe,
    /// Start what is down.
    Start(TargetRequest) = INTERFACE Operate,
    /// Stop.
    Stop(TargetRequest) = INTERFACE Operate,
    /// Stop, then start.
    Restart(TargetRequest) = INTERFACE Operate,
    /// Signal or kill.
    Kill(KillRequest) = INTERFACE Operate,
    /// Lift crash barriers.
    Reset(TargetRequest) = INTERFACE Operate,
    /// Set the size of a pool.
    Scale(ScaleRequest) = INTERFACE Operate,
    /// Take a worker for oneself.
    Claim(Box<ClaimRequest>) = INTERFACE Operate,
    /// Give a claimed worker back.
    Release(ReleaseRequest) = INTERFACE Operate,
    /// Have one more warm worker made.
    Warm(PoolRequest) = INTERFACE Operate,
    /// Have a pool go on with other numbers than its configuration's.
    Tune(TuneRequest) = INTERFACE Operate,
    /// Let a pool be as it is, or not any more.
    Pause(PauseRequest) = INTERFACE Operate,
    /// Give a worker something to do.
    Execute(Box<ExecuteRequest>) = INTERFACE Operate,
    /// Send a piece of its input to the request that this connection waits for.
    SendChunk(SendChunkRequest) = INTERFACE Observe,
    /// Hold a worker that serves HTTP, for one request.
    Lease(Box<LeaseRequest>) = INTERFACE Operate,
    /// Give it back.
    EndLease(EndLeaseRequest) = INTERFACE Observe,
    /// Have a session of requests.
    OpenSession(OpenSessionRequest) = INTERFACE Operate,
    /// End a session of requests.
    CloseSession(CloseSessionRequest) = INTERFACE Operate,
    /// The sessions of requests.
    ListSessions(ListRequest) = INTERFACE Observe,
    /// How far requests are, or what became of them.
    RequestStatus(RequestStatusRequest) = INTERFACE Observe,
    /// The requests of pools, in numbers.
    PoolStats(PoolStatsRequest) = INTERFACE Observe,
    /// Close circuit breakers.
    ResetBreakers(ResetBreakersRequest) = INTERFACE Operate,
    /// Serve tools that workers of a pool call back for, until the caller goes.
    ServeTools(ServeToolsRequest) = INTERFACE Operate,
    /// Reply to a call of a worker's.
    ReplyTool(ReplyToolRequest) = INTERFACE Operate,
    /// What workers wrote.
    Logs(LogsRequest) = INTERFACE Observe,
    /// See a worker's terminal and type into it.
    Attach(AttachRequest) = INTERFACE Operate,
    /// See a worker's terminal.
    Watch(WatchRequest) = INTERFACE Observe,
    /// Type into terminals.
    Send(SendRequest) = INTERFACE Operate,
    /// Run a further program in a worker.
    Exec(ExecRequest) = INTERFACE Operate,
    /// The terminals.
    Sessions(ListRequest) = INTERFACE Observe,
    /// What happened.
    Events(EventsRequest) = INTERFACE Observe,
    /// What workers use.
    Stats(StatsRequest) = INTERFACE Observe,
    /// How workers ended.
    Certificates(CertificatesRequest) = INTERFACE Observe,
    /// Read the configuration again.
    Reload(NoParameters) = INTERFACE Admin,
    /// Go on as another build of the program.
    Upgrade(UpgradeRequest) = INTERFACE Admin,
    /// End everything.
    Shutdown(ShutdownRequest) = INTERFACE Admin,
    /// Change the daemon's log.
    SetLog(SetLogRequest) = INTERFACE Admin,
    /// Keep that the gateway is drained, for the next one.
    Drain(DrainRequest) = INTERFACE Admin,
    /// Say on whose behalf a connection of the gateway's is.
    Identify(IdentifyRequest) = INTERFACE Observe,
    /// Make a token.
    CreateToken(CreateTokenRequest) = INTERFACE Admin,
    /// The tokens.
    ListTokens(NoParameters) = INTERFACE Admin,
    /// Make a token worthless.
    RevokeToken(RevokeTokenRequest) = INTERFACE Admin,
    /// What the host has.
    Doctor(NoParameters) = INTERFACE Observe,
    /// The configuration in force, which may hold secrets of pools.
    GetConfig(NoParameters) = INTERFACE Admin,
    /// The volumes.
    ListVolumes(ListVolumesRequest) = INTERFACE Observe,
    /// Make a volume.
    CreateVolume(VolumeRequest) = INTERFACE Operate,
    /// Give everything in a volume to root on the disk.
    RepairVolume(VolumeRequest) = INTERFACE Admin,
    /// Freeze the workers that write volumes, until the caller goes.
    HoldVolumes(HoldVolumesRequest) = INTERFACE Admin,
    /// Remove a volume and all that is in it.
    RemoveVolume(VolumeRequest) = INTERFACE Admin,
    /// Make an image of an archive: tomorrow's root file system of workers.
    ImageImport(ImageImportRequest) = INTERFACE Admin,
    /// The images.
    ImageList(NoParameters) = INTERFACE Observe,
    /// All about an image.
    ImageInspect(ImageRequest) = INTERFACE Observe,
    /// Take a name from an image, and with the last one the image.
    ImageRemove(ImageRequest) = INTERFACE Admin,
    /// Have a prompt typed into a program under a terminal.
    RunTask(Box<RunTaskRequest>) = INTERFACE Operate,
    /// The tasks.
    ListTasks(NoParameters) = INTERFACE Observe,
    /// All about a task, and the last of its output.
    InspectTask(InspectTaskRequest) = INTERFACE Observe,
    /// End a task, and all that it started.
    CancelTask(TaskRequest) = INTERFACE Operate,
    /// What happens to a task, until it is over.
    FollowTask(FollowTaskRequest) = INTERFACE Observe,
    /// The tasks, in numbers.
    TaskStatus(NoParameters) = INTERFACE Observe,
    /// Have tasks that begin from now on run by another executor.
    SwitchExecutor(SwitchExecutorRequest) = INTERFACE Operate,
}

impl Request {
    /// Decodes and checks a call: known method, exactly its parameters, each in its range, `more` where it is needed.
    ///
    /// # Errors
    /// The [`ServiceError`] to answer with.
    pub fn decode(call: Call) -> Result<Self, ServiceError> {
        let Some((interface, name)) = call.method.rsplit_once('.') else {
            return Err(ServiceError::MethodNotFound { method: shown(&call.method) });
        };
        if interface != INTERFACE && interface != SERVICE {
            return Err(ServiceError::InterfaceNotFound { interface: shown(interface) });
        }
        let request = Self::decode_method(interface, name, call.parameters)?;
        if call.upgrade && !request.upgrades() {
            return Err(ServiceError::MethodNotImplemented { method: shown(&call.method) });
        }
        request.check_ranges()?;
        if request.follows() && !call.more {
            return Err(ServiceError::ExpectedMore {});
        }
        Ok(request)
    }

    /// The call that asks it. `more` is the caller's to set.
    #[must_use]
    pub fn to_call(&self) -> Call {
        let (interface, name) = self.method();
        Call {
            method: format!("{interface}.{name}"),
            parameters: self.parameters(),
            oneway: false,
            more: false,
            upgrade: self.upgrades(),
        }
    }

    /// Whether another protocol is spoken after its answer: [`super::super::attach`].
    #[must_use]
    pub const fn upgrades(&self) -> bool {
        matches!(self, Self::Attach(_) | Self::Watch(_) | Self::Exec(_))
    }

    /// Whether its answers go on until the caller leaves.
    #[must_use]
    pub fn follows(&self) -> bool {
        match self {
            Self::Logs(LogsRequest { follow, .. }) | Self::Events(EventsRequest { follow, .. }) => {
                follow == &Some(true)
            }
            Self::HoldVolumes(_) | Self::ServeTools(_) | Self::FollowTask(_) => true,
            Self::Execute(request) => request.stream == Some(true),
            Self::Lease(_)
            | Self::EndLease(_)
            | Self::OpenSession(_)
            | Self::CloseSession(_)
            | Self::ListSessions(_)
            | Self::RequestStatus(_)
            | Self::PoolStats(_)
            | Self::ResetBreakers(_)
            | Self::ReplyTool(_)
            | Self::SendChunk(_)
            | Self::GetInfo(_)
            | Self::GetInterfaceDescription(_)
            | Self::Ping(_)
            | Self::Status(_)
            | Self::List(_)
            | Self::WaitPool(_)
            | Self::Inspect(_)
            | Self::Start(_)
            | Self::Stop(_)
            | Self::Restart(_)
            | Self::Kill(_)
            | Self::Reset(_)
            | Self::Scale(_)
            | Self::Claim(_)
            | Self::Release(_)
            | Self::Warm(_)
            | Self::Tune(_)
            | Self::Pause(_)
            | Self::Attach(_)
            | Self::Watch(_)
            | Self::Send(_)
            | Self::Exec(_)
            | Self::Sessions(_)
            | Self::Stats(_)
            | Self::Certificates(_)
            | Self::Reload(_)
            | Self::Upgrade(_)
            | Self::Shutdown(_)
            | Self::SetLog(_)
            | Self::Drain(_)
            | Self::Identify(_)
            | Self::CreateToken(_)
            | Self::ListTokens(_)
            | Self::RevokeToken(_)
            | Self::Doctor(_)
            | Self::GetConfig(_)
            | Self::ListVolumes(_)
            | Self::CreateVolume(_)
            | Self::RepairVolume(_)
            | Self::RemoveVolume(_)
            | Self::ImageImport(_)
            | Self::ImageList(_)
            | Self::ImageInspect(_)
            | Self::ImageRemove(_)
            | Self::RunTask(_)
            | Self::ListTasks(_)
            | Self::InspectTask(_)
            | Self::CancelTask(_)
            | Self::TaskStatus(_)
            | Self::SwitchExecutor(_) => false,
        }
    }

    #[expect(clippy::too_many_lines, reason = "a table: one line for each request")]
    fn check_ranges(&self) -> Result<(), ServiceError> {
        let (parameter, ok) = match self {
            Self::Kill(request) => ("signal", request.signal.is_none_or(|signal| (1..=64).contains(&signal))),
            Self::Scale(request) => ("count", request.count <= SCALE_COUNT_MAX),
            Self::Claim(request) => within(request.out_of_range()),
            Self::Tune(request) => within(request.out_of_range()),
            Self::Execute(request) => within(request.out_of_range()),
            Self::Lease(request) => within(request.out_of_range()),
            Self::EndLease(request) => ("lease", request.is_sound()),
            Self::OpenSession(request) => within(request.out_of_range()),
            Self::RequestStatus(request) => ("request", request.is_sound()),
            Self::ServeTools(request) => ("tools", request.is_sound()),
            Self::ReplyTool(request) => within(request.out_of_range()),
            Self::SendChunk(request) => ("payload", request.is_sound()),
            Self::Logs(request) => ("lines", request.lines() <= LOG_LINES_MAX),
            Self::Exec(request) => within(request.out_of_range()),
            Self::Send(request) => ("text", (1..=SEND_BYTES_MAX).contains(&request.text.len())),
            Self::Events(request) if request.telemetry == Some(true) && request.pool.is_some() => ("pool", false),
            Self::Events(request) if request.telemetry == Some(true) => ("telemetry", request.follow == Some(true)),
            Self::Events(request) => ("last", request.last() <= LAST_MAX),
            Self::Certificates(request) => ("last", request.last() <= LAST_MAX),
            Self::Shutdown(request) => {
                ("timeout_ms", request.timeout_ms.is_none_or(|timeout| timeout <= SHUTDOWN_TIMEOUT_MS_MAX))
            }
            Self::SetLog(request) => ("filter", is_filter(&request.filter)),
            Self::Drain(request) => ("pools", request.is_sound()),
            Self::GetInfo(_)
            | Self::GetInterfaceDescription(_)
            | Self::Ping(_)
            | Self::Status(_)
            | Self::List(_)
            | Self::WaitPool(_)
            | Self::Inspect(_)
            | Self::Start(_)
            | Self::Stop(_)
            | Self::Restart(_)
            | Self::Reset(_)
            | Self::Release(_)
            | Self::Warm(_)
            | Self::Pause(_)
            | Self::Attach(_)
            | Self::Watch(_)
            | Self::Sessions(_)
            | Self::CloseSession(_)
            | Self::ListSessions(_)
            | Self::PoolStats(_)
            | Self::ResetBreakers(_)
            | Self::Stats(_)
            | Self::Reload(_)
            | Self::ListTokens(_)
            | Self::Doctor(_)
            | Self::GetConfig(_)
            | Self::ListVolumes(_)
            | Self::CreateVolume(_)
            | Self::RepairVolume(_)
            | Self::RemoveVolume(_)
            | Self::ImageImport(_)
            | Self::ImageList(_)
            | Self::ListTasks(_)
            | Self::TaskStatus(_) => return Ok(()),
            Self::RunTask(request) => within(request.out_of_range()),
            Self::InspectTask(request) => ("output_bytes", request.output_bytes() <= TASK_OUTPUT_BYTES_MAX),
            // One that nobody can have is one that nobody has.
            Self::CancelTask(_) | Self::FollowTask(_) => return Ok(()),
            Self::SwitchExecutor(request) => ("executor", request.is_sound()),
            Self::Identify(request) => ("token", request.is_sound()),
            Self::CreateToken(request) => within(request.out_of_range()),
            Self::RevokeToken(request) => ("name", is_token_name(&request.name)),
            Self::HoldVolumes(request) => ("names", request.is_sound()),
            Self::ImageInspect(request) | Self::ImageRemove(request) => ("image", request.is_sound()),
            Self::Upgrade(request) => {
                let absolute = |path: &String| path.starts_with('/') && path.len() <= PATH_BYTES_MAX;
                ("binary", request.binary.as_ref().is_none_or(absolute))
            }
        };
        if ok { Ok(()) } else { Err(ServiceError::InvalidParameter { parameter: parameter.into() }) }
    }
}

fn is_filter(text: &str) -> bool {
    let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    printable && text.len() <= LOG_FILTER_BYTES_MAX
}

/// Which parameter is out of its range, if one is, and whether none is.
fn within(wrong: Option<&'static str>) -> (&'static str, bool) {
    (wrong.unwrap_or_default(), wrong.is_none())
}

/// A caller's own text inside an error to it, cut.
fn shown(text: &str) -> String {
    text.chars().take(120).collect()
}

#[cfg(test)]
mod tests;
