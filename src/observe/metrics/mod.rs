//! Every metric of the daemon, in one registry that is handed down.
//!
//! Labels are bounded: each value comes from a fixed set in this program, or,
//! for key names and key_id hashes, from the config file, and is removed when
//! it no longer holds.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
    core::{Collector, GenericGaugeVec},
};
use tokio::time::Instant;
use transit_client::metrics::{ClientMetrics, LATENCY_BUCKETS};

use super::{
    labels::{ConfigState, HealthState, ReloadResult, RenewalResult},
    process::ProcessCollector,
};

/// From a lone Decrypt to the largest batch.
const BATCH_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// What is malformed about a request.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum MalformedRequest {
    /// Its `:authority`, which is a socket's path.
    Authority,
    /// Its headers, in another way.
    Other,
}

impl MalformedRequest {
    const fn label(self) -> &'static str {
        match self {
            Self::Authority => "authority",
            Self::Other => "other",
        }
    }
}

/// All metrics; cheap to read, safe to share.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Tells the time of day, which may jump at any moment: for time stamps, never to decide anything.
    /// What the client of Vault counts.
    pub client: Arc<ClientMetrics>,
    clock: fn() -> SystemTime,
    request_seconds: HistogramVec,
    requests: IntCounterVec,
    config_state: IntGaugeVec,
    health: IntGaugeVec,
    key_info: IntGaugeVec,
    key_version: IntGaugeVec,
    malformed_requests: IntCounterVec,
    local_kek_unwrapped: Gauge,
    local_kek_expiry: Gauge,
    published_key: Mutex<Option<(String, String)>>,
    config_last_reload_success: Gauge,
    config_reloads: IntCounterVec,
    token_end: Mutex<Option<Instant>>,
    token_expiry: Gauge,
    token_lease: Gauge,
    token_ttl: Gauge,
    /// Errors of `accept(2)`, such as running out of descriptors.
    pub accept_errors: IntCounter,
    /// How many Decrypts went to Vault in one request.
    pub batch_size: Histogram,
    /// Connections open on the KMS socket.
    pub connections_open: IntGauge,
    /// Connections that ended without a complete HTTP/2 preface in time.
    pub handshake_timeouts: IntCounter,
    /// An older key version was published because Vault insisted on it.
    pub key_version_regressions: IntCounter,
    /// Local KEKs in memory.
    pub local_keks: IntGauge,
    /// Peers refused for their uid.
    pub connections_rejected: IntCounter,
    /// Decrypts that were answered by what another one had asked for.
    pub decrypts_deduplicated: IntCounter,
    /// Duration of session health checks.
    pub health_check_seconds: Histogram,
    /// The generation of the session in use; 0 before the first.
    pub session_generation: IntGauge,
    /// 1 while a successor listens at the path of a KMS socket.
    pub superseded: IntGauge,
    token_renewals: IntCounterVec,
}

impl Metrics {
    /// Registers everything, with build information and process metrics.
    ///
    /// # Errors
    /// Fails only if two metrics share a name, which a test rules out.
    pub fn new() -> Result<Self, prometheus::Error> {
        #[expect(clippy::disallowed_methods, reason = "time stamps are what the time of day is for")]
        Self::with_clock(SystemTime::now)
    }

