//! The metrics of the daemon, grouped by the part of the daemon that they describe.
//!
//! One registry holds all of them. Each label value comes from a fixed set in this program, or, for keys and
//! hashes of key_ids, from the config in use: the series of earlier configs are removed.

mod config;
mod health;
mod keys;
mod local_kek;
mod login;
mod process;
mod requests;
mod server;
mod token;

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus::{Registry, TextEncoder, core::Collector, labels, opts, register_int_gauge_with_registry};
use transit_client::metrics::ClientMetrics;

use self::process::ProcessCollector;
pub use self::{
    config::ConfigMetrics, health::HealthMetrics, keys::KeyMetrics, local_kek::LocalKekMetrics,
    login::LoginMetrics, requests::RequestMetrics, server::ServerMetrics, token::TokenMetrics,
};
use super::build;

/// Returns the time of day. It can jump, so it is used for timestamps only and decides nothing.
pub type WallClock = fn() -> SystemTime;

/// All metrics.
#[derive(Debug)]
pub struct Metrics {
    /// The requests to Vault.
    pub client: Arc<ClientMetrics>,
    /// The config file and its reloads.
    pub config: ConfigMetrics,
    /// The health of the session.
    pub health: HealthMetrics,
    /// The published key.
    pub keys: KeyMetrics,
    /// The local KEKs.
    pub local_kek: LocalKekMetrics,
    /// The logins to Vault.
    pub login: LoginMetrics,
    /// The KMS calls.
    pub requests: RequestMetrics,
    /// The KMS sockets and their connections.
    pub server: ServerMetrics,
    /// The Vault token.
    pub token: TokenMetrics,
    registry: Registry,
}

impl Metrics {
    /// Registers all metrics.
    ///
    /// # Errors
    /// If two metrics have the same name.
    pub fn new() -> Result<Self, prometheus::Error> {
        #[expect(clippy::disallowed_methods, reason = "timestamps are in the time of day")]
        Self::with_clock(SystemTime::now)
    }

    /// Registers all metrics, with timestamps from `clock`.
    ///
    /// # Errors
    /// If two metrics have the same name.
    pub fn with_clock(clock: WallClock) -> Result<Self, prometheus::Error> {
        let registry = Registry::new_custom(Some("transit_kms".into()), None)?;
        let features = build::features(",");
        let build = opts!(
            "build_info",
            "Always 1; the labels are the version that runs, and its optional features.",
            labels! { "features" => features.as_str(), "version" => build::VERSION }
        );
        register_int_gauge_with_registry!(build, registry)?.set(1);
        Ok(Self {
            client: Arc::new(ClientMetrics::register(&registry)?),
            config: ConfigMetrics::register(&registry, clock)?,
            health: HealthMetrics::register(&registry)?,
            keys: KeyMetrics::register(&registry)?,
            local_kek: LocalKekMetrics::register(&registry, clock)?,
            login: LoginMetrics::register(&registry)?,
            requests: RequestMetrics::register(&registry)?,
            server: ServerMetrics::register(&registry)?,
            token: TokenMetrics::register(&registry, clock)?,
            registry,
        })
    }

    /// Returns all metrics in the text format of Prometheus.
    ///
    /// # Errors
    /// If a metric cannot be encoded.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        self.token.update_expiry();
        let mut families = self.registry.gather();
        // Not in the registry, because the names of process metrics have no prefix.
        families.extend(ProcessCollector.collect());
        TextEncoder::new().encode_to_string(&families)
    }
}

fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests;
