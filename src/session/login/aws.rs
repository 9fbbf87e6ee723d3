//! The login of an AWS identity: a signed request of an IAM principal, or the identity document of an EC2 instance.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use aws_identity::{
    AwsIdentity, AwsIdentityError, DocumentSignature, Environment, IamSettings, LoginFields, Nonce,
    NonceError,
};
use tokio::{task::spawn_blocking, time::timeout_at};
use tracing::warn;
use transit_client::{
    ErrorKind, TransitError,
    vault::auth::{LoginError, LoginFailure, aws},
};

use super::{
    authenticator::{Identity, LoginTarget},
    credential::CredentialHash,
    credential_source::{Prepared, fixed},
};
use crate::config::settings::auth::{AwsProof, AwsSettings};

/// The name of the file in `vault.auth.state_dir`.
const NONCE_FILE: &str = "ec2-nonce";

/// Makes the login of these settings. Credentials and document are read each time, because they expire.
pub(super) async fn prepare(
    identity: &mut Identity,
    target: &LoginTarget,
    settings: &AwsSettings,
) -> Result<Prepared, LoginError> {
    let at = fixed(&target.auth)?;
    let aws_identity = AwsIdentity::new(Environment::of_process());
    let (fields, waits_for) = match &settings.proof {
        AwsProof::Ec2 => {
            let path = target.auth.state_dir.join(NONCE_FILE);
            // Before the login is sent, because Vault keeps the nonce of the first login: one that is lost locks this
            // instance out.
            let nonce = stored_nonce(path.clone()).await?;
            if nonce.is_exposed() {
                warn_about_nonce(identity, &path);
            }
            let document = aws_identity.ec2_login(&settings.role, &nonce, DocumentSignature::default());
            (in_time(target, document).await?, format!("the nonce file {}", path.display()))
        }
        AwsProof::Iam { region, server_id } => {
            let settings = IamSettings {
                region: region.clone(),
                role: settings.role.clone(),
                server_id: server_id.clone(),
            };
            #[expect(
                clippy::disallowed_methods,
                reason = "STS compares the time of the signature with its own"
            )]
            let now = SystemTime::now();
            let signed = aws_identity.iam_login(&settings, now);
            (in_time(target, signed).await?, "the AWS access key".to_owned())
        }
    };
    // The same credential in another role is another attempt.
    let parts = [settings.role.as_str()].into_iter().chain(fields.credential());
    let credential = CredentialHash::of(parts.map(str::as_bytes));
    let sent = fields.iter().map(|(name, value)| (name, value.into()));
    let login = match settings.proof {
        AwsProof::Ec2 => aws::ec2_login(at, sent),
        AwsProof::Iam { .. } => aws::iam_login(at, sent),
    };
    Ok(Prepared { credential, is_fetched: false, login, pool: None, waits_for })
}

/// Waits for what the services of this machine answer, until the login must end.
async fn in_time(
    target: &LoginTarget,
    fields: impl Future<Output = Result<LoginFields, AwsIdentityError>>,
) -> Result<LoginFields, LoginError> {
    let Ok(fields) = timeout_at(target.context.deadline, fields).await else {
        let message = "the services of AWS that have the credentials of this machine did not answer in time";
        return Err(LoginError::new(
            LoginFailure::Away,
            TransitError::new(ErrorKind::DeadlineExceeded, message),
        ));
    };
    fields.map_err(|error| {
        let (failure, kind) = if error.is_temporary() {
            (LoginFailure::Away, ErrorKind::Unreachable)
        } else {
            (LoginFailure::Blocked, ErrorKind::Config)
        };
        LoginError::new(failure, TransitError::new(kind, error.to_string()).with_source(error))
    })
}

/// Reads the nonce of this instance. The first time, creates it.
async fn stored_nonce(path: PathBuf) -> Result<Nonce, LoginError> {
    let blocked = |error: TransitError| LoginError::new(LoginFailure::Blocked, error);
    let stored = spawn_blocking(move || {
        if let Some(directory) = path.parent() {
            let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
            created.map_err(|error| NonceError::Create { error, path: path.clone() })?;
        }
        Nonce::load_or_create(&path)
    });
    match stored.await {
        Ok(Ok(nonce)) => Ok(nonce),
        Ok(Err(error)) => {
            Err(blocked(TransitError::new(ErrorKind::Config, error.to_string()).with_source(error)))
        }
        Err(error) => {
            let message = "the nonce file cannot be read: the thread that reads it ended";
            Err(blocked(TransitError::new(ErrorKind::Config, message).with_source(error)))
        }
    }
}

fn warn_about_nonce(identity: &mut Identity, path: &Path) {
    if !std::mem::replace(&mut identity.warned_about_nonce, true) {
        warn!(
            path = %path.display(),
            "other users can read the nonce file, and with the nonce they can log in as this instance: run chmod 600"
        );
    }
}
