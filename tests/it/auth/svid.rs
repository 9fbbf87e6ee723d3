//! SVIDs for the methods `jwt`, `cert` and `spiffe`: from the Workload API and from files, and their trust domains.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use serde_json::{Value, json};
use testkit::{
    Caller, Conduct, Daemon, Identity, Load, RELOAD_TIMEOUT, SpiffeAuthMethod, SpiffeAuthOptions, TestEnv,
    WorkloadApiServer, eventually,
};

use super::cases::{Issued, Method, ROLE, cases, token_settings};

const ID: &str = "spiffe://prod.acme.net/kms/node-1";
const FOREIGN: &str = "spiffe://staging.acme.net/kms/node-1";
const AUDIENCE: &str = "vault";
/// Each JWT of the test's authority begins with this header.
const JWT_HEADER: &str = "eyJhbGciOiJFUzI1NiIsImtpZCI6InRyYW5zaXQta21zLXRlc3QiLCJ0eXAiOiJKV1QifQ";
/// Each private key of the test's authority begins with this, as base64 of PKCS #8.
const PRIVATE_KEY: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg";
/// Long enough for a few tokens to be replaced.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(60);

mod jwt {
    super::cases!(super::WithJwt(super::WorkloadApiServer::start("prod.acme.net")));
}

mod cert {
    super::cases!(super::WithCertificate(super::WorkloadApiServer::start("prod.acme.net")));
}

/// JWT-SVIDs of a Workload API.
struct WithJwt(WorkloadApiServer);

/// X.509-SVIDs of a Workload API.
struct WithCertificate(WorkloadApiServer);

impl Method for WithJwt {
    async fn issue(&mut self, env: &TestEnv, _: &Path, token: &Value) -> Issued {
        issue_only(&self.0, identity(ID));
        if !exists(env, &format!("auth/jwt/role/{ROLE}")).await {
            jwt_role(env, &self.0, "jwt", token).await;
        }
        issued(jwt_auth(&self.0))
    }

    fn spoil(&self, _: &Path) {
        issue_only(&self.0, identity(FOREIGN));
    }

    fn name(&self) -> &'static str {
        "jwt"
    }

    fn refusal(&self) -> &'static str {
        "is of the trust domain \"staging.acme.net\", and only \"prod.acme.net\" is allowed"
    }

    fn has_files(&self) -> bool {
        false
    }
}

impl Method for WithCertificate {
    async fn issue(&mut self, env: &TestEnv, _: &Path, token: &Value) -> Issued {
        issue_only(&self.0, identity(ID));
        if !exists(env, &format!("auth/cert/certs/{ROLE}")).await {
            cert_role(env, &self.0, "cert", token).await;
        }
        issued(cert_auth(&self.0))
    }

    fn spoil(&self, _: &Path) {
        issue_only(&self.0, identity(FOREIGN));
    }

    fn name(&self) -> &'static str {
        "cert"
    }

    fn refusal(&self) -> &'static str {
        "is of the trust domain \"staging.acme.net\", and only \"prod.acme.net\" is allowed"
    }

    fn has_files(&self) -> bool {
        false
    }
}

/// An identity whose certificate has a common name, which OpenBao's method `cert` needs.
fn identity(spiffe_id: &str) -> Identity {
    Identity::new(spiffe_id).with_common_name("node-1.acme.net")
}

fn issue_only(spire: &WorkloadApiServer, identity: Identity) {
    spire.unregister_all();
    spire.register(identity);
}

fn issued(auth: Value) -> Issued {
    Issued { auth, secrets: vec![JWT_HEADER.into(), PRIVATE_KEY.into()] }
}

fn jwt_auth(spire: &WorkloadApiServer) -> Value {
    json!({
        "method": "jwt", "role": ROLE, "trust_domains": {"prod.acme.net": "auth/jwt"},
        "workload_api": {"address": spire.address(), "audience": AUDIENCE},
    })
}

fn cert_auth(spire: &WorkloadApiServer) -> Value {
    json!({
        "method": "cert", "role": ROLE, "trust_domains": {"prod.acme.net": "auth/cert"},
        "workload_api": {"address": spire.address()},
    })
}

async fn exists(env: &TestEnv, path: &str) -> bool {
    env.bao.api_as(env.bao.root_token(), "GET", path, Value::Null).await.0 == 200
}

