//! Starts and stops one daemon.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    os::{fd::OwnedFd, linux::net::SocketAddrExt, unix::net::UnixListener},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use kms_plugin::v2::key_management_service_client::KeyManagementServiceClient;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::{daemon::cli, files::repository, process::Process, process::command::command, wait::eventually};

/// A KMS v2 client.
pub type Kms = KeyManagementServiceClient<Channel>;

/// The longest time for what the daemon does without Vault.
const WAIT_TIMEOUT: Duration = Duration::from_secs(10);

/// Passes standard input on as the first descriptor of sd_listen_fds(3).
const PASS_STDIN: &str = "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$ LISTEN_FDNAMES=transit-kms.socket; exec \"$0\" \"$@\"";

/// Options of a daemon.
#[derive(Default)]
pub struct DaemonOptions {
    /// Further arguments. A flag in them replaces a default one (`--listen`, `--config`, `--admin-listen`,
    /// `--log-level`).
    pub arguments: Vec<String>,
    /// Further environment variables; see [`command`] for the others.
    pub environment: BTreeMap<String, String>,
    /// A listener that it inherits, as from systemd.
    pub listener: Option<UnixListener>,
    /// Its limit of open files, if it differs from the test's.
    pub open_files: Option<u64>,
    /// Its socket, if not one in its own folder: a path, or `@name`.
    pub socket: Option<PathBuf>,
    /// Its uid, if it differs from the test's; needs root. The user then owns the folder of the daemon.
    pub uid: Option<u32>,
    /// A command that runs the daemon, such as `unshare`.
    pub wrapper: Vec<String>,
}

impl DaemonOptions {
    /// With these arguments.
    pub fn arguments<const N: usize>(arguments: [&str; N]) -> Self {
        Self { arguments: arguments.map(str::to_owned).into(), ..Self::default() }
    }
}

/// A running `transit-kms serve` with its own socket and admin socket. Its output is kept, by default at log level
/// trace. Dropping this value kills it.
pub struct Daemon {
    process: Process,
    dir: TempDir,
    socket: PathBuf,
}

impl Daemon {
    /// Starts a daemon with this config file, and waits until it listens.
    pub async fn start(config: &Path) -> Self {
        Self::start_with(config, DaemonOptions::default()).await
    }

    /// Like [`Daemon::start`], with options.
    pub async fn start_with(config: &Path, options: DaemonOptions) -> Self {
        let mut daemon = Self::spawn(config, options);
        daemon.wait_listening().await;
        daemon
    }

    /// Like [`Daemon::start_with`], without waiting.
    pub fn spawn(config: &Path, mut options: DaemonOptions) -> Self {
        let dir = tempfile::Builder::new().prefix("kms-").tempdir().unwrap();
        let socket = options.socket.take().unwrap_or_else(|| dir.path().join("kms.sock"));
        let mut arguments: Vec<OsString> = vec!["serve".into()];
        for (flag, value) in [
            ("--listen", unix_url(&socket)),
            ("--config", config.as_os_str().to_owned()),
            ("--admin-listen", unix_url(&admin_socket(&dir))),
            ("--log-level", "trace".into()),
        ] {
            let named = |given: &String| given == flag || given.starts_with(&format!("{flag}="));
            if !options.arguments.iter().any(named) {
                arguments.extend([flag.into(), value]);
            }
        }
        arguments.extend(options.arguments.iter().map(OsString::from));
        let stdin = match options.listener {
            Some(listener) => {
                assert!(options.wrapper.is_empty(), "`listener` cannot be combined with a wrapper");
                options.wrapper = ["sh", "-c", PASS_STDIN].map(str::to_owned).into();
                OwnedFd::from(listener).into()
            }
            None => Stdio::null(),
        };
        let mut words = options.wrapper.iter().map(OsString::from).collect::<Vec<_>>();
        if let Some(most) = options.open_files {
            words.extend([
                "sh".into(),
                "-c".into(),
                format!("ulimit -n {most} && exec \"$0\" \"$@\"").into(),
            ]);
        }
        let mut command = if let Some(uid) = options.uid {
            assert!(words.is_empty(), "`uid` cannot be combined with a wrapper");
            std::os::unix::fs::chown(dir.path(), Some(uid), Some(uid)).unwrap();
            cli::of_user(uid, dir.path())
        } else {
            words.push(repository::daemon().into());
            let mut command = command(words.remove(0));
            command.args(words);
            command
        };
        command.args(arguments).envs(&options.environment);
        Self { process: Process::spawn_with("transit-kms", &mut command, stdin), dir, socket }
    }

    /// The path of the admin socket.
    pub fn admin_socket(&self) -> PathBuf {
        admin_socket(&self.dir)
    }

    /// The path of the KMS socket, or `@name`.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its output so far, of standard output and standard error.
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// Waits until it has printed `words`. Its output arrives with a delay.
    pub async fn wait_printed(&self, words: &str) {
        eventually(&format!("it prints {words:?}"), WAIT_TIMEOUT, async || {
            let log = self.log();
            if log.contains(words) { Ok(()) } else { Err(log) }
        })
        .await;
    }

    /// Waits until both sockets accept connections.
    ///
    /// # Panics
    /// If they do not in time, or if the process ends.
    pub async fn wait_listening(&mut self) {
        let admin = admin_socket(&self.dir);
        eventually("transit-kms listens", WAIT_TIMEOUT, async || {
            if let Some(status) = self.process.exited() {
                panic!("transit-kms ended: {status}");
            }
            connect(&self.socket).await.and(connect(&admin).await)
        })
        .await;
    }

