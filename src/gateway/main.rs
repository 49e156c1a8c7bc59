//! `halsup-gateway`: HTTP for the world. Runs as nobody in an empty root, with the sockets that it was handed and a way to the
//! daemon, and holds nothing else.
//!
//! It decides nothing: what somebody may do is for the daemon to say, by the token that they have shown. The order in which
//! the files are best read: `serve` (connections), `strict` and `guard` (what is refused before anybody looks at it),
//! `routes` (what is answered), `link` (the way to the daemon), `lease` (the way to a worker), `tunnel` (what follows where that is
//! no longer HTTP).

mod answer;
mod arguments;
mod clock;
mod counts;
mod guard;
mod hub;
mod lease;
mod link;
mod manager;
mod openmetrics;
mod routes;
mod serve;
mod snapshot;
mod sse;
mod strict;
mod tickets;
mod tunnel;
mod upgrade;

use std::process::ExitCode;

use clap::Parser as _;

use arguments::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log();
    let served =
        serve::listeners().map_err(|error| format!("take what it was handed: {error}")).and_then(|listeners| {
            // One thread: it needs no more, and its filter gives it none.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| format!("begin to listen: {error}"))?;
            runtime.block_on(serve::serve(arguments, listeners)).map_err(|error| error.to_string())
        });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            tracing::error!("{sentence}");
            ExitCode::FAILURE
        }
    }
}

/// Its log is its standard error, which the daemon keeps.
fn log() {
    let filter = tracing_subscriber::EnvFilter::new("info");
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}
