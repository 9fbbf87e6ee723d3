//! The check `unused`: no kube-apiserver uses this plugin any more.
//!
//! kube-apiserver calls Status of each plugin every minute and exports when the last answer arrived
//! ([`super::metrics_page`]). If that time is old, its EncryptionConfiguration does not name the plugin any more. If
//! there is no such time, the plugin has not answered since kube-apiserver started.
//!
//! The series has the hash of the key_id, not the name of the plugin. After a rotation, kube-apiserver may know a
//! key_id that this plugin has forgotten, or may not know the newest one yet. Therefore every recent answer counts as
//! one of this plugin, unless the operator says that its provider is another plugin. The check fails in every case of
//! doubt.

use std::time::Duration;

use transit_client::key_id::key_id_hash;

use kms_plugin::cli::{CheckError, Report, key_id};

use super::{
    args::{ProbeArgs, UnusedArgs},
    cluster::{ApiServer, Cluster},
    metrics_page::PluginMetrics,
};

/// An answer to Status is recent for this time: one minute between two calls, at most two minutes until
/// kube-apiserver connects again to a plugin that was unavailable, and a margin.
const RECENT: Duration = Duration::from_secs(300);

/// Reads the metrics of all API servers.
pub(super) async fn check(
    args: &ProbeArgs,
    unused: &UnusedArgs,
    report: &mut Report,
) -> Result<(), CheckError> {
    let cluster = Cluster::new(unused).map_err(CheckError::InvalidInput)?;
    let own_hash = match key_id(&args.target()).await {
        Ok(key_id) => {
            let hash = key_id_hash(&key_id);
            report.add("key_id_hash", hash.as_str());
            Some(hash)
        }
        Err(error) => {
            report.add("unknown_key_id", error.to_string());
            None
        }
    };
    let servers = cluster.servers().await?;
    report.add("api_servers", servers.iter().map(ApiServer::to_string).collect::<Vec<_>>());
    for server in servers.iter() {
        let metrics = cluster.plugin_metrics(server).await?;
        check_server(&server.to_string(), own_hash.as_deref(), &unused.other_provider, &metrics)?;
    }
    Ok(())
}

