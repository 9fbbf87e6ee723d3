//! Values that the chart rejects, each with an error message that names the value and says what to do.

use super::helm::{Helm, RELEASE, sets, values};

const NO_AGENT: &str = "--set=agent.enabled=false";

/// Helm's arguments in addition to the value set `minimal`, and parts of the expected error message.
const INVALID_VALUES: &[(&[&str], &[&str])] = &[
    // Unknown values, above all a token.
    (&["--set=token=hvs.x"], &["additional properties 'token' not allowed"]),
    (&["--set=vault.token=hvs.x"], &["'/vault'", "additional properties 'token' not allowed"]),
    (&["--set=agent.auth.secretId=x"], &["'/agent/auth'", "additional properties 'secretId' not allowed"]),
    (&["--set=vault.address=https://v"], &["'/vault'", "additional properties 'address' not allowed"]),
    (
        &["--set=extraEnv[0].name=VAULT_TOKEN,extraEnv[0].value=x"],
        &["VAULT_TOKEN: values must not contain a token", "agent.auth"],
    ),
    (
        &["--set=agent.extraEnv[0].name=BAO_TOKEN,agent.extraEnv[0].value=x"],
        &["BAO_TOKEN: values must not contain a token"],
    ),
    (
        &["--set=vault.tls.ca=-----BEGIN CERTIFICATE----- -----BEGIN PRIVATE KEY-----"],
        &["vault.tls.ca contains a private key", "remove everything except the certificates"],
    ),
    // Vault.
    (&["--set=vault.addresses=null"], &["'/vault'", "missing property 'addresses'"]),
    (&["--set-json=vault.addresses=[]"], &["'/vault/addresses'", "minItems: got 0, want 1"]),
    (&["--set=vault.addresses={http://v:8200}"], &["'/vault/addresses/0'", "'^https://'"]),
    (&["--set=vault.addresses={v:8200}"], &["'/vault/addresses/0'", "'v:8200' does not match pattern"]),
    (&["--set=vault.addresses={https://u:p@v:8200}"], &["'/vault/addresses/0'", "does not match pattern"]),
    (&["--set=vault.addresses={https://v,https://v}"], &["'/vault/addresses'", "are equal"]),
    (&["--set=vault.addresses=https://v"], &["'/vault/addresses'", "got string, want array"]),
    (&["--set-json=vault.keyNames=[]"], &["'/vault/keyNames'", "minItems"]),
    (&["--set=vault.keyNames={-kms}"], &["'/vault/keyNames/0'", "does not match pattern"]),
    (&["--set=vault.transitPath="], &["'/vault/transitPath'", "does not match pattern"]),
    (&["--set=vault.tls.ca=ca.pem"], &["'/vault/tls/ca'", "BEGIN CERTIFICATE"]),
    (&["--set=vault.tls.caHostPath=ca.pem"], &["'/vault/tls/caHostPath'", "does not match pattern"]),
    (
        &["--set=vault.tls.caHostPath=/etc/transit-kms/ca.pem"],
        &[
            "vault.tls.caHostPath: the chart would mount the whole directory /etc/transit-kms",
            "/etc/transit-kms/ca/ca.pem",
        ],
    ),
    (
        &["--set=vault.tls.caHostPath=/a/b,vault.tls.ca=-----BEGIN CERTIFICATE-----"],
        &["vault.tls.ca and vault.tls.caHostPath: set only one of them"],
    ),
    (&["--set=encryption.mode=local"], &["'/encryption/mode'", "'local-kek', 'transit'"]),
    (&["--set=encryption.maxAge=90"], &["'/encryption/maxAge'", "got number, want string"]),
    // The agent.
    (&["--set=agent.kind=bao"], &["'/agent/kind'", "'openbao', 'vault'"]),
    (&["--set=agent.kind=vault"], &["'/agent/image/tag'", "'/agent/image/digest'", "want 1"]),
    (&["--set=agent.auth=null"], &["'/agent'", "missing property 'auth'"]),
    (&["--set=agent.auth.method=aws"], &["'/agent/auth/method'", "'approle', 'cert', 'jwt', 'kubernetes'"]),
    (&["--set=agent.auth.method=none"], &["'/agent/auth/method'", "'approle', 'cert', 'jwt', 'kubernetes'"]),
    (&["--set=agent.auth.method=jwt"], &["'/agent/auth/role'", "minLength"]),
    (
        &["--set=agent.auth.method=kubernetes,agent.auth.role=null"],
        &["'/agent/auth'", "missing property 'role'"],
    ),
    (&["--set=agent.auth.roleIdFile=null"], &["'/agent/auth'", "missing property 'roleIdFile'"]),
    (
        &["--set=agent.auth.secretIdFile=/etc/secret_id"],
        &["'/agent/auth/secretIdFile'", "does not match pattern"],
    ),
    (
        &["--set=agent.auth.method=cert,agent.auth.keyFile="],
        &["'/agent/auth/keyFile'", "does not match pattern"],
    ),
    (&["--set=agent.auth.serviceAccountToken.expirationSeconds=60"], &["expirationSeconds'", "want 600"]),
    (
        &["--set=agent.auth.secret.name=approle"],
        &[
            "agent.auth.secret.name: kube-apiserver encrypts Secrets through transit-kms",
            "acceptDeadlock=true",
        ],
    ),
    (&["--set=agent.config.source=configMap"], &["'/agent/config/configMapName'", "minLength"]),
    (
        &["--set=agent.config.source=host,agent.config.hostDirectory=null"],
        &["missing property 'hostDirectory'"],
    ),
    // A login of the daemon.
    (
        &["--set=auth.method=approle"],
        &["auth.method: transit-kms logs in itself only without", "agent.enabled=false"],
    ),
    (&[NO_AGENT, "--set=auth.method=ldap"], &["'/auth/method'", "'approle', 'aws'"]),
    (&[NO_AGENT, "--set=auth.secretId=x"], &["'/auth'", "additional properties 'secretId' not allowed"]),
    (&[NO_AGENT, "--set=auth.password=x"], &["'/auth'", "additional properties 'password' not allowed"]),
    (
        &[NO_AGENT, "--set=auth.method=approle", "--set-json=vault.addresses=[]"],
        &["'/vault/addresses'", "minItems"],
    ),
    (
        &[NO_AGENT, "--set=auth.method=approle,auth.delivery=mail"],
        &["'/auth/delivery'", "'cubbyhole', 'plain'"],
    ),
    (&[NO_AGENT, "--set=auth.method=jwt"], &["'/auth/role'", "minLength"]),
    (&[NO_AGENT, "--set=auth.method=approle,auth.delivery=wrapped"], &["'/auth/role'", "minLength"]),
    (&[NO_AGENT, "--set=auth.method=aws"], &["'/auth/role'", "minLength"]),
    (&[NO_AGENT, "--set=auth.method=spiffe,auth.role=null"], &["'/auth'", "missing property 'role'"]),
    (&[NO_AGENT, "--set=auth.method=userpass"], &["'/auth/username'", "minLength"]),
    (
        &[NO_AGENT, "--set=auth.method=token_file,auth.delivery=sealed"],
        &["'/auth/delivery'", "'plain', 'wrapped'"],
    ),
    (
        &[NO_AGENT, "--set=auth.method=cert,auth.delivery=wrapped"],
        &["auth.delivery: the method cert has only plain files"],
    ),
    (
        &[NO_AGENT, "--set=auth.method=approle,auth.secret.name=x"],
        &["auth.secret.name: kube-apiserver encrypts Secrets through transit-kms", "acceptDeadlock=true"],
    ),
    (
        &[NO_AGENT, "--set=auth.method=aws,auth.role=x,auth.secret.name=x,auth.secret.acceptDeadlock=true"],
        &["auth.secret.name: the method aws has no files"],
    ),
    (
        &[NO_AGENT, "--set=auth.method=approle,config.volume.emptyDir.medium=Memory"],
        &["config.volume: with auth.method, the chart generates the config file"],
    ),
    (
        &[NO_AGENT, "--set=auth.method=agent"],
        &["vault.addresses: with auth.method=agent", "auth.agentSocket"],
    ),
    (
        &[NO_AGENT, "--set-json=vault.addresses=[]", "--set=auth.method=agent,auth.namespace=a"],
        &["auth.namespace: with auth.method=agent, the agent logs in"],
    ),
    (&[NO_AGENT, "--set=auth.method=token_file,auth.mount=a"], &["auth.mount: the method token_file"]),
    (
        &[NO_AGENT, "--set=auth.method=cert,auth.inline=true"],
        &["auth.inline: not possible with auth.method=cert"],
    ),
    (
        &[NO_AGENT, "--set=auth.method=approle,auth.role=x,auth.inline=true,auth.delivery=wrapped"],
        &["auth.inline: each request contains the credentials", "Use plain"],
    ),
    (
        &[NO_AGENT, "--set=auth.method=approle,auth.workloadApi.source=csi"],
        &["auth.workloadApi.source: only for the methods cert, jwt and spiffe"],
    ),
    (&[NO_AGENT, "--set=auth.workloadApi.source=tcp"], &["'/auth/workloadApi/source'", "'csi', 'hostPath'"]),
    (
        &[NO_AGENT, "--set=auth.workloadApi.spiffeId=cp1"],
        &["'/auth/workloadApi/spiffeId'", "does not match pattern"],
    ),
    (
        &[NO_AGENT, "--set=auth.method=jwt,auth.role=x,auth.workloadApi.source=csi,auth.jwtFile=jwt"],
        &["auth.jwtFile and auth.workloadApi.source: set only one of them"],
    ),
    (
        &[NO_AGENT, "--set=auth.method=cert,auth.mount=cert-prod,auth.trustDomains.prod=auth/cert-prod"],
        &["auth.trustDomains: only for the methods cert, jwt and spiffe, and instead of auth.mount"],
    ),
    (
        &[NO_AGENT, "--set=auth.method=approle,auth.stateHostDirectory=/etc/transit-kms/state"],
        &["auth.stateHostDirectory: must not be in auth.hostDirectory"],
    ),
    (
        &[NO_AGENT, "--set=auth.method=aws,auth.role=x,auth.aws.type=ec2,auth.aws.region=eu-central-1"],
        &["auth.aws.region, auth.aws.iamServerIdHeaderValue: only for auth.aws.type=iam"],
    ),
    (
        &["--set=vault.tls.caHostPath=/var/lib/transit-kms/ca.pem"],
        &["vault.tls.caHostPath: the chart would mount the whole directory /var/lib/transit-kms"],
    ),
    // The rest.
    (&["--set=image.repository=Registry/x:tag"], &["'/image/repository'", "does not match pattern"]),
    (&["--set=image.tag=1"], &["'/image/tag'", "got number, want string"]),
    (&["--set=image.digest=sha256:1"], &["'/image/digest'", "does not match pattern"]),
    (&["--set=image.pullPolicy=Sometimes"], &["'/image/pullPolicy'", "'IfNotPresent'"]),
    (&["--set=socket.hostDirectory=/"], &["'/socket/hostDirectory'", "does not match pattern"]),
    (&["--set=socket.hostDirectory=/run/../etc"], &["'/socket/hostDirectory'", "does not match pattern"]),
    (&["--set-json=socket.mode=432"], &["'/socket/mode'", "got number, want string"]),
    (&["--set=socket.group=kms"], &["'/socket/group'", "does not match pattern"]),
    (&["--set=socket.allowUids={root}"], &["'/socket/allowUids/0'", "got string, want integer"]),
    (&["--set=metrics.bindAddress=localhost"], &["'/metrics/bindAddress'", "podIP"]),
    (&["--set=metrics.port=0"], &["'/metrics/port'", "minimum"]),
    (
        &["--set=podMonitor.enabled=true"],
        &["podMonitor.enabled: Prometheus cannot reach metrics.bindAddress 127.0.0.1", "set it to podIP"],
    ),
    (&["--set=log.level=verbose"], &["'/log/level'", "'debug'"]),
    (&["--set=shutdownGraceSeconds=0"], &["'/shutdownGraceSeconds'", "minimum"]),
    (&["--set=extraArgs={outage-grace=2m}"], &["'/extraArgs/0'", "'^-'"]),
    (
        &["--set=extraArgs={--listen=unix:///x}"],
        &["extraArgs: do not set --listen here; use the value socket.hostDirectory"],
    ),
    (&["--set=extraVolumes[0].name=x"], &["'/extraVolumes/0'", "minProperties"]),
    (
        &[
            "--set=extraContainers[0].name=x,extraContainers[0].image=y,extraContainers[0].ports[0].containerPort=1",
        ],
        &["'/extraContainers/0/ports'"],
    ),
    (&["--set=podAnnotations.a=true"], &["'/podAnnotations/a'", "got boolean, want string"]),
    (
        &["--set=podLabels.app\\.kubernetes\\.io/name=x"],
        &["podLabels, commonLabels: the DaemonSet's selector uses app.kubernetes.io/name"],
    ),
    (&["--set=tolerations[0].effect=NoRun"], &["'/tolerations/0/effect'", "'NoExecute'"]),
    (&["--set=affinity.node=x"], &["'/affinity'", "additional properties 'node' not allowed"]),
    (&["--set=updateStrategy.type=Recreate"], &["'/updateStrategy/type'", "'OnDelete', 'RollingUpdate'"]),
    (
        &["--set=livenessProbe.httpGet.port=80"],
        &["'/livenessProbe'", "additional properties 'httpGet' not allowed"],
    ),
    (&["--set=resources.limits.memory=lots"], &["'/resources/limits/memory'", "does not match pattern"]),
    (&["--set=uninstallGuard=false"], &["'/uninstallGuard'", "got boolean, want object"]),
];

