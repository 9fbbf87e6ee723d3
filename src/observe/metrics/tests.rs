use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use super::*;
use crate::observe::labels::{ConfigState, HealthState, ReloadResult};

#[test]
fn one_health_state_is_1_and_names_have_the_prefix() {
    let metrics = Metrics::new().unwrap();
    metrics.health.set_state(HealthState::Ok);
    metrics.health.set_state(HealthState::Refused);
    let text = metrics.render().unwrap();
    assert!(text.contains("transit_kms_health{state=\"refused\"} 1"), "{text}");
    assert!(text.contains("transit_kms_health{state=\"ok\"} 0"), "{text}");
    assert!(text.contains("process_resident_memory_bytes"), "{text}");
    let build = format!("transit_kms_build_info{{features=\"{}\",version=\"", build::features(","));
    assert!(text.contains(&build), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_changes_timestamps_only() {
    static NOW: AtomicI64 = AtomicI64::new(0);
    fn clock() -> SystemTime {
        let now = NOW.load(Ordering::Relaxed);
        let far = Duration::from_secs(now.unsigned_abs());
        if now < 0 { UNIX_EPOCH - far } else { UNIX_EPOCH + far }
    }
    let metrics = Metrics::with_clock(clock).unwrap();
    // Before 1970, today, and far in the future.
    for (now, expiry) in [(-86_400, "3600"), (1_800_000_000, "1800003600"), (1 << 40, "1099511631376")] {
        NOW.store(now, Ordering::Relaxed);
        metrics.token.set_ttl(Some(Duration::from_secs(3600)));
        metrics.config.reloaded(ReloadResult::Success);
        let text = metrics.render().unwrap();
        let line = format!("transit_kms_token_expiry_timestamp_seconds {expiry}\n");
        assert!(text.contains(&line), "{now}: {text}");
        assert!(text.contains("transit_kms_token_ttl_seconds 3600\n"), "{now}: {text}");
    }
    // The remaining time does not change when the clock is set.
    NOW.store(1_000_000, Ordering::Relaxed);
    let text = metrics.render().unwrap();
    assert!(text.contains("transit_kms_token_expiry_timestamp_seconds 1003600\n"), "{text}");
    tokio::time::advance(Duration::from_secs(3700)).await;
    let text = metrics.render().unwrap();
    assert!(text.contains("transit_kms_token_expiry_timestamp_seconds 999900\n"), "{text}");
    metrics.token.set_ttl(None);
    assert!(metrics.render().unwrap().contains("transit_kms_token_expiry_timestamp_seconds 0\n"));
}

#[test]
fn one_config_state_is_1_and_the_lease_belongs_to_one_token() {
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
        metrics.config.reloaded(result);
        holds(&format!("config_state{{state=\"{state}\"}} 1"));
        holds("config_state{state=\"pending\"} 0");
    }
    metrics.config.reloaded(ReloadResult::Pending);
    metrics.config.set_state(ConfigState::InUse);
    holds("config_state{state=\"pending\"} 0");
    metrics.token.replaced(Some(Duration::from_secs(60)));
    metrics.token.set_ttl(Some(Duration::from_secs(90)));
    metrics.token.set_ttl(Some(Duration::from_secs(20)));
    holds("token_lease_seconds 90");
    metrics.token.replaced(Some(Duration::from_secs(20)));
    holds("token_lease_seconds 20");
}

#[test]
fn a_new_key_id_replaces_the_series_of_the_old_one() {
    let metrics = Metrics::new().unwrap();
    metrics.keys.published("kms", 1, "sha256:aa");
    metrics.keys.published("kms", 2, "sha256:bb");
    let text = metrics.render().unwrap();
    assert!(!text.contains("sha256:aa"), "{text}");
    assert!(text.contains("transit_kms_key_version{key=\"kms\"} 2"), "{text}");
}
