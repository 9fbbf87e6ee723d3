//! Runs the commands of docs/auth against a real server, as written.

use std::{fs, os::unix::fs::symlink};

use tempfile::TempDir;
use testkit::{Bao, command, temp_dir};

use super::{blocks, root};

/// What another system provides on the pages: keys, a CA and JWTs.
const INPUTS: &str = r#"
openssl genrsa -out issuer-key.pem 2048 2>/dev/null
openssl rsa -in issuer-key.pem -pubout -out issuer.pem 2>/dev/null
cp issuer.pem sa.pub
cp "$VAULT_CACERT" bundle.pem
cp "$VAULT_CACERT" api-server-ca.pem
base64url() { openssl base64 -A | tr '+/' '-_' | tr -d '='; }
jwt_of() {
    local now signed
    now=$(date +%s)
    signed=$(printf '{"alg":"RS256"}' | base64url).$(printf '{"sub":"%s","aud":"vault","iat":%d,"exp":%d}' \
        "$1" "$now" $((now + 600)) | base64url)
    printf '%s.%s' "$signed" "$(printf %s "$signed" | openssl dgst -sha256 -sign issuer-key.pem -binary | base64url)"
}
jwt_of spiffe://prod.acme.net/transit-kms/cp1 >jwt
jwt_of another >reviewer.jwt
"#;
/// Reports each command that fails.
const REPORT: &str = "trap 'echo \"FAILED: $BASH_COMMAND\"' ERR\n";

/// A server with the key and the policy of docs/install.md, and a directory to run commands in.
struct Workplace {
    bao: Bao,
    dir: TempDir,
}

impl Workplace {
    async fn new() -> Self {
        let place = Self { bao: Bao::start().await, dir: temp_dir("auth-") };
        symlink(Bao::program(), place.dir.path().join("vault")).unwrap();
        place
    }

    /// Runs these blocks of shell after the preparations that the pages require. Returns the output, and the commands
    /// that failed, except for the mounts that already exist.
    async fn run(&self, blocks: &[String]) -> (String, Vec<String>) {
        let install = section("docs/install.md", "## 1. Vault").swap_remove(0);
        let (policy, _) = install.split_once("vault auth enable").unwrap();
        let prepared =
            [policy.to_owned(), INPUTS.to_owned(), section("docs/auth/README.md", "## In Vault").concat()];
        // The address of the test's client.
        let script = [&prepared[..], &[REPORT.to_owned()], blocks]
            .concat()
            .join("\n")
            .replace("10.0.0.11", "127.0.0.1");
        let path = format!("{}:{}", self.dir.path().display(), std::env::var("PATH").unwrap());
        let mut shell = command("bash");
        shell.args(["-c", &format!("exec 2>&1\n{script}")]).current_dir(self.dir.path());
        shell.env("PATH", path).env("HOME", self.dir.path());
        shell.env("VAULT_ADDR", self.bao.address()).env("VAULT_CACERT", self.bao.ca_file());
        shell.env("VAULT_TOKEN", self.bao.root_token());
        let output = tokio::process::Command::from(shell).output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let failed = said.lines().filter_map(|line| line.strip_prefix("FAILED: "));
        let failed = failed.filter(|line| !line.contains(" enable ")).map(str::to_owned).collect();
        (said, failed)
    }
}

/// The shell blocks of a page.
fn shell(page: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(page)).unwrap();
    blocks(&text).into_iter().filter(|block| block.info == "sh").map(|block| block.text).collect()
}

/// The shell blocks of a section.
fn section(page: &str, heading: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(page)).unwrap();
    let (_, rest) = text.split_once(&format!("\n{heading}\n")).unwrap();
    let section = rest.split("\n## ").next().unwrap();
    blocks(section).into_iter().filter(|block| block.info == "sh").map(|block| block.text).collect()
}