/// A role for the SPIFFE IDs below `/kms/`, at a mount that trusts this authority.
async fn jwt_role(env: &TestEnv, spire: &WorkloadApiServer, mount: &str, token: &Value) {
    if mount != "jwt" {
        env.bao.api("POST", &format!("sys/auth/{mount}"), json!({"type": "jwt"})).await;
    }
    let authority = spire.authority();
    let keys = json!({"jwt_validation_pubkeys": [authority.jwt_public_key_pem()]});
    env.bao.api("POST", &format!("auth/{mount}/config"), keys).await;
    let mut role = token.clone();
    role["bound_audiences"] = json!([AUDIENCE]);
    role["bound_claims"] = json!({"sub": format!("spiffe://{}/kms/*", authority.trust_domain())});
    role["bound_claims_type"] = json!("glob");
    role["role_type"] = json!("jwt");
    role["user_claim"] = json!("sub");
    env.bao.api("POST", &format!("auth/{mount}/role/{ROLE}"), role).await;
}

/// As [`jwt_role`], for certificates.
async fn cert_role(env: &TestEnv, spire: &WorkloadApiServer, mount: &str, token: &Value) {
    env.bao.api("POST", &format!("sys/auth/{mount}"), json!({"type": "cert"})).await;
    let authority = spire.authority();
    let mut role = token.clone();
    role["allowed_uri_sans"] = json!([format!("spiffe://{}/kms/*", authority.trust_domain())]);
    role["certificate"] = json!(authority.ca_pem());
    env.bao.api("POST", &format!("auth/{mount}/certs/{ROLE}"), role).await;
}

/// A server with a role for the SVIDs of a Workload API, and a config with `auth`.
async fn env_with(spire: &WorkloadApiServer, auth: Value, token: &Value) -> TestEnv {
    let mut env = TestEnv::without_file().await;
    match auth["method"].as_str().unwrap() {
        "cert" => cert_role(&env, spire, "cert", token).await,
        _ => jwt_role(&env, spire, "jwt", token).await,
    }
    env.render_auth(auth);
    env
}

fn long() -> Value {
    token_settings("1h", "2h")
}

/// The paths of the logins that reached the server.
fn logins(env: &TestEnv) -> Vec<String> {
    let paths = env.bao.audit_log().into_iter().filter(|entry| entry["type"] == "request");
    let paths = paths.filter_map(|entry| entry["request"]["path"].as_str().map(str::to_owned));
    paths.filter(|path| path.starts_with("auth/") && path.ends_with("/login")).collect()
}

/// The number of logins with this result, of any method.
async fn logins_with(daemon: &Daemon, result: &str) -> f64 {
    daemon.metric("transit_kms_logins_total", &[("result", result)]).await
}

async fn wait_explained(daemon: &Daemon, words: &str) {
    eventually(&format!("/readyz says {words:?}"), RELOAD_TIMEOUT, async || {
        let (status, said) = daemon.admin("/readyz").await;
        if status == 503 && said.contains(words) { Ok(()) } else { Err(said) }
    })
    .await;
}

#[tokio::test]
async fn svids_rotate_under_load_without_a_failed_call() {
    let spire = WorkloadApiServer::start("prod.acme.net");
    spire.register(identity(ID));
    let env = env_with(&spire, cert_auth(&spire), &token_settings("6s", "12s")).await;
    let (daemon, _) = env.ready([]).await;
    let load = Load::start(&daemon, 1, Duration::from_millis(20)).await;
    for count in [2.0, 3.0] {
        spire.rotate();
        eventually("the next login", REPLACE_TIMEOUT, async || logins_with(&daemon, "ok").await >= count)
            .await;
    }
    daemon.wait_generation(3).await;
    load.stop().await.assert_nothing_failed();
    let log = env.bao.audit_log();
    let serials: BTreeSet<_> =
        log.iter().filter_map(|entry| entry["auth"]["metadata"]["serial_number"].as_str()).collect();
    assert!(serials.len() >= 3, "{serials:?}");
}

#[tokio::test]
async fn an_unusable_workload_api_is_explained_and_waited_for() {
    let mut spire = WorkloadApiServer::start("prod.acme.net");
    spire.register(identity(ID));
    let env = env_with(&spire, jwt_auth(&spire), &long()).await;
    spire.stop();
    let daemon = env.daemon(["--log-level", "trace"]).await;
    wait_explained(&daemon, "no Workload API is reachable at unix://").await;
    spire.conduct(Conduct::Hang);
    spire.restart();
    wait_explained(&daemon, "did not answer within 5 s").await;
    assert!(logins_with(&daemon, "away").await >= 2.0);
    assert_eq!(logins_with(&daemon, "blocked").await, 0.0);
    spire.conduct(Conduct::Refuse("not for this user"));
    wait_explained(&daemon, "refuses the call: not for this user").await;
    assert!(logins_with(&daemon, "blocked").await >= 1.0);
    assert_eq!(logins(&env), [""; 0]);
    spire.conduct(Conduct::Serve);
    daemon.wait_ready_within(REPLACE_TIMEOUT).await;
    Caller::of(&daemon).await.round_trip().await;
    daemon.assert_never_printed(&[JWT_HEADER]);
}

