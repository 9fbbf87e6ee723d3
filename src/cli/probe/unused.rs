//! Whether kube-apiserver still asks this plugin: for an operator who is about to take it away.
//!
//! kube-apiserver asks each plugin for its Status every minute and notes when it was answered
//! ([`super::metrics_page`]). A note that is old means that its EncryptionConfiguration does not name the
//! plugin any more; one that is not there, that it never did since its start. The note has the key_id's
//! hash, not the plugin: after a rotation, kube-apiserver may have been told one that this plugin has
//! forgotten, or not been told the newest one yet. So any young note counts, unless its provider is said to
//! be another plugin. What cannot be told is "no".

use std::{path::PathBuf, time::Duration};

use clap::Args;
use url::Url;

use super::{
    ProbeArgs,
    cluster::{ApiServer, Cluster},
    kms,
    metrics_page::Page,
    report::{Report, Verdict},
};
use transit_client::key_id::key_id_hash;

/// A minute between two questions, two minutes at most until a plugin that was away is dialled again, and
/// room.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);

#[derive(Args, Clone, Debug)]
pub(super) struct UnusedArgs {
    /// An API server, https://host:port, besides those that the cluster lists; the first is asked for that list. May
    /// be given several times [default: the one that pods are told of]
    #[arg(long, value_name = "URL")]
    pub(super) api_server: Vec<Url>,

    /// The API servers named by --api-server are all that there are: the cluster is not asked for its list
    #[arg(long, requires = "api_server")]
    pub(super) no_discovery: bool,

    /// The name, in the EncryptionConfiguration, of a KMS v2 provider that is another plugin than this one. May be
    /// given several times
    #[arg(long, value_name = "NAME")]
    other_provider: Vec<String>,

    /// The folder with `ca.crt` and `token` to ask it with, as pods have it
    #[arg(long, value_name = "PATH", default_value = "/var/run/secrets/kubernetes.io/serviceaccount")]
    pub(super) service_account: PathBuf,
}

/// Asks all API servers when they last asked this plugin.
pub(super) async fn unused(
    args: &ProbeArgs,
    unused: &UnusedArgs,
    report: &mut Report,
) -> Result<(), Verdict> {
    let cluster = Cluster::new(unused).map_err(Verdict::Input)?;
    let ours = kms::key_id(args).await.map(|key_id| key_id_hash(&key_id));
    match &ours {
        Ok(hash) => report.learn("key_id_hash", hash.as_str()),
        Err(verdict) => report.learn("unknown_key_id", verdict.reason().unwrap_or_default()),
    }
    let ours = ours.ok();
    let servers = cluster.servers().await?;
    report.learn("api_servers", servers.iter().map(ApiServer::to_string).collect::<Vec<_>>());
    for server in servers.iter() {
        let page = cluster.page(server).await?;
        judge(&server.to_string(), ours.as_deref(), &unused.other_provider, &page)?;
    }
    Ok(())
}