/// Each page: the commands that must fail, the words in the output, and the mount and alias of its node, if it has a
/// login by hand.
#[tokio::test]
async fn logins_are_set_up_as_written_and_a_node_is_cut_off() {
    let read = "VAULT_TOKEN=$T vault read -field=latest_version transit/keys/kms-east";
    for (page, words, login) in [
        (
            "approle",
            &["[\"transit-kms-east\"]"][..],
            Some((
                "vault write -field=token auth/approle/login role_id=@role_id secret_id=@secret_id",
                "approle \"$(cat role_id)\"",
            )),
        ),
        (
            "cert",
            &["token_meta_cert_name"],
            Some((
                "vault login -method=cert -token-only -client-cert=client.pem -client-key=client-key.pem",
                "cert cp1.east.example.com",
            )),
        ),
        (
            "jwt",
            &["token_meta_role      transit-kms-east-cp1", "name    prod.acme.net"],
            Some((
                "vault write -field=token auth/jwt-prod/login role=transit-kms-east jwt=@jwt",
                "jwt-prod spiffe://prod.acme.net/transit-kms/cp1",
            )),
        ),
        ("kubernetes", &["auth/kubernetes/role/transit-kms-east"], None),
        (
            "userpass",
            &["token_meta_username", "[\"transit-kms-east\"]"],
            Some((
                "vault write -field=token auth/userpass/login/transit-kms-east-cp1 password=@password",
                "userpass transit-kms-east-cp1",
            )),
        ),
    ] {
        let place = Workplace::new().await;
        let mut script = shell(&format!("docs/auth/{page}.md"));
        if let Some((login, alias)) = login {
            let cut = script.iter().position(|block| block.contains("vault delete ")).unwrap_or(script.len());
            script.insert(cut, format!("T=$({login})\n{read}\ncut_off {alias}\n{read}\n{login}\n"));
        }
        let (said, failed) = place.run(&script).await;
        let expected: Vec<String> =
            login.iter().flat_map(|(login, _)| [read.to_owned(), (*login).to_owned()]).collect();
        assert_eq!(failed, expected, "{page}: {said}");
        assert!(words.iter().all(|words| said.contains(words)), "{page}: {words:?} in {said}");
    }
}

#[tokio::test]
async fn a_broker_creates_only_wrapped_tokens_of_its_role() {
    let place = Workplace::new().await;
    let mut script = shell("docs/auth/token_file.md");
    script.push("cut_off token transit-kms-east-cp1\n".into());
    let (said, failed) = place.run(&script).await;
    let unwrapped = "VAULT_TOKEN=$BROKER_TOKEN vault write -f auth/token/create/transit-kms-$CLUSTER";
    let root = "VAULT_TOKEN=$BROKER_TOKEN vault write -wrap-ttl=5m auth/token/create/transit-kms-$CLUSTER policies=root";
    assert_eq!(failed, [unwrapped, root], "{said}");
    assert!(said.contains("policies            [transit-kms-east]"), "{said}");
    assert!(said.contains("Success! Data written to: identity/entity/id/"), "{said}");
}

#[tokio::test]
async fn openbao_answers_a_request_with_inline_authentication() {
    let place = Workplace::new().await;
    let script = [section("docs/auth/approle.md", "## In Vault"), shell("docs/auth/inline.md")].concat();
    let (said, failed) = place.run(&script).await;
    assert_eq!(failed, [""; 0], "{said}");
    assert!(said.contains("\"latest_version\":1"), "{said}");
}

/// Runs the agent's configuration of docs/auth/agent.md, in both modes, and the requests of its check.
#[tokio::test]
async fn an_agent_adds_its_token_to_requests_with_the_header_only() {
    let text = fs::read_to_string(root().join("docs/auth/agent.md")).unwrap();
    let hcl = blocks(&text).into_iter().find(|block| block.info == "hcl").unwrap().text;
    let check = section("docs/auth/agent.md", "## Check").concat();
    for mode in ["proxy", "agent"] {
        let place = Workplace::new().await;
        let here = place.dir.path().display().to_string();
        let local = |text: &str| {
            text.replace("https://vault.example.com:8200", &place.bao.address())
                .replace("/etc/transit-kms/ca/ca.pem", &place.bao.ca_file().display().to_string())
                .replace("/etc/transit-kms", &here)
                .replace("/run/transit-kms-agent", &here)
        };
        fs::write(place.dir.path().join("agent.hcl"), local(&hcl)).unwrap();
        let run = format!(
            "env -u VAULT_TOKEN ./vault {mode} -config=agent.hcl >agent.log 2>&1 &\n\
             for _ in $(seq 100); do test -S agent.sock && grep -q 'renewed auth token' agent.log && break; sleep 0.1; done"
        );
        let script =
            [section("docs/auth/approle.md", "## In Vault"), vec![run, local(&check), "kill %1\n".into()]];
        let (said, failed) = place.run(&script.concat()).await;
        assert_eq!(failed, [""; 0], "{mode}: {said}");
        assert!(said.contains("\"latest_version\":1"), "{mode}: {said}");
        assert!(said.contains(r#"missing \"X-Vault-Request\" header"#), "{mode}: {said}");
    }
}
