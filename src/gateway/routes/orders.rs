//! Orders that are given by HTTP: circuit breakers closed, and the end of new work.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use halsup::protocol::control::{
    DrainReply, DrainRequest, Empty, NoParameters, PauseRequest, PoolStatsReply, PoolStatsRequest, Request,
    ResetBreakersReply, ResetBreakersRequest, StatusReply, Target,
};
use halsup::spec::PoolName;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::answer::Refusal;
use crate::guard::Shown;
use crate::link::Link;
use crate::serve::Shared;

/// `POST /api/reset/{target}`: a pool's circuit breakers, or a worker's.
pub(crate) async fn reset(
    State(shared): State<Shared>,
    Extension(shown): Extension<Shown>,
    Path(target): Path<String>,
) -> Response {
    let told = async {
        let (mut link, _) = shared.link(&shown).await?;
        let target: Target = target.parse().map_err(|_none| Refusal::not_found())?;
        let request = Request::ResetBreakers(ResetBreakersRequest { target });
        let reply: ResetBreakersReply = link.call(&request).await?;
        Ok::<_, Refusal>(Json(json!({ "success": true, "circuit_breakers_reset": reply.reset })))
    };
    match told.await {
        Ok(told) => told.into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

/// The body of `POST /drain`; none is to drain.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    drain: bool,
}

/// `POST /drain`: no new work from now on, or again. What is under way goes on; the answer says how much that is, and may be
/// asked for again until nothing is left.
pub(crate) async fn drain(State(shared): State<Shared>, Extension(shown): Extension<Shown>, body: Bytes) -> Response {
    match told_drain(&shared, &shown, &body).await {
        Ok(told) => Json(told).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

async fn told_drain(shared: &Shared, shown: &Shown, body: &[u8]) -> Result<Value, Refusal> {
    let (mut link, who) = shared.link(shown).await?;
    if who.role != "admin" || who.pool.is_some() {
        let message = "this needs a token of scope admin";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "Forbidden", message));
    }
    let wanted = if body.is_empty() {
        Asked { drain: true }
    } else {
        serde_json::from_slice(body)
            .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, "Bad request", error.to_string()))?
    };
    // First the door, so that nothing new comes in behind what is counted; and before anything is paused the daemon knows of
    // it, for the gateway that comes after this one.
    shared.drain(wanted.drain);
    keep(&mut link, shared, wanted.drain).await?;
    let changed = pause(&mut link, shared, wanted.drain).await?;
    keep(&mut link, shared, wanted.drain).await?;
    let requests: PoolStatsReply = link.call(&Request::PoolStats(PoolStatsRequest { pool: None })).await?;
    let status: StatusReply = link.call(&Request::Status(NoParameters {})).await?;
    let in_flight: u64 = requests.pools.iter().map(|pool| u64::from(pool.in_flight)).sum();
    let queued: u64 = requests.pools.iter().map(|pool| u64::from(pool.queued)).sum();
    let claimed: u64 =
        status.pools.iter().filter_map(|pool| pool.claims.as_ref()).map(|claims| u64::from(claims.busy)).sum();
    Ok(json!({
        "draining": wanted.drain,
        if wanted.drain { "paused" } else { "resumed" }: changed,
        "in_flight": in_flight,
        "queued": queued,
        "claimed": claimed,
        "drained": wanted.drain && in_flight + queued + claimed == 0,
    }))
}

/// Has the daemon keep what this is.
async fn keep(link: &mut Link, shared: &Shared, draining: bool) -> Result<(), Refusal> {
    let request = DrainRequest { draining: Some(draining), pools: Some(shared.paused()) };
    link.call::<DrainReply>(&Request::Drain(request)).await.map(|_kept| ()).map_err(Refusal::from)
}

/// Pauses the pools that can be, so that no worker is made that nobody will have; or lets go on those that this has paused.
async fn pause(link: &mut Link, shared: &Shared, paused: bool) -> Result<Vec<String>, Refusal> {
    let status: StatusReply = link.call(&Request::Status(NoParameters {})).await?;
    let mut changed = Vec::new();
    for pool in &status.pools {
        let is_paused = pool.claims.as_ref().map(|claims| claims.paused);
        let is_ours = shared.has_paused(&pool.name);
        if is_paused != Some(!paused) || (!paused && !is_ours) {
            continue;
        }
        let name = PoolName::parse(&pool.name).map_err(|_none| Refusal::not_found())?;
        let _: Empty = link.call(&Request::Pause(PauseRequest { pool: name, paused })).await?;
        shared.note_paused(&pool.name, paused);
        changed.push(pool.name.clone());
    }
    Ok(changed)
}
