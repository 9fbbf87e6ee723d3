//! KMS v1 on its own socket, for a migration.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use kms_plugin::{
    address::UnixAddress,
    v1beta1::{
        DecryptRequest, EncryptRequest, VersionRequest,
        key_management_service_client::KeyManagementServiceClient,
    },
};
use tempfile::TempDir;
use testkit::{Daemon, DaemonOptions, KEY, TestEnv, calls, connect, temp_dir, unix_url};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

const API: &str = "v1beta1";
const DEK: &[u8] = b"0123456789abcdef0123456789abcdef";

/// A daemon that serves v1 and v2 on a path each.
struct Setup {
    daemon: Daemon,
    dir: TempDir,
    env: TestEnv,
}

impl Setup {
    async fn start() -> Self {
        let (dir, env) = (temp_dir("v1-"), TestEnv::start().await);
        let v1 = unix_url(&dir.path().join("v1@localhost")).into_string().unwrap();
        let options = DaemonOptions::arguments(["--kms-v1-listen", &v1, "--health-check-interval", "1s"]);
        let daemon = Daemon::start_with(&env.config, options).await;
        daemon.wait_ready().await;
        Self { daemon, dir, env }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("v1@localhost")
    }

    async fn client(&self) -> KeyManagementServiceClient<Channel> {
        // The authority that kube-apiserver sends for this socket.
        let address: UnixAddress = unix_url(&self.socket()).into_string().unwrap().parse().unwrap();
        v1_client(&self.socket(), &address.grpc_authority()).await
    }
}

/// A v1 client that sends this authority.
async fn v1_client(socket: &Path, authority: &str) -> KeyManagementServiceClient<Channel> {
    let endpoint = Endpoint::try_from(format!("http://{authority}")).unwrap();
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { connect(&socket).await.map(TokioIo::new) }
    });
    KeyManagementServiceClient::new(endpoint.connect_with_connector(connector).await.unwrap())
}

async fn decrypt(setup: &Setup, cipher: impl Into<Bytes>) -> Result<Bytes, Status> {
    let request = Request::new(DecryptRequest { version: API.into(), cipher: cipher.into() });
    Ok(setup.client().await.decrypt(request).await?.into_inner().plain)
}

#[tokio::test]
async fn version_encrypt_and_decrypt_work() {
    let setup = Setup::start().await;
    let mut client = setup.client().await;
    let version = client.version(VersionRequest { version: API.into() }).await.unwrap().into_inner();
    assert_eq!((version.version.as_str(), version.runtime_name.as_str()), (API, "transit-kms"));

    let request = EncryptRequest { version: API.into(), plain: DEK.to_vec().into() };
    let cipher = client.encrypt(request).await.unwrap().into_inner().cipher;
    // The ciphertext is Vault's own, as in Trousseau, so Vault can decrypt it without transit-kms.
    let text = std::str::from_utf8(&cipher).unwrap();
    assert_eq!(setup.env.bao.decrypt(KEY, text).await, DEK);
    assert_eq!(decrypt(&setup, cipher).await.unwrap(), DEK);
    let of_trousseau = setup.env.bao.encrypt(KEY, DEK).await;
    assert_eq!(decrypt(&setup, of_trousseau.into_bytes()).await.unwrap(), DEK);

    let error = decrypt(&setup, &b"k8s:enc"[..]).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    for (method, calls) in [("v1_version", 1.0), ("v1_encrypt", 1.0), ("v1_decrypt", 3.0)] {
        let counted = setup.daemon.metric("transit_kms_requests_total", &[("method", method)]).await;
        assert_eq!(counted.to_bits(), f64::to_bits(calls), "{method}");
    }
}

#[tokio::test]
async fn each_api_has_its_socket_and_both_are_removed_at_the_end() {
    let mut setup = Setup::start().await;
    calls::round_trip(&setup.daemon.kms().await, "v2").await;
    let mut wrong = v1_client(setup.daemon.socket(), "localhost").await;
    let error = wrong.version(VersionRequest { version: API.into() }).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented, "{error}");

    assert!(setup.socket().exists());
    assert!(setup.daemon.terminate().await.success());
    assert!(!setup.socket().exists() && !setup.daemon.socket().exists());
}

#[tokio::test]
async fn it_is_off_by_default_and_an_occupied_path_leaves_no_socket_behind() {
    let env = TestEnv::start().await;
    let dir = temp_dir("v1-");
    let daemon = env.daemon([]).await;
    assert!(!daemon.log().contains("KMS v1"), "{}", daemon.log());

    let (socket, taken) = (dir.path().join("kms.sock"), dir.path().join("v1@localhost"));
    let _other = std::os::unix::net::UnixListener::bind(&taken).unwrap();
    let v1 = unix_url(&taken).into_string().unwrap();
    let options =
        DaemonOptions { socket: Some(socket.clone()), ..DaemonOptions::arguments(["--kms-v1-listen", &v1]) };
    let mut second = Daemon::spawn(&env.config, options);
    assert_eq!(second.wait_ended(Duration::from_secs(10)).await.code(), Some(73), "{}", second.log());
    assert!(second.log().contains("v1@localhost"), "{}", second.log());
    assert!(!socket.exists());
}
