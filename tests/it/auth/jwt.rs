//! `jwt` with static keys.

use std::{fs, path::Path};

use serde_json::{Value, json};
use testkit::{TestEnv, login};

use super::cases::{Issued, Method, cases};

cases!(Jwt::default());

/// JWTs of one issuer.
#[derive(Default)]
struct Jwt {
    file: Option<login::Jwt>,
}

impl Method for Jwt {
    async fn issue(&mut self, env: &TestEnv, dir: &Path, token: &Value) -> Issued {
        let path = dir.join("jwt");
        match &mut self.file {
            Some(file) => file.renew(),
            None => self.file = Some(login::Jwt::issued(&env.bao, &path, token).await),
        }
        let jwt = fs::read_to_string(&path).unwrap();
        let signature = jwt.rsplit('.').next().unwrap().to_owned();
        let auth = json!({ "method": "jwt", "role": super::cases::ROLE, "jwt_file": path });
        Issued { auth, secrets: vec![jwt, signature] }
    }

    fn spoil(&self, dir: &Path) {
        let path = dir.join("jwt");
        let jwt = fs::read_to_string(&path).unwrap();
        let (signed, _) = jwt.rsplit_once('.').unwrap();
        fs::write(path, format!("{signed}.{}", "A".repeat(86))).unwrap();
    }

    fn name(&self) -> &'static str {
        "jwt"
    }

    fn refusal(&self) -> &'static str {
        "add the issuer's key to the mount"
    }
}