/// Whether what an API server tells lets this plugin go; without a hash of its own, any plugin may be it.
fn judge(server: &str, ours: Option<&str>, others: &[String], page: &Page) -> Result<(), Verdict> {
    let other = |provider: &String| others.contains(provider);
    let mut notes: Vec<_> = page.notes.iter().collect();
    notes.sort_by_key(|note| std::cmp::Reverse(note.at));
    for note in notes {
        // A time to come is young: the clock was set back.
        let age = page.now.saturating_sub(note.at);
        let young = age < FORGOTTEN_AFTER;
        let ago = humantime::format_duration(Duration::from_secs(age.as_secs()));
        let provider = &note.provider;
        if young && ours == Some(note.key_id_hash.as_str()) {
            return Err(Verdict::Bad(format!(
                "kube-apiserver at {server} asked this plugin {ago} ago, as its provider \"{provider}\": an \
                 EncryptionConfiguration still names it, and without it nothing that it has encrypted can be read. First \
                 have everything rewritten under another provider and take this one out there; this passes when \
                 kube-apiserver has been restarted without it, or {} after it asked for the last time",
                humantime::format_duration(FORGOTTEN_AFTER),
            )));
        }
        if other(provider) {
            continue;
        }
        if ours.is_none() {
            // However old the note: that it is not asked may be because it does not answer.
            return Err(Verdict::Bad(format!(
                "kube-apiserver at {server} knows a KMS v2 provider \"{provider}\", and whether that is this plugin \
                 cannot be told, because it does not say its key_id: bring it up first; or, if you are sure that no \
                 EncryptionConfiguration names it, go past this check"
            )));
        }
        if young {
            return Err(Verdict::Bad(format!(
                "kube-apiserver at {server} asked its KMS v2 provider \"{provider}\" {ago} ago and was told another key_id \
                 than this plugin has now: it may be this one, before a rotation. If it is another plugin, say so by \
                 --other-provider={provider}"
            )));
        }
    }
    let noted = |provider: &String| page.notes.iter().any(|note| note.provider == *provider);
    if let Some(provider) = page.called.iter().find(|provider| !noted(provider) && !other(provider)) {
        return Err(Verdict::Bad(format!(
            "kube-apiserver at {server} has called its KMS v2 provider \"{provider}\" since it was started and had no \
             Status of it: whether it still names it, and whether that is this plugin, cannot be told. Restart that \
             kube-apiserver without it; or, if it is another plugin, say so by --other-provider={provider}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{super::metrics_page::Note, *};

    const NOW: Duration = Duration::from_secs(10_000);

    fn page(notes: &[(&str, &str, u64)], called: &[&str]) -> Page {
        let note = |(hash, provider, at): &(&str, &str, u64)| Note {
            at: Duration::from_secs(*at),
            key_id_hash: (*hash).to_owned(),
            provider: (*provider).to_owned(),
        };
        let called = called.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        Page { called, notes: notes.iter().map(note).collect(), now: NOW }
    }

    fn judged(ours: Option<&str>, others: &[&str], page: &Page) -> Result<(), String> {
        let others: Vec<_> = others.iter().map(|name| (*name).to_owned()).collect();
        judge("s", ours, &others, page).map_err(|verdict| {
            assert_eq!(verdict.exit_code(), 1);
            verdict.reason().unwrap().to_owned()
        })
    }

    #[test]
    fn a_plugin_is_used_while_its_last_question_is_young() {
        let young = page(&[("a", "transit", 1), ("a", "transit", 9_702)], &["transit"]);
        let why = judged(Some("a"), &[], &young).unwrap_err();
        assert!(why.contains("4m 58s ago, as its provider \"transit\""), "{why}");
        // Even under a name that is said to be another plugin's: the key_id is this one's.
        assert!(judged(Some("a"), &["transit"], &young).is_err());
        // A clock that was set back makes it younger still.
        assert!(judged(Some("a"), &[], &page(&[("a", "transit", 20_000)], &[])).is_err());
        for gone in [page(&[], &[]), page(&[("a", "transit", 9_700)], &["transit"])] {
            assert_eq!(judged(Some("a"), &[], &gone), Ok(()));
        }
    }

    /// Seconds after a rotation kube-apiserver has been told the old key_id only.
    #[test]
    fn a_young_note_of_another_key_id_counts_unless_its_provider_is_another() {
        let rotated = page(&[("old", "transit", 9_992)], &["transit"]);
        let why = judged(Some("new"), &[], &rotated).unwrap_err();
        assert!(why.contains("--other-provider=transit"), "{why}");
        assert!(judged(Some("new"), &["other"], &rotated).is_err());
        assert_eq!(judged(Some("new"), &["transit"], &rotated), Ok(()));
        assert_eq!(judged(Some("new"), &[], &page(&[("old", "transit", 9_000)], &["transit"])), Ok(()));
    }

    #[test]
    fn a_plugin_that_does_not_say_who_it_is_may_be_any() {
        for note in [("b", "transit", 1), ("b", "transit", 9_999)] {
            assert!(judged(None, &[], &page(&[note], &[])).is_err());
            assert_eq!(judged(None, &["transit"], &page(&[note], &[])), Ok(()));
        }
        let why = judged(None, &[], &page(&[("b", "transit", 1)], &[])).unwrap_err();
        assert!(why.contains("cannot be told"), "{why}");
        assert_eq!(judged(None, &[], &page(&[], &[])), Ok(()));
    }

    /// Started while the plugin was away: nothing is noted, and it is needed all the same.
    #[test]
    fn a_plugin_that_is_called_and_never_answered_counts() {
        let why = judged(Some("a"), &[], &page(&[], &["transit"])).unwrap_err();
        assert!(why.contains("had no Status of it"), "{why}");
        assert_eq!(judged(Some("a"), &["transit"], &page(&[], &["transit"])), Ok(()));
    }
}