    /// As [`Metrics::new`], with another time of day.
    ///
    /// # Errors
    /// As there.
    pub fn with_clock(clock: fn() -> SystemTime) -> Result<Self, prometheus::Error> {
        let registry = Registry::new_custom(Some("transit_kms".into()), None)?;
        let metrics = Self {
            accept_errors: counter(&registry, "accept_errors_total", "Errors of accept on the KMS socket.")?,
            batch_size: registered(
                &registry,
                Histogram::with_opts(
                    HistogramOpts::new("decrypt_batch_size", "Decrypts that went to Vault in one request.")
                        .buckets(BATCH_BUCKETS.to_vec()),
                )?,
            )?,
            client: Arc::new(ClientMetrics::register(&registry)?),
            clock,
            request_seconds: histograms(
                &registry,
                "request_duration_seconds",
                "Latency of KMS calls.",
                &["method", "code"],
            )?,
            requests: counters(
                &registry,
                "requests_total",
                "KMS calls by method and gRPC code.",
                &["method", "code"],
            )?,
            config_state: gauges(
                &registry,
                "config_state",
                "1 for what has become of the newest config, 0 for the others.",
                &["state"],
            )?,
            connections_open: registered(
                &registry,
                IntGauge::new("connections_open", "Open connections on the KMS socket.")?,
            )?,
            decrypts_deduplicated: counter(
                &registry,
                "decrypts_deduplicated_total",
                "Decrypts answered by what another one had asked for at the same time.",
            )?,
            malformed_requests: counters(
                &registry,
                "malformed_requests_total",
                "Requests refused as malformed before they were read, by what is malformed.",
                &["what"],
            )?,
            handshake_timeouts: counter(
                &registry,
                "handshake_timeouts_total",
                "Connections without a complete HTTP/2 preface in time.",
            )?,
            health: gauges(&registry, "health", "1 for the state that holds, 0 for the others.", &["state"])?,
            key_info: gauges(
                &registry,
                "key_id_hash_info",
                "1; the published key_id, hashed as kube-apiserver's key_id_hash label.",
                &["key_id_hash"],
            )?,
            key_version: gauges(
                &registry,
                "key_version",
                "Published version of the Transit key that encrypts.",
                &["key"],
            )?,
            key_version_regressions: counter(
                &registry,
                "key_version_regressions_total",
                "An older key version was published because Vault insisted on it.",
            )?,
            local_kek_unwrapped: gauge(
                &registry,
                "local_kek_unwrapped_timestamp_seconds",
                "Unix time at which Vault last wrapped or unwrapped the local KEK that encrypts; 0 if there is none.",
            )?,
            local_kek_expiry: gauge(
                &registry,
                "local_kek_expiry_timestamp_seconds",
                "Unix time until which the local KEK that encrypts is used if Vault stays away; 0 if there is none.",
            )?,
            local_keks: registered(&registry, IntGauge::new("local_keks", "Local KEKs in memory.")?)?,
            connections_rejected: counter(
                &registry,
                "connections_rejected_total",
                "Connections refused for the uid of the peer.",
            )?,
            health_check_seconds: registered(
                &registry,
                Histogram::with_opts(
                    HistogramOpts::new("health_check_duration_seconds", "Duration of session health checks.")
                        .buckets(LATENCY_BUCKETS.to_vec()),
                )?,
            )?,
            published_key: Mutex::new(None),
            config_last_reload_success: gauge(
                &registry,
                "config_last_reload_success_timestamp_seconds",
                "Unix time of the last config that was taken.",
            )?,
            config_reloads: counters(
                &registry,
                "config_reloads_total",
                "Configs by what became of them.",
                &["result"],
            )?,
            session_generation: registered(
                &registry,
                IntGauge::new("session_generation", "Generation of the session in use.")?,
            )?,
            superseded: registered(
                &registry,
                IntGauge::new("superseded", "1 while a successor listens at the path of the KMS socket.")?,
            )?,
            token_end: Mutex::new(None),
            token_expiry: gauge(
                &registry,
                "token_expiry_timestamp_seconds",
                "Unix time at which the Vault token ends; 0 if never or not known.",
            )?,
            token_lease: gauge(
                &registry,
                "token_lease_seconds",
                "The longest TTL that was seen of the Vault token in use; 0 if it never ends.",
            )?,
            token_renewals: counters(
                &registry,
                "token_renewals_total",
                "Token renewals by result.",
                &["result"],
            )?,
            token_ttl: gauge(
                &registry,
                "token_ttl_seconds",
                "TTL of the Vault token when it was last looked up; 0 if it never ends.",
            )?,
            registry,
        };
        metrics.describe_process()?;
        metrics.health(HealthState::Unknown);
        metrics.config_state(ConfigState::Pending);
        // Known label values start at 0: a rate over a series that appears with its first
        // error would miss that error.
        for result in ReloadResult::ALL {
            metrics.config_reloads.with_label_values(&[result.label()]);
        }
        for result in RenewalResult::ALL {
            metrics.token_renewals.with_label_values(&[result.label()]);
        }
        for what in [MalformedRequest::Authority, MalformedRequest::Other] {
            metrics.malformed_requests.with_label_values(&[what.label()]);
        }
        Ok(metrics)
    }