#[test]
fn an_invalid_value_is_rejected_with_its_name() {
    let minimal = values("minimal");
    let mut failures = Vec::new();
    for (arguments, words) in INVALID_VALUES {
        for helm in Helm::BOTH {
            let ran = helm.template(&[&["--values", &minimal], *arguments].concat());
            if ran.good || words.iter().any(|words| !ran.stderr.contains(words)) {
                failures.push(format!("{helm:?} {arguments:?} should say {words:?}:\n{}", ran.stderr));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn without_values_the_error_says_that_an_address_is_missing() {
    for helm in Helm::BOTH {
        let ran = helm.template(&[]);
        assert!(!ran.good && ran.stderr.contains("'/vault/addresses': minItems: got 0, want 1"), "{ran:?}");
        assert_eq!(ran.stderr.matches("- at").count(), 2, "more than one error: {}", ran.stderr);
    }
}

/// In Helm, the value `null` removes a key.
#[test]
fn optional_values_can_be_removed() {
    for key in ["affinity", "extraArgs", "nodeSelector", "priorityClassName", "resources", "tolerations"] {
        let null = format!("--set={key}=null");
        Helm::V3.template(&["--values", &values("minimal"), &null]).stdout();
    }
}

/// A chart with subcharts sets `global` values, which the schema must allow.
#[test]
fn the_chart_works_as_a_subchart() {
    let set = ["--values", &values("minimal"), "--set=global.imageRegistry=x"];
    for helm in Helm::BOTH {
        helm.template(&set).stdout();
    }
}

#[test]
fn helm_lint_reports_nothing_for_any_value_set() {
    for set in sets() {
        for helm in Helm::BOTH {
            let arguments = ["lint", "--strict", "--quiet", super::CHART, "--values", &values(&set)];
            let said = helm.run(&arguments).stdout();
            assert_eq!(said.trim(), "", "{helm:?}, {set}, {RELEASE}");
        }
    }
}