/// Checks that one API server does not use this plugin. Without the hash of this plugin's key_id, every provider may be
/// this plugin.
fn check_server(
    server: &str,
    own_hash: Option<&str>,
    other_providers: &[String],
    metrics: &PluginMetrics,
) -> Result<(), CheckError> {
    let is_other = |provider: &String| other_providers.contains(provider);
    let mut answers: Vec<_> = metrics.answers.iter().collect();
    answers.sort_by_key(|answer| std::cmp::Reverse(answer.at));
    for answer in answers {
        // A time in the future counts as now: the clock of the API server was set back.
        let age = metrics.now.saturating_sub(answer.at);
        let is_recent = age < RECENT;
        let ago = humantime::format_duration(Duration::from_secs(age.as_secs()));
        let provider = &answer.provider;
        if is_recent && own_hash == Some(answer.key_id_hash.as_str()) {
            return Err(CheckError::Failed(format!(
                "kube-apiserver at {server} asked this plugin {ago} ago, as its provider \"{provider}\": an \
                 EncryptionConfiguration still names it, and data that it encrypted cannot be read without it. First \
                 rewrite all data with another provider, and remove this one from the EncryptionConfiguration. This \
                 check passes when kube-apiserver has restarted without it, or {} after the last Status call",
                humantime::format_duration(RECENT),
            )));
        }
        if is_other(provider) {
            continue;
        }
        if own_hash.is_none() {
            // The age does not matter: kube-apiserver may not have asked because the plugin does not answer.
            return Err(CheckError::Failed(format!(
                "kube-apiserver at {server} knows a KMS v2 provider \"{provider}\". It cannot be determined whether \
                 that is this plugin, because this plugin does not answer with its key_id: start it first. If you are \
                 sure that no EncryptionConfiguration names it, ignore this check"
            )));
        }
        if is_recent {
            return Err(CheckError::Failed(format!(
                "kube-apiserver at {server} asked its KMS v2 provider \"{provider}\" {ago} ago and got another key_id \
                 than this plugin has now: that may have been this plugin before a rotation. If it is another plugin, \
                 pass --other-provider={provider}"
            )));
        }
    }
    let has_answered = |provider: &String| metrics.answers.iter().any(|answer| answer.provider == *provider);
    if let Some(provider) =
        metrics.called.iter().find(|provider| !has_answered(provider) && !is_other(provider))
    {
        return Err(CheckError::Failed(format!(
            "kube-apiserver at {server} has called its KMS v2 provider \"{provider}\" since it started, and got no \
             answer to Status. It cannot be determined whether it still uses that provider, and whether that is this \
             plugin. Restart that kube-apiserver without the provider. If it is another plugin, pass \
             --other-provider={provider}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{super::metrics_page::RecordedStatus, *};

    const NOW: Duration = Duration::from_secs(10_000);

    fn metrics(answers: &[(&str, &str, u64)], called: &[&str]) -> PluginMetrics {
        let answer = |(hash, provider, at): &(&str, &str, u64)| RecordedStatus {
            at: Duration::from_secs(*at),
            key_id_hash: (*hash).to_owned(),
            provider: (*provider).to_owned(),
        };
        let called = called.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        PluginMetrics { answers: answers.iter().map(answer).collect(), called, now: NOW }
    }

    fn check(own_hash: Option<&str>, others: &[&str], metrics: &PluginMetrics) -> Result<(), String> {
        let others: Vec<_> = others.iter().map(|name| (*name).to_owned()).collect();
        check_server("s", own_hash, &others, metrics).map_err(|error| {
            assert_eq!(error.exit_code(), 1);
            error.to_string()
        })
    }

    #[test]
    fn a_plugin_is_used_while_its_last_answer_is_recent() {
        let recent = metrics(&[("a", "transit", 1), ("a", "transit", 9_702)], &["transit"]);
        let why = check(Some("a"), &[], &recent).unwrap_err();
        assert!(why.contains("4m 58s ago, as its provider \"transit\""), "{why}");
        // Also if the operator says that the provider is another plugin: the key_id is this plugin's.
        assert!(check(Some("a"), &["transit"], &recent).is_err());
        // A clock that was set back makes the answer even more recent.
        assert!(check(Some("a"), &[], &metrics(&[("a", "transit", 20_000)], &[])).is_err());
        for unused in [metrics(&[], &[]), metrics(&[("a", "transit", 9_700)], &["transit"])] {
            assert_eq!(check(Some("a"), &[], &unused), Ok(()));
        }
    }

    /// For some seconds after a rotation, kube-apiserver knows only the old key_id.
    #[test]
    fn a_recent_answer_with_another_key_id_counts_unless_the_provider_is_another() {
        let rotated = metrics(&[("old", "transit", 9_992)], &["transit"]);
        let why = check(Some("new"), &[], &rotated).unwrap_err();
        assert!(why.contains("--other-provider=transit"), "{why}");
        assert!(check(Some("new"), &["other"], &rotated).is_err());
        assert_eq!(check(Some("new"), &["transit"], &rotated), Ok(()));
        let old = metrics(&[("old", "transit", 9_000)], &["transit"]);
        assert_eq!(check(Some("new"), &[], &old), Ok(()));
    }

    #[test]
    fn without_an_own_key_id_every_provider_counts() {
        for answer in [("b", "transit", 1), ("b", "transit", 9_999)] {
            assert!(check(None, &[], &metrics(&[answer], &[])).is_err());
            assert_eq!(check(None, &["transit"], &metrics(&[answer], &[])), Ok(()));
        }
        let why = check(None, &[], &metrics(&[("b", "transit", 1)], &[])).unwrap_err();
        assert!(why.contains("cannot be determined"), "{why}");
        assert_eq!(check(None, &[], &metrics(&[], &[])), Ok(()));
    }

    /// kube-apiserver started while the plugin was unavailable, and still needs it.
    #[test]
    fn a_plugin_that_was_called_and_never_answered_counts() {
        let why = check(Some("a"), &[], &metrics(&[], &["transit"])).unwrap_err();
        assert!(why.contains("got no answer to Status"), "{why}");
        assert_eq!(check(Some("a"), &["transit"], &metrics(&[], &["transit"])), Ok(()));
    }
}
