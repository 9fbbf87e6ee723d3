//! `approle` with a secret_id that is delivered as it is.

use std::{fs, path::Path};

use serde_json::{Value, json};
use testkit::TestEnv;

use super::cases::{Issued, Method, ROLE, cases};

cases!(AppRole::default());

/// Secret_ids of one role.
#[derive(Default)]
struct AppRole {
    made: bool,
}

impl Method for AppRole {
    async fn issue(&mut self, env: &TestEnv, dir: &Path, token: &Value) -> Issued {
        let path = format!("auth/approle/role/{ROLE}");
        if !self.made {
            env.bao.api("POST", &path, token.clone()).await;
            self.made = true;
        }
        let role_id = env.bao.api("GET", &format!("{path}/role-id"), Value::Null).await;
        let secret_id = env.bao.api("POST", &format!("{path}/secret-id"), json!({})).await;
        let secret_id = secret_id["data"]["secret_id"].as_str().unwrap();
        testkit::config_file::by_rename(&dir.join("secret_id"), secret_id);
        let auth = json!({
            "method": "approle", "role_id": role_id["data"]["role_id"], "secret_id_file": dir.join("secret_id"),
            "state_dir": dir.join("state"),
        });
        Issued { auth, secrets: vec![secret_id.to_owned()] }
    }

    fn spoil(&self, dir: &Path) {
        fs::write(dir.join("secret_id"), "00000000-0000-0000-0000-000000000000").unwrap();
    }

    fn name(&self) -> &'static str {
        "approle"
    }

    fn refusal(&self) -> &'static str {
        "deliver a new secret_id"
    }
}
