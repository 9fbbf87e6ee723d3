//! The fixed values of metric labels.

/// The state that `transit_kms_health` shows; exactly one is 1.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HealthState {
    /// The key is gone: Status is a gRPC error.
    KeyLost,
    /// Status is `ok`.
    Ok,
    /// Vault answers and refuses.
    Refused,
    /// The last session health check ended too long ago.
    Stale,
    /// No session has been published yet.
    Unknown,
    /// Vault has not been usable for longer than the outage grace.
    Unreachable,
}

impl HealthState {
    /// All states.
    pub const ALL: [Self; 6] =
        [Self::KeyLost, Self::Ok, Self::Refused, Self::Stale, Self::Unknown, Self::Unreachable];

    /// The text in metrics and logs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::KeyLost => "lost",
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Stale => "stale",
            Self::Unknown => "unknown",
            Self::Unreachable => "unreachable",
        }
    }
}

/// The state of the newest config, as `transit_kms_config_state` shows it; exactly one is 1.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ConfigState {
    /// A session that was made from it is published.
    InUse,
    /// The file cannot be read, or breaks a rule.
    Invalid,
    /// Vault has not verified it yet.
    Pending,
    /// Vault refuses it.
    Refused,
}

impl ConfigState {
    /// All states.
    pub const ALL: [Self; 4] = [Self::InUse, Self::Pending, Self::Refused, Self::Invalid];

    /// The text in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::InUse => "in_use",
            Self::Invalid => "invalid",
            Self::Pending => "pending",
            Self::Refused => "refused",
        }
    }
}

/// What is malformed about a request, as `transit_kms_malformed_requests_total` counts it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum MalformedRequest {
    /// Its `:authority`: the client sends the path of the socket there.
    Authority,
    /// Something else in its headers.
    Other,
}

impl MalformedRequest {
    /// All values.
    pub const ALL: [Self; 2] = [Self::Authority, Self::Other];

    /// The text in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Authority => "authority",
            Self::Other => "other",
        }
    }
}

/// The result of a config reload, as `transit_kms_config_reloads_total` counts it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ReloadResult {
    /// The file cannot be read, or breaks a rule.
    Invalid,
    /// Vault did not answer in time, or did not answer sensibly: it is verified again soon.
    Pending,
    /// Vault refused it: it is verified again, less often.
    Refused,
    /// A session that was made from it is published.
    Success,
}

impl ReloadResult {
    /// All results.
    pub const ALL: [Self; 4] = [Self::Invalid, Self::Pending, Self::Refused, Self::Success];

    /// The text in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Pending => "pending",
            Self::Refused => "refused",
            Self::Success => "success",
        }
    }

    /// The state of a config with this result.
    #[must_use]
    pub const fn config_state(self) -> ConfigState {
        match self {
            Self::Invalid => ConfigState::Invalid,
            Self::Pending => ConfigState::Pending,
            Self::Refused => ConfigState::Refused,
            Self::Success => ConfigState::InUse,
        }
    }
}

/// The result of a token renewal, as `transit_kms_token_renewals_total` counts it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RenewalResult {
    /// Vault renewed the token, and its maximum TTL is reached.
    Capped,
    /// Vault did not renew the token.
    Failed,
    /// Vault renewed the token.
    Renewed,
}

impl RenewalResult {
    /// All results.
    pub const ALL: [Self; 3] = [Self::Capped, Self::Failed, Self::Renewed];

    /// The text in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Capped => "capped",
            Self::Failed => "failed",
            Self::Renewed => "renewed",
        }
    }
}
