//! Coming from Snakepit: its configurations are read, by `halsup check` and by a daemon; its workers run as they are.

mod configuration;
mod foreign;
