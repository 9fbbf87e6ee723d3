//! Helm 3 and 4, with the release of the chart.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use testkit::{
    Bao,
    cluster::{Kubectl, Ran},
    command, temp_dir,
};

/// The name of the release and of the DaemonSet.
pub(crate) const RELEASE: &str = "transit-kms";
/// The namespace of the release.
pub(crate) const NAMESPACE: &str = "kube-system";
/// The pods of the DaemonSet.
pub(crate) const PODS: &str = "app.kubernetes.io/name=transit-kms,app.kubernetes.io/component=kms-provider";

const ROOT: &str = testkit::repository::ROOT;
/// The timeout of `--wait` and of hooks.
const PATIENCE: &str = "--timeout=90s";

/// Helm of one major version, with the values that the node needs.
pub(crate) struct Helm {
    home: TempDir,
    kubeconfig: PathBuf,
    program: PathBuf,
    values: Vec<String>,
}

impl Helm {
    /// Returns Helm of this major version. Its releases use this Vault.
    pub(crate) fn new(major: u8, kubectl: &Kubectl, bao: &Bao) -> Self {
        let program = Path::new(ROOT).join(format!("target/tools/bin/helm{major}"));
        assert!(program.exists(), "no {}: run scripts/install-tools", program.display());
        let mut values = vec![format!("--set-file=vault.tls.ca={}", bao.ca_file().display())];
        for pair in [
            "agent.image.pullPolicy=Never",
            "agent.image.repository=localhost/openbao",
            "agent.image.tag=test",
            "image.pullPolicy=Never",
            &format!("vault.addresses={{{}}}", bao.address()),
        ] {
            values.push(format!("--set={pair}"));
        }
        Self { home: temp_dir("helm-"), kubeconfig: kubectl.config(), program, values }
    }

    /// Installs or upgrades the release with additional values such as `log.level=debug`, and waits until it is ready.
    pub(crate) async fn upgrade(&self, values: &[&str]) -> Ran {
        self.upgrade_within(PATIENCE, values).await
    }

    /// As [`Helm::upgrade`], with a `--timeout` flag.
    pub(crate) async fn upgrade_within(&self, timeout: &str, values: &[&str]) -> Ran {
        let chart = format!("{ROOT}/charts/transit-kms");
        let mut arguments =
            vec!["upgrade", RELEASE, &chart, "--install", "--reset-values", "--wait", timeout];
        arguments.extend(self.values.iter().map(String::as_str));
        let values: Vec<String> = values.iter().map(|pair| format!("--set={pair}")).collect();
        arguments.extend(values.iter().map(String::as_str));
        self.run(&arguments).await
    }

    /// Rolls back to the previous revision, and waits until it is ready.
    pub(crate) async fn rollback(&self) -> Ran {
        self.run(&["rollback", RELEASE, "--wait", PATIENCE]).await
    }

    /// Runs Helm with these arguments.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Ran {
        let mut command = command(&self.program);
        command.args(arguments).args(["--namespace", NAMESPACE]).arg("--kubeconfig").arg(&self.kubeconfig);
        command.env("HOME", self.home.path());
        Ran::of(command).await
    }
}
