//! A Workload API on a unix socket, in place of a SPIRE agent: tests rotate, refuse and hang on demand. The SVIDs are
//! real. An authority of the test issues them.

use std::{
    fs,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::{Stream, StreamExt as _, stream};
use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use tempfile::TempDir;
use tokio::{
    net::UnixListener,
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tonic::{Request, Response, Status};

use self::proto::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use super::authority::{Identity, SpiffeAuthority};
use crate::temp_dir;

mod proto {
    #![allow(clippy::all, unreachable_pub, unused_qualifications, reason = "generated code")]
    tonic::include_proto!("_");
}

/// How a [`WorkloadApiServer`] treats calls.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Conduct {
    /// It never answers.
    Hang,
    /// It breaks streams and answers each call with `PermissionDenied` and these words.
    Refuse(&'static str),
    /// It issues SVIDs.
    Serve,
}

/// A Workload API. It stops when this value is dropped.
pub struct WorkloadApiServer {
    dir: TempDir,
    serving: Option<JoinHandle<()>>,
    state: Arc<State>,
}

struct State {
    authority: SpiffeAuthority,
    conduct: watch::Sender<Conduct>,
    fetches: AtomicUsize,
    /// Each message is the current X.509-SVIDs.
    svids: watch::Sender<proto::X509svidResponse>,
    workload: Mutex<Vec<Identity>>,
}

impl WorkloadApiServer {
    /// Starts a Workload API of this trust domain. It issues nothing until [`WorkloadApiServer::register`].
    pub fn start(trust_domain: &str) -> Self {
        let state = State {
            authority: SpiffeAuthority::new(trust_domain),
            conduct: watch::Sender::new(Conduct::Serve),
            fetches: AtomicUsize::default(),
            svids: watch::Sender::new(proto::X509svidResponse::default()),
            workload: Mutex::default(),
        };
        let mut server = Self { dir: temp_dir("spiffe-"), serving: None, state: Arc::new(state) };
        server.restart();
        server
    }

    /// Starts a Workload API that issues SVIDs with this SPIFFE ID and without a common name.
    pub fn of(spiffe_id: &str) -> Self {
        let trust_domain = spiffe_id.trim_start_matches("spiffe://").split('/').next().unwrap();
        let server = Self::start(trust_domain);
        server.register(Identity::new(spiffe_id));
        server
    }

    /// `unix:///path/of/the/socket`.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    pub fn authority(&self) -> &SpiffeAuthority {
        &self.state.authority
    }

    /// Issues SVIDs of one more identity. The first identity is the default.
    pub fn register(&self, identity: Identity) {
        self.state.workload.lock().unwrap().push(identity);
        self.rotate();
    }

    /// Issues no SVIDs any more.
    pub fn unregister_all(&self) {
        self.state.workload.lock().unwrap().clear();
        self.rotate();
    }

    /// Issues new X.509-SVIDs, and sends them to all workloads.
    pub fn rotate(&self) {
        let State { authority, svids, workload, .. } = &*self.state;
        let workload = workload.lock().unwrap();
        let issued = workload.iter().map(|identity| {
            let svid = authority.x509_svid(identity);
            proto::X509svid {
                bundle: authority.ca_der().into(),
                spiffe_id: identity.spiffe_id.clone(),
                x509_svid: svid.certificate_der.into(),
                x509_svid_key: svid.key_der.into(),
            }
        });
        svids.send_replace(proto::X509svidResponse { svids: issued.collect() });
    }

    /// Changes how it treats calls, including the open streams.
    pub fn conduct(&self, conduct: Conduct) {
        self.state.conduct.send_replace(conduct);
    }

    /// The number of calls so far.
    pub fn fetches(&self) -> usize {
        self.state.fetches.load(Ordering::Relaxed)
    }

    /// Breaks all connections and removes the socket.
    pub fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            fs::remove_file(self.socket()).unwrap();
        }
    }

    /// Breaks all connections, and listens on a new socket at the same path.
    pub fn restart(&mut self) {
        self.stop();
        let listener = UnixListener::bind(self.socket()).unwrap();
        self.serving = Some(tokio::spawn(serve(listener, Arc::clone(&self.state))));
    }
}

impl Drop for WorkloadApiServer {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

async fn serve(listener: UnixListener, state: Arc<State>) {
    // Dropping the set breaks the connections.
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = TowerToHyperService::new(SpiffeWorkloadApiServer::from_arc(Arc::clone(&state)));
        let connection =
            http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
        connections.spawn(async move { drop(connection.await) });
    }
}

impl State {
    /// What each call meets first, in the order of a SPIRE agent.
    async fn admit<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.fetches.fetch_add(1, Ordering::Relaxed);
        if request.metadata().get("workload.spiffe.io").is_none_or(|value| value != "true") {
            return Err(Status::invalid_argument("security header missing from request"));
        }
        let conduct = *self.conduct.borrow();
        match conduct {
            Conduct::Hang => std::future::pending().await,
            Conduct::Refuse(words) => Err(Status::permission_denied(words)),
            Conduct::Serve => Ok(()),
        }
    }
}

fn no_identity_issued() -> Status {
    Status::permission_denied("no identity issued")
}

/// Waits until it refuses.
async fn refusal(conduct: &mut watch::Receiver<Conduct>) -> Status {
    loop {
        if let Conduct::Refuse(words) = *conduct.borrow_and_update() {
            return Status::permission_denied(words);
        }
        if conduct.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for State {
    type FetchX509SVIDStream = Pin<Box<dyn Stream<Item = Result<proto::X509svidResponse, Status>> + Send>>;

    async fn fetch_x509svid(
        &self,
        request: Request<proto::X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        self.admit(&request).await?;
        let mut svids = self.svids.subscribe();
        svids.mark_changed();
        let conduct = self.conduct.subscribe();
        let messages = stream::unfold((svids, conduct), async |(mut svids, mut conduct)| {
            let message = tokio::select! {
                refusal = refusal(&mut conduct) => Err(refusal),
                changed = svids.changed() => {
                    changed.ok()?;
                    let current = svids.borrow_and_update().clone();
                    if current.svids.is_empty() { Err(no_identity_issued()) } else { Ok(current) }
                }
            };
            Some((message, (svids, conduct)))
        });
        Ok(Response::new(messages.boxed()))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<proto::JwtsvidRequest>,
    ) -> Result<Response<proto::JwtsvidResponse>, Status> {
        self.admit(&request).await?;
        let proto::JwtsvidRequest { audience, spiffe_id } = request.into_inner();
        if audience.iter().all(String::is_empty) {
            return Err(Status::invalid_argument("audience must be specified"));
        }
        let workload = self.workload.lock().unwrap();
        let asked = workload.iter().filter(|it| spiffe_id.is_empty() || it.spiffe_id == spiffe_id);
        let svids: Vec<_> = asked
            .map(|identity| proto::Jwtsvid {
                spiffe_id: identity.spiffe_id.clone(),
                svid: self.authority.jwt_svid(identity, &audience),
            })
            .collect();
        if svids.is_empty() {
            return Err(no_identity_issued());
        }
        Ok(Response::new(proto::JwtsvidResponse { svids }))
    }
}
