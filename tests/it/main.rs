//! The integration tests: the real `halsup` on the real kernel, a module per capability that the operator gets.
//!
//! Each test says what it needs of the machine (`needs!`), starts a daemon of its own (`Daemon::start`), and waits for
//! events with a deadline; nothing here sleeps. The same binary runs on this machine and in the guests of `tests/vm`.

#[path = "../checker/mod.rs"]
mod checker;
mod fixture;
mod http;
#[cfg(target_arch = "x86_64")]
mod inject;
mod leftovers;
mod look;
mod needs;
mod peer;
mod place;
mod ports;

mod audit;
mod chromadb;
mod claims;
mod clients;
mod container;
mod control;
mod crowd;
mod debug_bundle;
mod doctor;
#[cfg(target_arch = "x86_64")]
mod faults;
mod foresight;
mod freezing;
mod gateway;
mod heartbeats;
mod holds;
mod hostile;
mod images;
mod input;
mod isolation;
mod kept;
mod life;
mod limits;
mod logs;
mod orphans;
mod pid_one;
mod pool_words;
mod program;
mod proofs;
mod recovery;
mod releases;
mod reload;
mod requests;
mod sdk;
mod session_files;
mod settings;
mod shortages;
mod snakepit;
mod stalls;
mod state_files;
mod store;
mod supervision;
mod survival;
mod systemd;
mod tasks;
mod terminals;
mod twins;
mod upgrade;
mod varlink_client;
mod volumes;
mod whose;