#[tokio::test]
async fn a_session_outlives_the_workload_api() {
    let mut spire = WorkloadApiServer::start("prod.acme.net");
    spire.register(identity(ID));
    let env = env_with(&spire, cert_auth(&spire), &token_settings("6s", "12s")).await;
    let (daemon, caller) = env.ready([]).await;
    spire.stop();
    eventually("a login that fails", REPLACE_TIMEOUT, async || logins_with(&daemon, "away").await >= 1.0)
        .await;
    caller.round_trip().await;
    spire.restart();
    eventually("the next login", REPLACE_TIMEOUT, async || logins_with(&daemon, "ok").await >= 2.0).await;
    caller.wait_ok(RELOAD_TIMEOUT).await;
    caller.round_trip().await;
}

#[tokio::test]
async fn an_expired_svid_is_explained_and_the_next_one_is_used() {
    let spire = WorkloadApiServer::start("prod.acme.net");
    spire.register(identity(ID).with_lifetime(Duration::ZERO));
    let env = env_with(&spire, jwt_auth(&spire), &long()).await;
    // OpenBao accepts a JWT for 150 s longer if the role does not say otherwise.
    let role = format!("auth/jwt/role/{ROLE}");
    let mut settings = env.bao.api("GET", &role, Value::Null).await["data"].take();
    settings["expiration_leeway"] = json!(-1);
    settings["clock_skew_leeway"] = json!(-1);
    env.bao.api("POST", &role, settings).await;
    let daemon = env.daemon([]).await;
    wait_explained(&daemon, "the JWT has expired").await;
    // The next attempt fetches another one, so this is no refusal of the only credential.
    assert!(logins_with(&daemon, "blocked").await >= 1.0);
    assert_eq!(logins_with(&daemon, "refused").await, 0.0);
    issue_only(&spire, identity(ID));
    daemon.wait_ready_within(REPLACE_TIMEOUT).await;
}

#[tokio::test]
async fn only_the_configured_svid_is_used() {
    let spire = WorkloadApiServer::start("prod.acme.net");
    spire.register(identity("spiffe://prod.acme.net/web/shop"));
    let mut auth = jwt_auth(&spire);
    auth["workload_api"]["spiffe_id"] = json!(ID);
    let env = env_with(&spire, auth, &long()).await;
    let daemon = env.daemon([]).await;
    wait_explained(&daemon, &format!("issues no SVID with the SPIFFE ID {ID} to this process")).await;
    assert_eq!(logins(&env), [""; 0]);
    spire.register(identity(ID));
    daemon.wait_ready_within(REPLACE_TIMEOUT).await;
    // The glob of the role does not match the first one.
    let auth = jwt_auth(&spire);
    let mut env = env;
    env.render_auth(auth);
    let other = env.daemon([]).await;
    wait_explained(&other, "does not match bound_subject or bound_claims of the role").await;
}