    /// Waits until `/readyz` is 200.
    pub async fn wait_ready(&self) {
        self.wait_ready_within(WAIT_TIMEOUT).await;
    }

    /// Like [`Daemon::wait_ready`], with another timeout.
    pub async fn wait_ready_within(&self, within: Duration) {
        eventually("transit-kms is ready", within, async || match self.admin("/readyz").await {
            (200, _) => Ok(()),
            (status, why) => Err(format!("{status} {}", why.trim())),
        })
        .await;
    }

    /// A client on its own connection.
    pub async fn kms(&self) -> Kms {
        kms_client(&self.socket).await
    }

    /// The status and body of a path on the admin socket.
    pub async fn admin(&self, path: &str) -> (u16, String) {
        self.admin_as("GET", path).await
    }

    /// Like [`Daemon::admin`], with this method.
    pub async fn admin_as(&self, method: &str, path: &str) -> (u16, String) {
        let stream = connect(&admin_socket(&self.dir)).await.expect("the admin socket");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = http::Request::builder().method(method).uri(path).header("host", "localhost");
        let answer = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        connection.abort();
        (status, String::from_utf8(body.into()).unwrap())
    }

    /// The sum of the samples of the metric `name` with at least these labels; 0 if there is none.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let (status, text) = self.admin("/metrics").await;
        assert_eq!(status, 200, "{text}");
        samples(&text, name, labels).iter().sum()
    }

    /// The generation of the session in use; 0 before the first.
    pub async fn generation(&self) -> u64 {
        self.metric("transit_kms_session_generation", &[]).await as u64
    }

    /// The number of configs with this result: `pending`, `refused`, `success` or `invalid`.
    pub async fn reloads(&self, result: &str) -> u64 {
        self.metric("transit_kms_config_reloads_total", &[("result", result)]).await as u64
    }

    /// Waits until the session of exactly this generation is in use.
    pub async fn wait_generation(&self, wanted: u64) {
        eventually(&format!("session {wanted}"), WAIT_TIMEOUT, async || match self.generation().await {
            found if found == wanted => Ok(()),
            found => Err(format!("{found}; {}", self.admin("/readyz").await.1.trim())),
        })
        .await;
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Sends SIGTERM, waits until it has ended, and returns its exit status.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_ended(WAIT_TIMEOUT * 2).await
    }

    /// Waits until it has ended and its output is complete.
    pub async fn wait_ended(&mut self, within: Duration) -> ExitStatus {
        self.process.ended(within).await
    }

    /// Its exit status, if it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.process.exited()
    }

    /// # Panics
    /// If its output contains one of these.
    pub fn assert_never_printed(&self, secrets: &[&str]) {
        let log = self.log();
        for (which, secret) in secrets.iter().enumerate() {
            assert!(!secret.is_empty(), "secret {which} is empty");
            let line = log.lines().find(|line| line.contains(secret));
            assert!(line.is_none(), "secret {which} is in the log: {line:?}");
        }
    }
}

/// A client on its own connection to this socket: a path, or `@name`.
pub async fn kms_client(socket: &Path) -> Kms {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { connect(&socket).await.map(TokioIo::new) }
    });
    // The authority that kube-apiserver sends.
    let endpoint = Endpoint::from_static("http://localhost");
    let channel = endpoint.connect_with_connector(connector).await.expect("the KMS socket");
    KeyManagementServiceClient::new(channel)
}

/// Connects to a socket that is a path, or `@name` for an abstract one.
pub async fn connect(socket: &Path) -> std::io::Result<UnixStream> {
    match socket.to_str().and_then(|text| text.strip_prefix('@')) {
        None => UnixStream::connect(socket).await,
        Some(name) => {
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        }
    }
}

fn admin_socket(dir: &TempDir) -> PathBuf {
    dir.path().join("admin.sock")
}

/// The URL of this socket for `--listen`, `--admin-listen`, `--socket` and `--admin`.
pub fn unix_url(socket: &Path) -> OsString {
    let mut url = OsString::from(if socket.is_absolute() { "unix://" } else { "unix:///" });
    url.push(socket);
    url
}

/// The values of the samples of the metric `name` with at least these labels.
pub fn samples(text: &str, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
    let of_line = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        let (found, carried) = series.split_once('{').unwrap_or((series, ""));
        let carries = |(label, value): &(&str, &str)| {
            let pair = format!("{label}=\"{value}\"");
            carried.trim_end_matches('}').split(',').any(|one| one == pair)
        };
        (found == name && labels.iter().all(carries)).then(|| value.parse().unwrap())
    };
    text.lines().filter(|line| !line.starts_with('#')).filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::samples;

    #[test]
    fn samples_are_found_by_name_and_labels() {
        let text = "# TYPE a counter\na{x=\"1\",y=\"2\"} 3\na{x=\"1\",y=\"3\"} 4\na_b{x=\"1\"} 5\nb 0.5\n";
        assert_eq!(samples(text, "a", &[("x", "1")]), [3.0, 4.0]);
        assert_eq!(samples(text, "a", &[("y", "3"), ("x", "1")]), [4.0]);
        assert_eq!(samples(text, "b", &[]), [0.5]);
        assert!(samples(text, "a", &[("x", "2")]).is_empty());
    }
}
