//! Requests, one connection each.

use std::sync::Arc;

use hyper::Request;
use kube::core::request;
use serde::de::DeserializeOwned;

use super::{
    access::{Access, Target},
    connection::{Exchange, exchange},
    error::ApiError,
};

/// Longest answer that is no watch, in bytes.
const MAX_ANSWER: usize = 4 << 20;

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// What it is called in sentences for people: `agent`.
    pub name: &'static str,
    /// What it is called in the API server's audit log: `mesh-agent/1.2.3`.
    pub user_agent: &'static str,
}

/// Asks the API server.
#[derive(Debug)]
pub struct Client {
    access: Access,
    caller: Caller,
}

impl Client {
    /// Makes a client with these credentials.
    #[must_use]
    pub fn new(access: Access, caller: Caller) -> Self {
        Self { access, caller }
    }

    /// Returns where the server is asked, as far as the credentials say.
    pub async fn address(&mut self) -> Option<String> {
        self.access.target().await.ok().map(|target| target.address())
    }

    /// Asks, and reads the whole answer; `what` is what the request does, to end the sentence "is not permitted to".
    ///
    /// # Errors
    /// When there is no answer of success, or it makes no sense.
    pub async fn ask<T: DeserializeOwned>(
        &mut self,
        request: Result<Request<Vec<u8>>, request::Error>,
        what: &str,
    ) -> Result<T, ApiError> {
        let (exchange, target) = self.exchange(request, what).await?;
        let body = exchange.body(MAX_ANSWER, &target.address()).await?;
        serde_json::from_slice(&body).map_err(|error| ApiError::Malformed(error.to_string()))
    }

    /// Asks, and returns an answer of success whose body is still coming.
    ///
    /// # Errors
    /// When there is no answer of success.
    pub async fn exchange(
        &mut self,
        request: Result<Request<Vec<u8>>, request::Error>,
        what: &str,
    ) -> Result<(Exchange, Arc<Target>), ApiError> {
        let request = request.map_err(|error| ApiError::Malformed(error.to_string()))?;
        let target = self.access.target().await?;
        let exchange = exchange(request, &target, &self.caller).await?;
        if (200..300).contains(&exchange.code) {
            return Ok((exchange, target));
        }
        let code = exchange.code;
        let body = exchange.body(MAX_ANSWER, &target.address()).await?;
        Err(ApiError::of_status(code, &body, what, &target, self.caller.name))
    }
}
