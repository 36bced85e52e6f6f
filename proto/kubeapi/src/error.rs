//! Why the API server did not do what it was asked, by who can change it.

use std::io;

use kube::core::Status;
use mesh_names::NameError;
use mesh_proto::kubernetes::ApiState;
use rustls::CertificateError;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::access::{AccessError, Target};

/// Why a request came to nothing: a sentence for people each.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The credentials cannot be read.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The server's name leads nowhere.
    #[error("the API server's name {host} leads nowhere: {why}")]
    Name {
        /// The name.
        host: String,
        /// Why.
        why: NameError,
    },
    /// Nobody can be reached there.
    #[error("the API server at {address} cannot be reached: {why}")]
    Unreachable {
        /// Where it should be.
        address: String,
        /// Why not: a clause for people.
        why: String,
    },
    /// Somebody else is there, or the cluster was made anew.
    #[error(
        "the API server at {address} shows a certificate of another CA than the one in {source_file}: it is another \
         cluster, or its CA was replaced"
    )]
    OtherAuthority {
        /// Where it is.
        address: String,
        /// Where the CA is from.
        source_file: String,
    },
    /// The server cannot be trusted for another reason.
    #[error("the API server at {address} is not trusted: {why}")]
    Untrusted {
        /// Where it is.
        address: String,
        /// Why not: a clause for people.
        why: String,
    },
    /// It does not know who asks.
    #[error("{0}")]
    Unauthorized(String),
    /// It does not permit it.
    #[error("RBAC does not permit this {caller} to {what}: {message}")]
    Forbidden {
        /// Who asked.
        caller: &'static str,
        /// What was asked for.
        what: String,
        /// What it said.
        message: String,
    },
    /// There is no such thing.
    #[error("the API server does not have what was asked for: {0}")]
    NotFound(String),
    /// What should be made is there already.
    #[error("the API server has it already")]
    Exists,
    /// What a watch should go on from is too old.
    #[error("what was seen last is too old for the API server")]
    Gone,
    /// It has too much to do, or fails.
    #[error("the API server fails: {0}")]
    Failed(String),
    /// What it says makes no sense.
    #[error("the API server's answer makes no sense: {0}")]
    Malformed(String),
    /// It takes the connection and says nothing.
    #[error("the API server at {0} does not answer")]
    Silent(String),
}

impl ApiError {
    /// Returns what this says of the server.
    #[must_use]
    pub fn state(&self) -> ApiState {
        match self {
            // What will not mend itself.
            Self::Access(_)
            | Self::OtherAuthority { .. }
            | Self::Untrusted { .. }
            | Self::Unauthorized(_)
            | Self::Forbidden { .. } => ApiState::Refuses,
            Self::NotFound(_) | Self::Exists | Self::Gone => ApiState::Answers,
            Self::Name { .. }
            | Self::Unreachable { .. }
            | Self::Failed(_)
            | Self::Malformed(_)
            | Self::Silent(_) => ApiState::Silent,
        }
    }

    /// Returns whether the server has taken the caller for who it is.
    #[must_use]
    pub fn knows_caller(&self) -> bool {
        match self {
            Self::Forbidden { .. } | Self::NotFound(_) | Self::Exists | Self::Gone => true,
            Self::Access(_)
            | Self::OtherAuthority { .. }
            | Self::Untrusted { .. }
            | Self::Unauthorized(_)
            | Self::Name { .. }
            | Self::Unreachable { .. }
            | Self::Failed(_)
            | Self::Malformed(_)
            | Self::Silent(_) => false,
        }
    }

    /// Makes the error of an answer that is none of success.
    pub(crate) fn of_status(
        code: u16,
        body: &[u8],
        what: &str,
        target: &Target,
        caller: &'static str,
    ) -> Self {
        let status: Status = serde_json::from_slice(body).unwrap_or_default();
        let message = match status.message.is_empty() {
            true => format!("it answered {code}"),
            false => status.message,
        };
        match code {
            401 => Self::Unauthorized(unauthorized(target, caller)),
            403 => Self::Forbidden { caller, what: what.to_owned(), message },
            404 => Self::NotFound(message),
            409 => Self::Exists,
            410 => Self::Gone,
            _ => Self::Failed(message),
        }
    }

    /// Makes the error of a connection that failed in its handshake.
    pub(crate) fn of_handshake(error: &io::Error, address: String, target: &Target) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let Some(rustls::Error::InvalidCertificate(why)) = inner else {
            return Self::Unreachable { address, why: error.to_string() };
        };
        let why = match why {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                let source_file = target.source.display().to_string();
                return Self::OtherAuthority { address, source_file };
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("its certificate is not for {}", target.host)
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired, or this host's clock is wrong".to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet, or this host's clock is wrong".to_owned()
            }
            other => other.to_string(),
        };
        Self::Untrusted { address, why }
    }
}

/// Says why the server may not know who asks.
fn unauthorized(target: &Target, caller: &str) -> String {
    let source = target.source.display();
    let refused = format!("the API server does not take this {caller}'s credentials");
    let now = OffsetDateTime::now_utc();
    match target.token.as_ref().map(|token| token.expires) {
        Some(Some(expires)) if expires <= now.unix_timestamp() => {
            let at =
                OffsetDateTime::from_unix_timestamp(expires).ok().and_then(|at| at.format(&Rfc3339).ok());
            let at = at.unwrap_or_else(|| "long ago".to_owned());
            format!("{refused}: the token of {source} expired at {at} and was not replaced")
        }
        Some(_) => {
            format!("{refused}: the token of {source} has expired or was revoked, or is another cluster's")
        }
        None => {
            format!("{refused}: the client certificate of {source} has expired or is another cluster's")
        }
    }
}
