//! Sealed payloads: `transit-kms keygen`, `transit-kmsctl seal`, and openssl in both directions.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use sealed_payload::NodeKey;
use tempfile::TempDir;
use testkit::{
    cli::{Ran, run, run_kmsctl},
    command, repository, temp_dir,
};
use tokio::task::JoinSet;

const CONTENT: &str = "d1f5e0a7-secret-id";
/// `EX_USAGE`.
const USAGE: Option<i32> = Some(64);
/// `EX_OSERR`.
const SYSTEM: Option<i32> = Some(71);
/// `EX_CANTCREAT`.
const CANNOT_CREATE: Option<i32> = Some(73);

/// A folder with the key of a node in `node-key.pem` and its public key in `node.pub`.
struct Node(TempDir);

impl Node {
    async fn with_key() -> Self {
        let node = Self(temp_dir("sealed-"));
        let ran = run(&["keygen", "--out", &node.path("node-key.pem")]).await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        fs::write(node.path("node.pub"), ran.stdout).unwrap();
        node
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn key(&self) -> NodeKey {
        NodeKey::from_pem(&fs::read(self.path("node-key.pem")).unwrap()).unwrap()
    }

    fn opened(&self, payload: &[u8]) -> String {
        String::from_utf8(self.key().open(payload).unwrap().to_vec()).unwrap()
    }

    /// Runs these commands in the folder. openssl 3.0 or newer must be installed.
    fn shell(&self, script: &str) -> String {
        let output = command("bash").args(["-ec", script]).current_dir(&self.0).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    async fn seal(&self, more: &[&str], input: &str) -> Ran {
        let to = self.path("node.pub");
        run_kmsctl(&[&["seal", "--to", &to], more].concat(), input).await
    }
}

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

/// The names of the files in a folder.
fn names(folder: &Path) -> Vec<String> {
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| name(entry.unwrap())).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_key_is_made_once() {
    let node = Node::with_key().await;
    let public = fs::read_to_string(node.path("node.pub")).unwrap();
    let private = fs::read(node.path("node-key.pem")).unwrap();
    assert_eq!(mode(node.path("node-key.pem")), 0o600);
    assert_eq!(node.key().public_key().to_pem(), public);
    assert_eq!(names(node.0.path()), ["node-key.pem", "node.pub"]);

    let again = run(&["keygen", "--out", &node.path("node-key.pem")]).await;
    assert_eq!((again.code, again.stdout.as_str()), (Some(0), public.as_str()), "{again:?}");
    assert!(again.stderr.contains("was not changed"), "{again:?}");
    assert_eq!(fs::read(node.path("node-key.pem")).unwrap(), private);

    fs::set_permissions(node.path("node-key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    let open = run(&["keygen", "--out", &node.path("node-key.pem")]).await;
    assert_eq!(open.code, Some(0), "{open:?}");
    assert!(open.stderr.contains("can be read by all users (mode 0644)"), "{open:?}");
}

#[tokio::test]
async fn concurrent_calls_agree_on_one_key() {
    let dir = temp_dir("keygen-");
    let path = dir.path().join("node-key.pem").display().to_string();
    let mut calls = JoinSet::new();
    for _ in 0..8 {
        let path = path.clone();
        calls.spawn(async move { run(&["keygen", "--out", &path]).await });
    }
    let printed = calls.join_all().await;
    let key = NodeKey::from_pem(&fs::read(&path).unwrap()).unwrap().public_key().to_pem();
    for ran in printed {
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), key.as_str()), "{}", ran.stderr);
    }
    assert_eq!(names(dir.path()), ["node-key.pem"]);
}

#[tokio::test]
async fn an_unusable_file_is_never_replaced() {
    let dir = temp_dir("keygen-");
    let path = dir.path().join("node-key.pem");
    for (content, words) in [
        ("", "no block"),
        ("-----BEGIN EC PRIVATE KEY-----\nAA==\n-----END EC PRIVATE KEY-----\n", "not an RSA key"),
    ] {
        fs::write(&path, content).unwrap();
        let ran = run(&["keygen", "--out", path.to_str().unwrap()]).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (USAGE, ""), "{ran:?}");
        assert!(ran.stderr.contains(words) && ran.stderr.contains("was not changed"), "{ran:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }
    let missing = run(&["keygen", "--out", &format!("{}/missing/key.pem", dir.path().display())]).await;
    assert_eq!((missing.code, missing.stdout.as_str()), (CANNOT_CREATE, ""), "{missing:?}");
    assert!(missing.stderr.contains("install -d -m 0700"), "{missing:?}");
    let directory = run(&["keygen", "--out", dir.path().to_str().unwrap()]).await;
    assert_eq!(directory.code, SYSTEM, "{directory:?}");
}

#[tokio::test]
async fn a_payload_of_kmsctl_is_opened_by_the_node_and_by_openssl() {
    let node = Node::with_key().await;
    let printed = node.seal(&[], CONTENT).await;
    assert_eq!((printed.code, printed.stderr.as_str()), (Some(0), ""), "{printed:?}");
    assert_eq!(node.opened(printed.stdout.as_bytes()), CONTENT);

    fs::write(node.path("secret-id"), CONTENT).unwrap();
    let (input, out) = (node.path("secret-id"), node.path("secret-id.pem"));
    fs::write(&out, "an older payload").unwrap();
    let written = node.seal(&["--in", &input, "--out", &out], "").await;
    assert_eq!((written.code, written.stdout.as_str()), (Some(0), ""), "{written:?}");
    assert_eq!(node.opened(&fs::read(&out).unwrap()), CONTENT);
    assert_eq!(mode(&out), 0o600);
    let decrypted = node.shell("openssl cms -decrypt -inform PEM -in secret-id.pem -inkey node-key.pem");
    assert_eq!(decrypted, CONTENT);
    assert_eq!(names(node.0.path()), ["node-key.pem", "node.pub", "secret-id", "secret-id.pem"]);
}

/// A pipe or a device is written to. As root, replacing /dev/stdout would break the machine.
#[tokio::test]
async fn a_pipe_is_not_replaced_by_a_file() {
    let node = Node::with_key().await;
    let script = format!(
        "mkfifo pipe; cat pipe >read & {} seal --to node.pub --out pipe <<<x; wait; test -p pipe; cat read",
        repository::kmsctl()
    );
    assert_eq!(node.opened(node.shell(&script).as_bytes()), "x\n");
}

/// The commands are those of docs/auth/trusted-introduction.md.
#[tokio::test]
async fn a_payload_of_openssl_is_opened_by_the_node() {
    let node = Node::with_key().await;
    fs::write(node.path("secret-id"), CONTENT).unwrap();
    node.shell(
        "openssl genpkey -algorithm ed25519 -out throwaway.pem
         openssl x509 -new -subj /CN=node -key throwaway.pem -force_pubkey node.pub \
           -extfile <(echo subjectKeyIdentifier=hash) -out node.crt
         openssl cms -encrypt -binary -in secret-id -out secret-id.pem -outform PEM -recip node.crt -keyid \
           -aes-256-gcm -keyopt rsa_padding_mode:oaep -keyopt rsa_oaep_md:sha256",
    );
    assert_eq!(node.opened(&fs::read(node.path("secret-id.pem")).unwrap()), CONTENT);

    // A certificate that openssl has made is a public key, too.
    let ran = run_kmsctl(&["seal", "--to", &node.path("node.crt")], CONTENT).await;
    assert_eq!(node.opened(ran.stdout.as_bytes()), CONTENT);
}

#[tokio::test]
async fn bad_input_of_seal_is_explained() {
    let node = Node::with_key().await;
    let (key, missing) = (node.path("node-key.pem"), node.path("missing"));
    let out = node.path("out.pem");
    for (arguments, input, code, words) in [
        (vec!["--to", &key], CONTENT, USAGE, "must stay on its node"),
        (vec!["--to", &missing], CONTENT, SYSTEM, "No such file"),
        (vec!["--to", &key, "--to", &key], CONTENT, USAGE, "cannot be used multiple times"),
        (vec![], CONTENT, USAGE, "--to"),
    ] {
        let ran = run_kmsctl(&[vec!["seal"], arguments].concat(), input).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{ran:?}");
        assert!(ran.stderr.contains(words) && !ran.stderr.contains(CONTENT), "{ran:?}");
    }
    let long = CONTENT.repeat(1000);
    for (more, input, code, words) in [
        (vec!["--out", &out], "", USAGE, "has 0 bytes"),
        (vec!["--out", &out], &long, USAGE, "between 1 and 4096 bytes"),
        (vec!["--in", &missing], "", SYSTEM, "No such file"),
        (vec!["--out", "/missing/out.pem"], CONTENT, SYSTEM, "cannot write /missing/out.pem"),
        (vec!["--out", "/"], CONTENT, SYSTEM, "cannot write /"),
    ] {
        let ran = node.seal(&more, input).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{ran:?}");
        assert!(ran.stderr.contains(words) && !ran.stderr.contains(CONTENT), "{ran:?}");
    }
    assert_eq!(names(node.0.path()), ["node-key.pem", "node.pub"]);
}