#[tokio::test]
async fn the_trust_domain_chooses_the_mount_and_a_foreign_one_is_not_sent() {
    let (prod, dev) = (WorkloadApiServer::of(ID), WorkloadApiServer::of("spiffe://dev.acme.net/kms/node-1"));
    let mut env = TestEnv::without_file().await;
    for (spire, mount) in [(&prod, "jwt-prod"), (&dev, "jwt-dev")] {
        jwt_role(&env, spire, mount, &long()).await;
    }
    let domains = json!({"prod.acme.net": "auth/jwt-prod", "dev.acme.net": "jwt-dev"});
    for (spire, mount) in [(&prod, "jwt-prod"), (&dev, "jwt-dev")] {
        let mut auth = jwt_auth(spire);
        auth["trust_domains"] = domains.clone();
        env.render_auth(auth);
        let before = logins(&env).len();
        let (_daemon, caller) = env.ready([]).await;
        caller.round_trip().await;
        assert_eq!(logins(&env)[before..], [format!("auth/{mount}/login")]);
    }
    // The two domains have each other's mount, so the server does not know the key.
    let mut auth = jwt_auth(&dev);
    auth["trust_domains"] = json!({"dev.acme.net": "jwt-prod"});
    env.render_auth(auth);
    let daemon = env.daemon([]).await;
    wait_explained(&daemon, "Vault knows no key that has signed the JWT").await;
    drop(daemon);

    // From files. Nothing reaches the server.
    let before = logins(&env).len();
    let dir = env.dir().to_owned();
    let svid = dev.authority().x509_svid(&identity("spiffe://dev.acme.net/kms/node-1"));
    let jwt = dev.authority().jwt_svid(&identity("spiffe://dev.acme.net/kms/node-1"), &[AUDIENCE.into()]);
    for (name, content) in [("jwt", &jwt), ("cert", &svid.certificate_pem), ("key", &svid.key_pem)] {
        fs::write(dir.join(name), content).unwrap();
    }
    let only_prod = json!({"prod.acme.net": "auth/jwt-prod"});
    for auth in [
        json!({"method": "jwt", "role": ROLE, "jwt_file": dir.join("jwt"), "trust_domains": only_prod}),
        json!({
            "method": "cert", "cert_file": dir.join("cert"), "key_file": dir.join("key"),
            "trust_domains": only_prod,
        }),
    ] {
        env.render_auth(auth);
        let daemon = env.daemon([]).await;
        wait_explained(&daemon, "is of the trust domain \"dev.acme.net\", and only \"prod.acme.net\"").await;
        let (_, said) = daemon.admin("/readyz").await;
        assert_eq!(said.trim().lines().count(), 1, "{said}");
        assert!(logins_with(&daemon, "blocked").await >= 1.0);
        daemon.assert_never_printed(&[&jwt, JWT_HEADER, PRIVATE_KEY]);
    }
    assert_eq!(logins(&env).len(), before);
    // The same file with the domain that it belongs to.
    let domains = json!({"dev.acme.net": "auth/jwt-dev"});
    env.render_auth(
        json!({"method": "jwt", "role": ROLE, "jwt_file": dir.join("jwt"), "trust_domains": domains}),
    );
    env.ready([]).await.1.round_trip().await;
}

#[tokio::test]
async fn an_svid_without_a_common_name_is_explained() {
    let spire = WorkloadApiServer::of(ID);
    let env = env_with(&spire, cert_auth(&spire), &long()).await;
    let daemon = env.daemon([]).await;
    wait_explained(&daemon, "the certificate has no common name").await;
    let (_, said) = daemon.admin("/readyz").await;
    assert_eq!(said.trim().lines().count(), 1, "{said}");
    issue_only(&spire, identity(ID));
    daemon.wait_ready_within(REPLACE_TIMEOUT).await;
}

/// Against the stand-in for the method of Vault Enterprise, which no open source server has.
#[tokio::test]
async fn the_method_spiffe_presents_either_svid() {
    let spire = WorkloadApiServer::of(ID);
    let mut env = TestEnv::without_file().await;
    let token = json!({"explicit_max_ttl": "12s", "ttl": "6s"});
    let options = || SpiffeAuthOptions { token: token.clone(), ..SpiffeAuthOptions::default() };
    let vault = SpiffeAuthMethod::in_front_of(&env.bao, spire.authority(), options()).await;
    env.rendered.addresses = vec![vault.address()];
    let api = |audience: Option<&str>| json!({"address": spire.address(), "audience": audience});
    for (svid, workload_api) in [("jwt", api(Some(AUDIENCE))), ("x509", json!({"address": spire.address()}))]
    {
        env.render_auth(json!({
            "method": "spiffe", "svid": svid, "role": ROLE, "trust_domains": {"prod.acme.net": "spiffe"},
            "workload_api": workload_api,
        }));
        let before = vault.logins().len();
        let (daemon, _) = env.ready(["--log-level", "trace"]).await;
        let load = Load::start(&daemon, 1, Duration::from_millis(20)).await;
        spire.rotate();
        eventually("another login", REPLACE_TIMEOUT, async || vault.logins().len() >= before + 2).await;
        daemon.wait_generation(2).await;
        load.stop().await.assert_nothing_failed();
        assert!(vault.logins().iter().all(|id| id == ID));
        daemon.assert_never_printed(&[JWT_HEADER, PRIVATE_KEY]);
    }
    let options = SpiffeAuthOptions { passthrough: false, ..options() };
    let vault = SpiffeAuthMethod::in_front_of(&env.bao, spire.authority(), options).await;
    env.rendered.addresses = vec![vault.address()];
    env.render_auth(json!({
        "method": "spiffe", "svid": "jwt", "role": ROLE, "workload_api": api(Some(AUDIENCE)),
    }));
    let daemon = env.daemon([]).await;
    wait_explained(&daemon, "check passthrough_request_headers").await;
}
