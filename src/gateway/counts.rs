//! What the gateway counts of itself: requests by route and class of answer. Routes are those of the table, and so bounded.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;

use crate::routes::{Door, WORK};
use crate::serve::Shared;

/// Requests by route and by the first digit of their status.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts(Arc<Mutex<BTreeMap<(String, u16), u64>>>);

impl Counts {
    fn add(&self, route: &str, class: u16) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((route.to_owned(), class)).or_default() += 1;
    }

    /// What has been counted.
    pub(crate) fn all(&self) -> BTreeMap<(String, u16), u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Counts a request by what it was answered.
pub(crate) async fn count(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    // Whichever way it came, it was work.
    let route = route.or_else(|| request.extensions().get::<Door>().map(|_| WORK.to_owned()));
    let response = next.run(request).await;
    shared.counts().add(route.as_deref().unwrap_or("none"), response.status().as_u16() / 100);
    response
}