    fn describe_process(&self) -> Result<(), prometheus::Error> {
        let build =
            Opts::new("build_info", "1; what runs.").const_label("version", env!("CARGO_PKG_VERSION"));
        registered(&self.registry, IntGauge::with_opts(build)?)?.set(1);
        // Process metrics have the names that every dashboard knows, so no prefix of ours.
        Ok(())
    }

    /// One KMS call has been answered.
    pub fn call(&self, method: &'static str, code: &'static str, took: Duration) {
        self.requests.with_label_values(&[method, code]).inc();
        self.request_seconds.with_label_values(&[method, code]).observe(took.as_secs_f64());
    }

    /// Sets the one health state that holds.
    pub fn health(&self, state: HealthState) {
        for other in HealthState::ALL {
            self.health.with_label_values(&[other.label()]).set(i64::from(other == state));
        }
    }

    /// Counts the result of a config reload.
    pub fn reload(&self, result: ReloadResult) {
        self.config_reloads.with_label_values(&[result.label()]).inc();
        if result == ReloadResult::Success {
            self.config_last_reload_success.set(unix_seconds((self.clock)()));
        }
        self.config_state(result.config_state());
    }

    /// Sets the one state of the newest config that holds.
    pub fn config_state(&self, state: ConfigState) {
        for other in ConfigState::ALL {
            self.config_state.with_label_values(&[other.label()]).set(i64::from(other == state));
        }
    }

    /// The local KEK that encrypts, if there is one: Vault has unwrapped it so long ago, and if Vault
    /// stays away it is used for so long.
    pub fn local_kek(&self, life: Option<(Duration, Duration)>) {
        let now = unix_seconds((self.clock)());
        let (unwrapped, until) =
            life.map_or((0.0, 0.0), |(age, left)| (now - age.as_secs_f64(), now + left.as_secs_f64()));
        self.local_kek_unwrapped.set(unwrapped);
        self.local_kek_expiry.set(until);
    }

    /// A request was refused before any service saw it.
    pub fn malformed(&self, what: MalformedRequest) {
        self.malformed_requests.with_label_values(&[what.label()]).inc();
    }

    /// A key version was published; earlier labels disappear.
    pub fn key_published(&self, key: &str, version: u32, key_id_hash: &str) {
        let now = (key.to_owned(), key_id_hash.to_owned());
        if let Ok(mut published) = self.published_key.lock() {
            if let Some((old_key, old_hash)) = published.replace(now.clone())
                && (old_key, old_hash) != now
            {
                self.key_version.reset();
                self.key_info.reset();
            }
            self.key_version.with_label_values(&[key]).set(i64::from(version));
            self.key_info.with_label_values(&[key_id_hash]).set(1);
        }
    }

    /// Another token is in use; see [`Metrics::token`].
    pub fn new_token(&self, left: Option<Duration>) {
        self.token_lease.set(0.0);
        self.token(left);
    }

    /// What is known of the token's life: the time that it has left, or `None` if it never ends or
    /// nothing is known.
    pub fn token(&self, left: Option<Duration>) {
        let ttl = left.map(|left| left.as_secs_f64());
        self.token_lease.set(self.token_lease.get().max(ttl.unwrap_or_default()));
        self.token_ttl.set(ttl.unwrap_or_default());
        if let Ok(mut end) = self.token_end.lock() {
            *end = left.map(|left| Instant::now() + left);
        }
    }

    /// The end is kept by the monotonic clock and told by the time of day as it is now, because that may
    /// have been set since.
    fn tell_expiry(&self) {
        let end = self.token_end.lock().ok().and_then(|end| *end);
        self.token_expiry.set(end.map_or(0.0, |end| {
            let now = Instant::now();
            let left = end.saturating_duration_since(now).as_secs_f64();
            unix_seconds((self.clock)()) + left - now.saturating_duration_since(end).as_secs_f64()
        }));
    }

    /// Counts the result of a token renewal.
    pub fn token_renewal(&self, result: RenewalResult) {
        self.token_renewals.with_label_values(&[result.label()]).inc();
    }

    /// Everything in the Prometheus text format.
    ///
    /// # Errors
    /// Fails if the encoder does, which a sound registry does not make it do.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        self.tell_expiry();
        let mut families = self.registry.gather();
        families.extend(ProcessCollector.collect());
        TextEncoder::new().encode_to_string(&families)
    }
}

fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    registered(registry, IntCounter::new(name, help)?)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    registered(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
    registered(registry, Gauge::new(name, help)?)
}

