//! KMS v1, on a socket of its own, for those who move in.

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
use testkit::{Daemon, DaemonOptions, KEY, Stage, calls, connect, scratch, unix_url};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

const API: &str = "v1beta1";
const DEK: &[u8] = b"0123456789abcdef0123456789abcdef";

/// A daemon that serves both, each on a path.
struct Bench {
    daemon: Daemon,
    dir: TempDir,
    stage: Stage,
}

impl Bench {
    async fn start() -> Self {
        let (dir, stage) = (scratch("v1-"), Stage::start().await);
        let v1 = unix_url(&dir.path().join("v1@localhost")).into_string().unwrap();
        let options = DaemonOptions::arguments(["--kms-v1-listen", &v1, "--health-check-interval", "1s"]);
        let daemon = Daemon::start_with(&stage.config, options).await;
        daemon.wait_ready().await;
        Self { daemon, dir, stage }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("v1@localhost")
    }

    async fn client(&self) -> KeyManagementServiceClient<Channel> {
        // What kube-apiserver's sends for this socket.
        let address: UnixAddress = unix_url(&self.socket()).into_string().unwrap().parse().unwrap();
        v1_client(&self.socket(), &address.grpc_authority()).await
    }
}

/// A client that sends this authority.
async fn v1_client(socket: &Path, authority: &str) -> KeyManagementServiceClient<Channel> {
    let endpoint = Endpoint::try_from(format!("http://{authority}")).unwrap();
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { connect(&socket).await.map(TokioIo::new) }
    });
    KeyManagementServiceClient::new(endpoint.connect_with_connector(connector).await.unwrap())
}

async fn decrypt(bench: &Bench, cipher: impl Into<Bytes>) -> Result<Bytes, Status> {
    let request = Request::new(DecryptRequest { version: API.into(), cipher: cipher.into() });
    Ok(bench.client().await.decrypt(request).await?.into_inner().plain)
}

#[tokio::test]
async fn version_encrypt_and_decrypt() {
    let bench = Bench::start().await;
    let mut client = bench.client().await;
    let version = client.version(VersionRequest { version: API.into() }).await.unwrap().into_inner();
    assert_eq!((version.version.as_str(), version.runtime_name.as_str()), (API, "transit-kms"));

    let request = EncryptRequest { version: API.into(), plain: DEK.to_vec().into() };
    let cipher = client.encrypt(request).await.unwrap().into_inner().cipher;
    // Bare, as Trousseau left it: what we wrap, Vault alone unwraps.
    let text = std::str::from_utf8(&cipher).unwrap();
    assert_eq!(bench.stage.bao.decrypt(KEY, text).await, DEK);
    assert_eq!(decrypt(&bench, cipher).await.unwrap(), DEK);
    let of_trousseau = bench.stage.bao.encrypt(KEY, DEK).await;
    assert_eq!(decrypt(&bench, of_trousseau.into_bytes()).await.unwrap(), DEK);

    let error = decrypt(&bench, &b"k8s:enc"[..]).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    for (method, calls) in [("v1_version", 1.0), ("v1_encrypt", 1.0), ("v1_decrypt", 3.0)] {
        let counted = bench.daemon.metric("transit_kms_requests_total", &[("method", method)]).await;
        assert_eq!(counted.to_bits(), f64::to_bits(calls), "{method}");
    }
}

#[tokio::test]
async fn each_api_has_its_socket_and_both_go_with_the_daemon() {
    let mut bench = Bench::start().await;
    calls::round_trip(&bench.daemon.kms().await, "v2").await;
    let mut wrong = v1_client(bench.daemon.socket(), "localhost").await;
    let error = wrong.version(VersionRequest { version: API.into() }).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented, "{error}");

    assert!(bench.socket().exists());
    assert!(bench.daemon.terminate().await.success());
    assert!(!bench.socket().exists() && !bench.daemon.socket().exists());
}

#[tokio::test]
async fn it_is_off_by_default_and_a_taken_name_leaves_nothing_behind() {
    let stage = Stage::start().await;
    let dir = scratch("v1-");
    let daemon = stage.daemon([]).await;
    assert!(!daemon.log().contains("KMS v1"), "{}", daemon.log());

    let (socket, taken) = (dir.path().join("kms.sock"), dir.path().join("v1@localhost"));
    let _other = std::os::unix::net::UnixListener::bind(&taken).unwrap();
    let v1 = unix_url(&taken).into_string().unwrap();
    let options =
        DaemonOptions { socket: Some(socket.clone()), ..DaemonOptions::arguments(["--kms-v1-listen", &v1]) };
    let mut second = Daemon::spawn(&stage.config, options);
    assert_eq!(second.wait_ended(Duration::from_secs(10)).await.code(), Some(73), "{}", second.log());
    assert!(second.log().contains("v1@localhost"), "{}", second.log());
    assert!(!socket.exists());
}
