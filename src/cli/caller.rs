//! The command line's client for programs in Rust that give workers something to do: one connection, one request at a time.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use super::client::Client;
use super::error::Error;
use crate::protocol::control::{
    CallFailure, Empty, Error as Refusal, ExecuteReply, ExecuteRequest, NoParameters, Request, RequestFailure,
};

/// A connection to a daemon. For several requests at once, open several.
#[derive(Debug)]
pub struct Caller(Client);

/// A call that has no answer, with the sentence that `halsup call` prints.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.sentence())]
pub struct CallError(Error);

impl CallError {
    /// What became of the request, where the daemon says so.
    #[must_use]
    pub fn failure(&self) -> Option<&RequestFailure> {
        let Error::Refused(CallFailure::Control(Refusal::RequestFailed(failure))) = &self.0 else { return None };
        Some(failure)
    }
}

impl Caller {
    /// Connects to the control socket at `path`.
    ///
    /// # Errors
    /// Nobody answers there, or this caller may not connect.
    pub fn connect(path: &Path) -> Result<Self, CallError> {
        Client::connect(path).map(Self).map_err(CallError)
    }

    /// Asks the daemon for a sign of life.
    ///
    /// # Errors
    /// The daemon is gone, or silent.
    pub fn ping(&mut self) -> Result<(), CallError> {
        self.0.call(&Request::Ping(NoParameters {})).map(|Empty {}| ()).map_err(CallError)
    }

    /// Has a request carried out that streams nothing; its answer, and the memory that came with it. `memory` is what the request
    /// says of its payload.
    ///
    /// # Errors
    /// What the daemon says of the request ([`CallError::failure`]), or a connection that was lost.
    pub fn call(
        &mut self,
        request: ExecuteRequest,
        memory: Option<BorrowedFd<'_>>,
    ) -> Result<(ExecuteReply, Option<OwnedFd>), CallError> {
        let mut answer = None;
        let taken = self.0.execute(&Request::Execute(Box::new(request)), false, memory, None, |reply, passed| {
            answer = Some((reply, passed));
            Ok(())
        });
        taken.map_err(CallError)?;
        // Without an error there was an answer.
        Ok(answer.unwrap_or_default())
    }
}
