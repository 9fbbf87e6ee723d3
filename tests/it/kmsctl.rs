//! The operator's program, against a real daemon.

use serde_json::Value;
use testkit::{
    TestEnv,
    cli::{Ran, run_kmsctl},
    unix_url,
};

fn json(ran: &Ran) -> Value {
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ran.json()
}

#[tokio::test]
async fn help_and_version_name_the_program() {
    let help = run_kmsctl(&["--help"], "").await;
    assert_eq!(help.code, Some(0), "{help:?}");
    for word in ["plugin", "version", "Exit codes", "transit-kmsctl plugin roundtrip"] {
        assert!(help.stdout.contains(word), "{word}: {}", help.stdout);
    }
    let expected = format!("transit-kmsctl {}\n", env!("CARGO_PKG_VERSION"));
    for arguments in [["version"], ["--version"]] {
        assert_eq!(run_kmsctl(&arguments, "").await.stdout, expected);
    }
    for arguments in [vec![], vec!["plugin"], vec!["plugin", "status", "--socket", "kms.sock"]] {
        assert_eq!(run_kmsctl(&arguments, "").await.code, Some(64), "{arguments:?}");
    }
}

#[tokio::test]
async fn a_plugin_is_checked_as_kube_apiserver_uses_it() {
    let env = TestEnv::start().await;
    let mut daemon = env.daemon([]).await;
    let socket = unix_url(daemon.socket()).into_string().unwrap();
    let at = |command: &'static str| vec!["plugin", command, "--socket", &socket, "-o", "json"];

    let status = json(&run_kmsctl(&at("status"), "").await);
    assert_eq!(
        (&status["plugin"], &status["ok"], &status["healthz"]),
        (&"status".into(), &true.into(), &"ok".into())
    );
    let roundtrip = json(&run_kmsctl(&at("roundtrip"), "").await);
    assert_eq!((&roundtrip["ok"], &roundtrip["key_id"]), (&true.into(), &status["key_id"]));

    let encrypted = run_kmsctl(&[at("encrypt"), vec!["--plaintext", "-"]].concat(), "c2VudGluZWw=\n").await;
    assert_eq!(json(&encrypted)["key_id"], status["key_id"]);
    let decrypt = [at("decrypt"), vec!["--encrypted", "-", "--show-plaintext"]].concat();
    assert_eq!(json(&run_kmsctl(&decrypt, &encrypted.stdout).await)["plaintext"], "c2VudGluZWw=");
    daemon.terminate().await;
    let silent = run_kmsctl(&at("status"), "").await;
    assert_eq!(silent.code, Some(2), "{silent:?}");
    assert!(silent.stderr.contains("does the plugin run"), "{silent:?}");
}
