//! What Vault says to the SVIDs of a Workload API, without the daemon, and the names in its config.

use reqwest::{Certificate, Client, Identity as ClientIdentity};
use serde_json::{Value, json};
use testkit::{
    Bao, Identity, IssuedCertificate, KEY, MOUNT, POLICY, SpiffeAuthMethod, SpiffeAuthOptions,
    WorkloadApiServer, http, login,
};
use transit_kms::config::settings::auth::{SpiffeId, TrustDomainName};

const ID: &str = "spiffe://prod.acme.net/kms/node-1";
const OTHER: &str = "spiffe://prod.acme.net/web/shop";

#[tokio::test]
async fn a_jwt_role_takes_jwt_svids_by_audience_and_spiffe_id() {
    let bao = Bao::start().await;
    let spire = WorkloadApiServer::of(ID);
    let keys = json!({"jwt_validation_pubkeys": [spire.authority().jwt_public_key_pem()]});
    bao.api("POST", "auth/jwt/config", keys).await;
    let role = login::role(&json!({
        "bound_audiences": ["vault"],
        "bound_claims": {"sub": "spiffe://prod.acme.net/kms/*"},
        "bound_claims_type": "glob",
        "role_type": "jwt",
        "user_claim": "sub",
    }));
    bao.api("POST", "auth/jwt/role/transit-kms", role).await;
    let log_in = async |id: &str, audience: &str| {
        let jwt = spire.authority().jwt_svid(&Identity::new(id), &[audience.into()]);
        bao.api_as("", "POST", "auth/jwt/login", json!({"role": "transit-kms", "jwt": jwt})).await
    };
    let (status, answer) = log_in(ID, "vault").await;
    assert_eq!((status, &answer["auth"]["policies"]), (200, &json!([POLICY])), "{answer}");
    refused(log_in(ID, "other").await, 400, "invalid audience (aud) claim: audience claim does not match");
    refused(
        log_in(OTHER, "vault").await,
        400,
        "claim \"sub\" does not match any associated bound claim values",
    );
}

#[tokio::test]
async fn a_certificate_role_takes_x509_svids_with_a_common_name() {
    let bao = Bao::start().await;
    let spire = WorkloadApiServer::of(ID);
    bao.api("POST", "sys/auth/cert", json!({"type": "cert"})).await;
    let role = login::role(&json!({
        "allowed_uri_sans": ["spiffe://prod.acme.net/kms/*"],
        "certificate": spire.authority().ca_pem(),
    }));
    bao.api("POST", "auth/cert/certs/transit-kms", role).await;
    let issue = |identity: &Identity| spire.authority().x509_svid(identity);
    let log_in = async |svid: &IssuedCertificate| {
        let client = client(&bao, Some(svid));
        post(&client, &bao.address(), "auth/cert/login", "", json!({"name": "transit-kms"})).await
    };
    let named = Identity::new(ID).with_common_name("node-1.acme.net");
    let first = issue(&named);
    let (status, answer) = log_in(&first).await;
    assert_eq!((status, &answer["auth"]["policies"]), (200, &json!([POLICY])), "{answer}");
    // SPIRE sets no common name if the registration entry has no DNS name.
    refused(log_in(&issue(&Identity::new(ID))).await, 500, "missing name in alias");
    let other = Identity::new(OTHER).with_common_name("shop.acme.net");
    refused(
        log_in(&issue(&other)).await,
        400,
        "no chain matching all constraints could be found for this login certificate",
    );
    // The token is bound to the certificate.
    let token = answer["auth"]["client_token"].as_str().unwrap();
    let renew = async |svid: &IssuedCertificate| {
        post(&client(&bao, Some(svid)), &bao.address(), "auth/token/renew-self", token, json!({})).await
    };
    assert_eq!(renew(&first).await.0, 200);
    refused(renew(&issue(&named)).await, 500, "client identity during renewal not matching client identity");
}