fn gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntGaugeVec, prometheus::Error> {
    registered(registry, GenericGaugeVec::new(Opts::new(name, help), labels)?)
}

fn histograms(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<HistogramVec, prometheus::Error> {
    let options = HistogramOpts::new(name, help).buckets(LATENCY_BUCKETS.to_vec());
    registered(registry, HistogramVec::new(options, labels)?)
}

fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    #[test]
    fn one_health_state_holds_and_the_names_carry_our_prefix() {
        let metrics = Metrics::new().unwrap();
        metrics.health(HealthState::Ok);
        metrics.health(HealthState::Refused);
        let text = metrics.render().unwrap();
        assert!(text.contains("transit_kms_health{state=\"refused\"} 1"), "{text}");
        assert!(text.contains("transit_kms_health{state=\"ok\"} 0"), "{text}");
        assert!(text.contains("process_resident_memory_bytes"), "{text}");
        assert!(text.contains("transit_kms_build_info{version="), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_jumps_is_only_printed() {
        static NOW: AtomicI64 = AtomicI64::new(0);
        fn clock() -> SystemTime {
            let now = NOW.load(Ordering::Relaxed);
            let far = Duration::from_secs(now.unsigned_abs());
            if now < 0 { UNIX_EPOCH - far } else { UNIX_EPOCH + far }
        }
        let metrics = Metrics::with_clock(clock).unwrap();
        // Before 1970, at a time that is likely, and at the end of what a file system knows.
        for (now, expiry) in [(-86_400, "3600"), (1_800_000_000, "1800003600"), (1 << 40, "1099511631376")] {
            NOW.store(now, Ordering::Relaxed);
            metrics.token(Some(Duration::from_secs(3600)));
            metrics.reload(ReloadResult::Success);
            let text = metrics.render().unwrap();
            let line = format!("transit_kms_token_expiry_timestamp_seconds {expiry}\n");
            assert!(text.contains(&line), "{now}: {text}");
            assert!(text.contains("transit_kms_token_ttl_seconds 3600\n"), "{now}: {text}");
        }
        // The end of the token has not moved because the clock was set.
        NOW.store(1_000_000, Ordering::Relaxed);
        let text = metrics.render().unwrap();
        assert!(text.contains("transit_kms_token_expiry_timestamp_seconds 1003600\n"), "{text}");
        tokio::time::advance(Duration::from_secs(3700)).await;
        let text = metrics.render().unwrap();
        assert!(text.contains("transit_kms_token_expiry_timestamp_seconds 999900\n"), "{text}");
        metrics.token(None);
        assert!(metrics.render().unwrap().contains("transit_kms_token_expiry_timestamp_seconds 0\n"));
    }

    #[test]
    fn a_config_is_in_one_state_and_a_lease_is_that_of_one_token() {
        let metrics = Metrics::new().unwrap();
        let holds = |line: &str| {
            let text = metrics.render().unwrap();
            assert!(text.contains(&format!("transit_kms_{line}\n")), "{line}: {text}");
        };
        holds("config_state{state=\"pending\"} 1");
        for (result, state) in [
            (ReloadResult::Refused, "refused"),
            (ReloadResult::Invalid, "invalid"),
            (ReloadResult::Success, "in_use"),
        ] {
            metrics.reload(result);
            holds(&format!("config_state{{state=\"{state}\"}} 1"));
            holds("config_state{state=\"pending\"} 0");
        }
        metrics.reload(ReloadResult::Pending);
        metrics.config_state(ConfigState::InUse);
        holds("config_state{state=\"pending\"} 0");
        metrics.new_token(Some(Duration::from_secs(60)));
        metrics.token(Some(Duration::from_secs(90)));
        metrics.token(Some(Duration::from_secs(20)));
        holds("token_lease_seconds 90");
        metrics.new_token(Some(Duration::from_secs(20)));
        holds("token_lease_seconds 20");
    }

    #[test]
    fn a_new_key_id_replaces_the_old_label() {
        let metrics = Metrics::new().unwrap();
        metrics.key_published("kms", 1, "sha256:aa");
        metrics.key_published("kms", 2, "sha256:bb");
        let text = metrics.render().unwrap();
        assert!(!text.contains("sha256:aa"), "{text}");
        assert!(text.contains("transit_kms_key_version{key=\"kms\"} 2"), "{text}");
    }
}
