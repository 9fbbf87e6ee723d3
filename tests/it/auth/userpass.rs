//! `userpass`.

use std::{fs, path::Path};

use serde_json::{Value, json};
use testkit::TestEnv;

use super::cases::{Issued, Method, cases};

cases!(Userpass::default());

/// Passwords of one user.
#[derive(Default)]
struct Userpass {
    made: bool,
}

impl Method for Userpass {
    async fn issue(&mut self, env: &TestEnv, dir: &Path, token: &Value) -> Issued {
        if !self.made {
            env.bao.api("POST", "sys/auth/userpass", json!({ "type": "userpass" })).await;
            self.made = true;
        }
        let password = format!("{:032x}", rand::random::<u128>());
        let mut user = token.clone();
        user["password"] = json!(password);
        env.bao.api("POST", "auth/userpass/users/node-1", user).await;
        testkit::config_file::by_rename(&dir.join("password"), &password);
        let auth =
            json!({ "method": "userpass", "username": "node-1", "password_file": dir.join("password") });
        Issued { auth, secrets: vec![password] }
    }

    fn spoil(&self, dir: &Path) {
        fs::write(dir.join("password"), "wrong").unwrap();
    }

    fn name(&self) -> &'static str {
        "userpass"
    }

    fn refusal(&self) -> &'static str {
        "correct vault.auth.username or the password"
    }
}
