//! `halsup scale`: sets how many workers a pool has, and waits until that many are ready.

use clap::Args;

use super::context::Context;
use super::error::Error;
use super::order;
use crate::protocol::control::{Request, SCALE_COUNT_MAX, ScaleRequest};
use crate::spec::PoolName;

/// Set how many workers a pool has; waits until that many are ready.
#[derive(Debug, Args)]
pub(super) struct Scale {
    /// The pool.
    #[arg(value_name = "POOL", value_parser = super::pool_name)]
    pub(super) pool: PoolName,
    /// How many workers.
    #[arg(value_name = "COUNT", value_parser = clap::value_parser!(u32).range(..=i64::from(SCALE_COUNT_MAX)))]
    pub(super) count: u32,
}

impl Scale {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let pool = self.pool.to_string();
        let request = Request::Scale(ScaleRequest { pool: self.pool, count: self.count });
        let change = context.client()?.call(&request)?;
        order::report(context, "scale", "ready", &pool, change)?.map_or(Ok(()), Err)
    }
}
