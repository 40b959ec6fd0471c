//! How the server says no: a status, and a [`Problem`] in its body.

use std::io;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use store::{ErrorKind, StoreError};

use crate::problem::{Kind, Problem, chain};
use crate::server::tokens::TokenError;
use crate::server::vaults::VaultError;

/// Seconds after which a client may come again.
const AGAIN_S: u16 = 5;

/// A request that is not done.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) problem: Problem,
}

pub(crate) type Answer<T> = std::result::Result<T, Refusal>;

impl Refusal {
    pub(crate) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        let kind = match status {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => Kind::Retry,
            StatusCode::CONFLICT => Kind::Fenced,
            status if status.is_client_error() && status != StatusCode::NOT_FOUND => Kind::Usage,
            _ => Kind::Failed,
        };
        let problem = Problem {
            error: error.into(),
            kind,
            hint: None,
        };
        Self { status, problem }
    }

    pub(crate) fn hint(mut self, hint: &str) -> Self {
        self.problem.hint = Some(hint.into());
        self
    }

    pub(crate) fn invalid(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    pub(crate) fn missing(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error)
    }

    pub(crate) fn ending() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the server is about to end",
        )
    }

    /// Something of ours that failed.
    pub(crate) fn failed(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, chain(error))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let again = matches!(
            self.status,
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
        );
        let stranger = self.status == StatusCode::UNAUTHORIZED;
        let mut response = (self.status, Json(self.problem)).into_response();
        if again {
            let seconds = HeaderValue::from(AGAIN_S);
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        if stranger {
            // RFC 9110, 15.5.2.
            let how = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, how);
        }
        response
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        let status = match (&error, error.kind()) {
            // What is sent again as it was meets the same.
            (StoreError::KeysChanged | StoreError::NotEncrypted, _) => StatusCode::CONFLICT,
            (_, ErrorKind::Retry) => StatusCode::SERVICE_UNAVAILABLE,
            (_, ErrorKind::Fenced | ErrorKind::Protected) => StatusCode::CONFLICT,
            (_, ErrorKind::Invalid) => StatusCode::BAD_REQUEST,
            (_, ErrorKind::Full) => StatusCode::INSUFFICIENT_STORAGE,
            (_, ErrorKind::NotFound) => StatusCode::NOT_FOUND,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let problem = Problem {
            error: chain(&error),
            kind: Kind::of_store(&error),
            hint: None,
        };
        Self { status, problem }
    }
}

impl From<VaultError> for Refusal {
    fn from(error: VaultError) -> Self {
        match error {
            VaultError::Store(error) => error.into(),
            VaultError::Unknown(_) => Self::missing(error.to_string()),
            VaultError::Invalid(_) => Self::invalid(error.to_string()),
            VaultError::Busy => Self::new(StatusCode::TOO_MANY_REQUESTS, error.to_string()),
            VaultError::File { .. } => Self::failed(&error),
        }
    }
}

impl From<TokenError> for Refusal {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Unknown(_) => Self::missing(error.to_string()),
            TokenError::Invalid(_) => Self::invalid(error.to_string()),
            TokenError::File { .. } => Self::failed(&error),
        }
    }
}

/// Of an object of a vault.
impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::missing("there is no such object"),
            io::ErrorKind::UnexpectedEof => Self::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "the object ends before that",
            ),
            _ => {
                let mut refusal = Self::failed(&error);
                // What its disk has lost; its reader heals what armor can heal.
                if store::is_damage(&error) {
                    refusal.problem.kind = Kind::Damaged;
                }
                refusal
            }
        }
    }
}
