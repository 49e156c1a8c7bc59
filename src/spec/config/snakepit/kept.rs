//! Keys of Snakepit that have nothing to do here: they are read, so that a configuration needs no change, and checked, so that
//! a mistake in one is still found. What each was for, halsup does by events, or not at all because there is no BEAM.

use std::time::Duration;

use super::super::error::Faults;
use super::super::keys::{Bounds, Key};
use super::super::node::{Node, Raw};
use super::Draft;
use super::keys::row;
use super::values::{atom, is_infinity};

const DAY: Duration = Duration::from_secs(86_400);

/// A time, in milliseconds.
const fn time(name: &'static str, default: &'static str) -> Key<Draft> {
    row(name, "milliseconds", default, Bounds::Time(Duration::ZERO, DAY), "", |_, node| {
        if is_infinity(node) {
            return Ok(());
        }
        node.duration()?;
        Ok(())
    })
}

/// A whole number.
const fn count(name: &'static str, default: &'static str) -> Key<Draft> {
    row(name, "integer", default, Bounds::Count(0, 1 << 40), "", |_, node| {
        node.count()?;
        Ok(())
    })
}

/// A number.
const fn number(name: &'static str, default: &'static str) -> Key<Draft> {
    row(name, "number", default, Bounds::None, "", |_, node| {
        let number = matches!(node.raw, Raw::Toml(value) if value.is_float() || value.is_integer());
        if number { Ok(()) } else { Err(node.fault("a number").into()) }
    })
}

const fn switch(name: &'static str, default: &'static str) -> Key<Draft> {
    row(name, "boolean", default, Bounds::None, "", |_, node| {
        node.boolean()?;
        Ok(())
    })
}

const fn word(name: &'static str, default: &'static str) -> Key<Draft> {
    row(name, "text", default, Bounds::Length(4095), "", |_, node| {
        atom(node)?;
        Ok(())
    })
}

const fn table(name: &'static str) -> Key<Draft> {
    row(name, "table", "", Bounds::Items(64), "", a_table)
}

fn a_table(_: &mut Draft, node: &Node<'_>) -> Result<(), Faults> {
    node.entries(Bounds::None)?;
    Ok(())
}

/// The rows, in the order of Snakepit's own list.
pub(in super::super) const KEPT_KEYS: &[Key<Draft>] = &[
    time("pool_streaming_timeout", "900000"),
    time("stream_timeout", "900000"),
    time("worker_call_margin_ms", "1000"),
    time("pool_reply_margin_ms", "200"),
    count("default_pool_size", ""),
    count("pool_max_cancelled_entries", "1024"),
    count("pool_cancelled_retention_multiplier", "4"),
    time("pool_reconcile_interval_ms", "1000"),
    count("pool_reconcile_batch_size", "2"),
    count("worker_starter_max_restarts", "3"),
    count("worker_starter_max_seconds", "5"),
    count("worker_supervisor_max_restarts", "3"),
    count("worker_supervisor_max_seconds", "5"),
    time("grpc_worker_execute_timeout", ""),
    time("grpc_worker_stream_timeout", "900000"),
    time("shutdown_margin_ms", "2000"),
    time("grpc_worker_health_check_interval", "30000"),
    time("grpc_worker_health_check_timeout_ms", "5000"),
    time("grpc_command_timeout", ""),
    time("grpc_batch_inference_timeout", "300000"),
    time("grpc_large_dataset_timeout", "600000"),
    time("executor_batch_timeout", "30000"),
    time("health_check_interval", "30000"),
    time("health_monitor_check_interval", "30000"),
    time("health_monitor_crash_window_ms", "60000"),
    count("health_monitor_max_crashes", "10"),
    time("retry_max_backoff_ms", "30000"),
    number("retry_backoff_multiplier", "2.0"),
    number("retry_jitter_factor", "0.25"),
    time("cleanup_retry_interval_ms", "50"),
    count("cleanup_max_retries", "20"),
    switch("cleanup_on_stop", "true"),
    time("cleanup_on_stop_timeout_ms", "3000"),
    time("cleanup_poll_interval_ms", "50"),
    time("lifecycle_check_interval", "60000"),
    time("lifecycle_health_check_interval", "300000"),
    count("lifecycle_check_max_concurrency", "8"),
    time("lifecycle_worker_action_timeout_ms", "2000"),
    time("session_cleanup_interval", "60000"),
    number("session_warning_threshold", "0.8"),
    time("affinity_cache_ttl", "60000"),
    time("process_registry_cleanup_interval", "30000"),
    time("process_registry_unregister_cleanup_delay", "500"),
    count("process_registry_unregister_cleanup_attempts", "10"),
    time("process_registry_dets_flush_interval_ms", "25"),
    switch("process_group_kill", "true"),
    table("rogue_cleanup"),
    count("grpc_num_acceptors", "20"),
    count("grpc_max_connections", "1000"),
    count("grpc_socket_backlog", "512"),
    time("grpc_stream_open_timeout_ms", "5000"),
    time("grpc_stream_control_timeout_ms", "2000"),
    time("grpc_listener_ready_timeout_ms", ""),
    time("grpc_listener_port_check_interval_ms", ""),
    count("grpc_listener_reuse_attempts", ""),
    time("grpc_listener_reuse_wait_timeout_ms", ""),
    time("grpc_listener_reuse_retry_delay_ms", ""),
    word("grpc_log_level", ""),
    word("data_dir", ""),
    switch("library_mode", "true"),
    switch("auto_install_python_deps", "false"),
    switch("bootstrap_project", "false"),
    table("python_packages"),
    table("telemetry"),
    table("telemetry_metrics"),
    table("opentelemetry"),
];
