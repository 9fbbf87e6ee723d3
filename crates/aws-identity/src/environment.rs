//! The environment variables that decide where credentials and services are.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

pub(crate) const ACCESS_KEY_ID: &str = "AWS_ACCESS_KEY_ID";
pub(crate) const CONTAINER_FULL_URI: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
pub(crate) const CONTAINER_RELATIVE_URI: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
pub(crate) const CONTAINER_TOKEN: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN";
pub(crate) const CONTAINER_TOKEN_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
pub(crate) const HOME: &str = "HOME";
pub(crate) const METADATA_DISABLED: &str = "AWS_EC2_METADATA_DISABLED";
pub(crate) const METADATA_ENDPOINT: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
pub(crate) const PROFILE: &str = "AWS_PROFILE";
pub(crate) const SECRET_ACCESS_KEY: &str = "AWS_SECRET_ACCESS_KEY";
pub(crate) const SESSION_TOKEN: &str = "AWS_SESSION_TOKEN";
pub(crate) const SHARED_CREDENTIALS_FILE: &str = "AWS_SHARED_CREDENTIALS_FILE";
pub(crate) const STS_ENDPOINT: &str = "AWS_ENDPOINT_URL_STS";
pub(crate) const WEB_IDENTITY_TOKEN_FILE: &str = "AWS_WEB_IDENTITY_TOKEN_FILE";

/// All variables that are read. Their meanings are those of the AWS SDKs:
/// <https://docs.aws.amazon.com/sdkref/latest/guide/settings-reference.html>.
const NAMES: [&str; 14] = [
    ACCESS_KEY_ID,
    CONTAINER_FULL_URI,
    CONTAINER_RELATIVE_URI,
    CONTAINER_TOKEN,
    CONTAINER_TOKEN_FILE,
    HOME,
    METADATA_DISABLED,
    METADATA_ENDPOINT,
    PROFILE,
    SECRET_ACCESS_KEY,
    SESSION_TOKEN,
    SHARED_CREDENTIALS_FILE,
    STS_ENDPOINT,
    WEB_IDENTITY_TOKEN_FILE,
];

/// The environment variables that this crate reads. It has no `Debug`: some of them are secrets.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, Zeroizing<String>>,
}

impl Environment {
    /// The variables of this process. One that is not UTF-8 counts as not set.
    #[must_use]
    pub fn of_process() -> Self {
        NAMES.iter().filter_map(|name| Some((*name, std::env::var(name).ok()?))).collect()
    }

    /// A variable that is set. An empty one counts as not set, as in the AWS SDKs.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        let variables =
            variables.into_iter().map(|(name, value)| (name.into(), Zeroizing::new(value.into())));
        Self { variables: variables.collect() }
    }
}
