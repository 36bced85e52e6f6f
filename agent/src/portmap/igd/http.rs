//! The little HTTP that a router is asked with: one request per connection, to the router's own address.
//!
//! No redirect is followed, what is longer than [`MAX_BODY`] is refused, and each exchange has one deadline.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, StatusCode, body::Bytes, header};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::{
    super::{policy::Failure, router::Router},
    Target,
};

/// Longest answer, in bytes: descriptions of real routers have some ten thousand.
const MAX_BODY: usize = 64 << 10;
/// Most bytes of an answer's head.
const MAX_HEAD: usize = 16 << 10;
/// How long an exchange may take: small routers take a second to write a mapping down.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there was no good answer.
#[derive(Debug, thiserror::Error)]
enum HttpError {
    #[error("no connection: {0}")]
    Unreachable(#[from] std::io::Error),
    #[error("not HTTP: {0}")]
    Hyper(#[from] hyper::Error),
    #[error("the request cannot be written: {0}")]
    Request(#[from] hyper::http::Error),
    #[error("the body: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("the answer is {0}")]
    Status(StatusCode),
    #[error("the answer is no text")]
    Encoding,
}

/// Gets a document.
pub(super) async fn get(router: Router, target: &Target) -> Result<String, Failure> {
    let request = Request::get(&target.path);
    let (status, text) = exchange(router, target, request, String::new()).await?;
    if status == StatusCode::OK { Ok(text) } else { Err(failure(&HttpError::Status(status))) }
}

/// Posts a SOAP request, and returns the answer or the fault.
pub(super) async fn post(
    router: Router,
    target: &Target,
    action: &str,
    body: String,
) -> Result<String, Failure> {
    let request = Request::post(&target.path)
        .header(header::CONTENT_TYPE, "text/xml; charset=\"utf-8\"")
        .header("SOAPAction", action);
    let (status, text) = exchange(router, target, request, body).await?;
    match status {
        // Faults come as 500 (UPnP Device Architecture 1.1, section 3.2.5).
        StatusCode::OK | StatusCode::INTERNAL_SERVER_ERROR => Ok(text),
        other => Err(failure(&HttpError::Status(other))),
    }
}

async fn exchange(
    router: Router,
    target: &Target,
    request: hyper::http::request::Builder,
    body: String,
) -> Result<(StatusCode, String), Failure> {
    let exchange = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind((router.local, 0).into())?;
        let stream = socket.connect((router.gateway, target.port).into()).await?;
        let host = format!("{}:{}", router.gateway, target.port);
        let request = request
            .header(header::HOST, host)
            .header(header::CONNECTION, "close")
            .body(Full::new(Bytes::from(body)))?;
        talk(stream, request).await
    };
    match timeout(PATIENCE, exchange).await {
        Ok(answer) => answer.map_err(|error: HttpError| failure(&error)),
        Err(_) => Err(Failure::Silent),
    }
}

async fn talk(stream: TcpStream, request: Request<Full<Bytes>>) -> Result<(StatusCode, String), HttpError> {
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await?;
    let answer = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_BODY).collect().await.map_err(HttpError::Body)?;
        let text = String::from_utf8(body.to_bytes().to_vec()).map_err(|_| HttpError::Encoding)?;
        Ok((status, text))
    };
    let connection = async {
        // Its errors show in the answer, too.
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        answer = answer => answer,
        () = connection => unreachable!("it never ends"),
    }
}

fn failure(error: &HttpError) -> Failure {
    tracing::debug!(%error, "UPnP");
    match error {
        HttpError::Unreachable(_) => Failure::Silent,
        HttpError::Hyper(_)
        | HttpError::Request(_)
        | HttpError::Body(_)
        | HttpError::Status(_)
        | HttpError::Encoding => Failure::Garbage,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    const ROUTER: Router = Router { gateway: Ipv4Addr::LOCALHOST, local: Ipv4Addr::LOCALHOST };

    /// Asks a server that answers with this, and then closes.
    async fn ask(answer: Vec<u8>) -> Result<String, Failure> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let target = Target { port: listener.local_addr().unwrap().port(), path: "/x".to_owned() };
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let len = stream.read(&mut request).await.unwrap();
            // The client may have heard enough.
            let _ = stream.write_all(&answer).await;
            String::from_utf8(request[..len].to_vec()).unwrap()
        });
        let answer = get(ROUTER, &target).await;
        assert!(server.await.unwrap().starts_with("GET /x HTTP/1.1\r\n"));
        answer
    }

    fn ok(body: &str) -> Vec<u8> {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    #[tokio::test]
    async fn documents_are_got_whole_or_not_at_all() {
        assert_eq!(ask(ok("<a/>")).await.as_deref(), Ok("<a/>"));
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n<a\r\n2\r\n/>\r\n0\r\n\r\n";
        assert_eq!(ask(chunked.to_vec()).await.as_deref(), Ok("<a/>"));
        assert_eq!(ask(ok(&"x".repeat(MAX_BODY))).await.map(|text| text.len()), Ok(MAX_BODY));
        assert_eq!(ask(ok(&"x".repeat(MAX_BODY + 1))).await, Err(Failure::Garbage));
        let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(4 * MAX_BODY));
        assert_eq!(ask(endless.into_bytes()).await, Err(Failure::Garbage));
        let head = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(4 * MAX_HEAD));
        assert_eq!(ask(head.into_bytes()).await, Err(Failure::Garbage));
        assert_eq!(ask(b"SSH-2.0-x\r\n".to_vec()).await, Err(Failure::Garbage));
        assert_eq!(ask(Vec::new()).await, Err(Failure::Garbage));
    }

    #[tokio::test]
    async fn redirects_are_not_followed() {
        let elsewhere = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}/", elsewhere.local_addr().unwrap());
        let answer = format!("HTTP/1.1 302 Found\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(ask(answer.into_bytes()).await, Err(Failure::Garbage));
        assert!(timeout(Duration::from_millis(50), elsewhere.accept()).await.is_err());
    }
}