#[tokio::test]
async fn the_stand_in_of_auth_spiffe_checks_what_the_documentation_says() {
    let bao = Bao::start().await;
    let spire = WorkloadApiServer::of(ID);
    let vault = SpiffeAuthMethod::in_front_of(&bao, spire.authority(), SpiffeAuthOptions::default()).await;
    let identity = Identity::new(ID);
    let jwt = |audience: &str| spire.authority().jwt_svid(&identity, &[audience.into()]);
    let plain = client(&bao, None);
    let log_in = async |vault: &SpiffeAuthMethod, client: &Client, jwt: Option<&str>, body: Value| {
        let mut request =
            client.post(format!("{}/v1/auth/spiffe/login", vault.address())).body(body.to_string());
        if let Some(jwt) = jwt {
            request = request.bearer_auth(jwt);
        }
        answered(request).await
    };
    let by_jwt = json!({"role": "transit-kms", "type": "jwt"});
    let (status, answer) = log_in(&vault, &plain, Some(&jwt("vault")), by_jwt.clone()).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["auth"]["metadata"]["spiffe_id"], ID);
    // The token is one of the real server, and other requests reach that server.
    let token = answer["auth"]["client_token"].as_str().unwrap();
    let encrypt = format!("{MOUNT}/encrypt/{KEY}");
    let (status, answer) =
        post(&plain, &vault.address(), &encrypt, token, json!({"plaintext": "AAAA"})).await;
    assert_eq!(status, 200, "{answer}");
    let certificate = client(&bao, Some(&spire.authority().x509_svid(&identity)));
    for kind in ["cert", "auto"] {
        let (status, answer) = log_in(&vault, &certificate, None, json!({"type": kind})).await;
        assert_eq!(status, 200, "{answer}");
    }
    assert_eq!(vault.logins(), [ID, ID, ID]);

    let other = spire.authority().jwt_svid(&Identity::new(OTHER), &["vault".into()]);
    let foreign = WorkloadApiServer::of(ID);
    let forged = foreign.authority().jwt_svid(&identity, &["vault".into()]);
    let expired = Identity::new(ID).with_lifetime(std::time::Duration::ZERO);
    let expired = spire.authority().jwt_svid(&expired, &["vault".into()]);
    for jwt in [&jwt("other"), &other, &forged, &expired] {
        refused(log_in(&vault, &plain, Some(jwt), by_jwt.clone()).await, 403, "permission denied");
    }
    let unknown = json!({"role": "other", "type": "jwt"});
    refused(log_in(&vault, &plain, Some(&jwt("vault")), unknown).await, 403, "permission denied");
    let by_certificate = json!({"type": "cert"});
    refused(
        log_in(&vault, &plain, Some(&jwt("vault")), by_certificate.clone()).await,
        403,
        "permission denied",
    );
    let forged = client(&bao, Some(&foreign.authority().x509_svid(&identity)));
    refused(log_in(&vault, &forged, None, by_certificate).await, 403, "permission denied");
    // Without the setting of the mount, the JWT does not reach the auth method.
    let options = SpiffeAuthOptions { passthrough: false, ..SpiffeAuthOptions::default() };
    let vault = SpiffeAuthMethod::in_front_of(&bao, spire.authority(), options).await;
    refused(log_in(&vault, &plain, Some(&jwt("vault")), by_jwt).await, 403, "permission denied");
}

/// The config checks names itself, because it is also read by a program without the feature `spiffe`.
#[test]
fn the_config_accepts_only_names_that_the_spiffe_crate_accepts() {
    let long = |length| "a".repeat(length);
    let domains =
        ["prod.acme.net", "a", "a-b_c.1", "", "a/b", "a:1", "ä", "a b", "spiffe://a/b", "..", "%41"];
    for domain in domains.into_iter().map(str::to_owned).chain([long(255), long(256)]) {
        let in_config = TrustDomainName::new(&domain);
        let in_crate = spiffe_identity::TrustDomain::new(&domain);
        // The crate also takes the trust domain of a whole SPIFFE ID.
        assert_eq!(in_config.is_ok(), in_crate.is_ok() && !domain.contains('/'), "{domain}");
        if let (Ok(in_config), Ok(in_crate)) = (in_config, in_crate) {
            assert_eq!(in_config.as_str(), in_crate.as_str());
        }
    }
    let paths = [
        "/kms/node-1",
        "/a",
        "/A_b.c-1",
        "",
        "/",
        "/a/",
        "//a",
        "/.",
        "/a/../b",
        "/%41",
        "/a?b",
        "/a#b",
        "/ä",
    ];
    for path in paths {
        let id = format!("spiffe://prod.acme.net{path}");
        let (in_config, in_crate) = (SpiffeId::new(&id), spiffe_identity::SpiffeId::new(&id));
        // An SVID of a workload has a path.
        assert_eq!(in_config.is_ok(), in_crate.is_ok() && !path.is_empty(), "{id}");
        if let (Ok(in_config), Ok(in_crate)) = (in_config, in_crate) {
            assert_eq!(in_config.as_str(), in_crate.to_string());
            assert_eq!(in_config.trust_domain().as_str(), in_crate.trust_domain_name());
        }
    }
    // The config has one spelling of each name.
    SpiffeId::new("spiffe://Prod.acme.net/a").unwrap_err();
    TrustDomainName::new("Prod.acme.net").unwrap_err();
}

/// A client of `bao` with this certificate.
fn client(bao: &Bao, svid: Option<&IssuedCertificate>) -> Client {
    let ca = Certificate::from_pem(&std::fs::read(bao.ca_file()).unwrap()).unwrap();
    let mut client = http::client().tls_certs_only([ca]);
    if let Some(svid) = svid {
        let pem = format!("{}{}", svid.key_pem, svid.certificate_pem);
        client = client.identity(ClientIdentity::from_pem(pem.as_bytes()).unwrap());
    }
    client.build().unwrap()
}

async fn post(client: &Client, address: &str, path: &str, token: &str, body: Value) -> (u16, Value) {
    let request = client.post(format!("{address}/v1/{path}")).header("X-Vault-Token", token);
    answered(request.body(body.to_string())).await
}

async fn answered(request: reqwest::RequestBuilder) -> (u16, Value) {
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap())
}

#[track_caller]
fn refused((status, answer): (u16, Value), expected: u16, words: &str) {
    assert_eq!(status, expected, "{answer}");
    assert!(answer["errors"].to_string().contains(&words.replace('"', "\\\"")), "no {words:?} in: {answer}");
}
