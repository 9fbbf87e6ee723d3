//! `cert` with a certificate of an authority of the operator.

use std::{fs, path::Path};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, SanType};
use serde_json::{Value, json};
use testkit::{TestEnv, authority::Authority};

use super::cases::{Issued, Method, ROLE, cases};

cases!(Cert::default());

const SPIFFE_ID: &str = "spiffe://prod.acme.net/transit-kms";

/// Certificates of one authority.
#[derive(Default)]
struct Cert {
    authority: Option<Authority>,
    issued: usize,
}

impl Method for Cert {
    async fn issue(&mut self, env: &TestEnv, dir: &Path, token: &Value) -> Issued {
        if self.authority.is_none() {
            fs::create_dir(dir.join("pki")).unwrap();
            let authority = Authority::new(&dir.join("pki"));
            env.bao.api("POST", "sys/auth/cert", json!({ "type": "cert" })).await;
            let mut role = token.clone();
            role["certificate"] = json!(authority.pem());
            role["allowed_uri_sans"] = json!([SPIFFE_ID]);
            env.bao.api("POST", &format!("auth/cert/certs/{ROLE}"), role).await;
            self.authority = Some(authority);
        }
        self.issued += 1;
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![SanType::URI(SPIFFE_ID.try_into().unwrap())];
        let authority = self.authority.as_ref().unwrap();
        let (chain, key) = authority.issue(&format!("node-1-{}", self.issued), params);
        // The key first: a certificate with the key before it is refused, and read again.
        let key = fs::read_to_string(key).unwrap();
        testkit::config_file::by_rename(&dir.join("key.pem"), &key);
        testkit::config_file::by_rename(&dir.join("cert.pem"), &fs::read_to_string(chain).unwrap());
        let auth = json!({
            "method": "cert", "role": ROLE, "cert_file": dir.join("cert.pem"), "key_file": dir.join("key.pem"),
        });
        let secrets = key.lines().filter(|line| !line.starts_with("-----")).map(str::to_owned).collect();
        Issued { auth, secrets }
    }

    fn spoil(&self, dir: &Path) {
        fs::create_dir(dir.join("foreign")).unwrap();
        let foreign = Authority::new(&dir.join("foreign"));
        let (chain, key) = foreign.client("node-1");
        fs::copy(key, dir.join("key.pem")).unwrap();
        fs::copy(chain, dir.join("cert.pem")).unwrap();
    }

    fn name(&self) -> &'static str {
        "cert"
    }

    fn refusal(&self) -> &'static str {
        "no certificate role matches the certificate"
    }
}
