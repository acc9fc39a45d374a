//! The socket through which a machine of fly.io asks its host for a token about itself.

use std::io;
use std::path::Path;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use secrecy::SecretString;
use serde_json::json;
use tokio::net::UnixStream;

use super::claims::AUDIENCE;
use super::fault::{Class, Fault};
use super::token::TOKEN_BYTES_MAX;

/// What the socket answers when asked for a token for AWS. Takes as long as it takes: the caller
/// has the bound.
pub(super) async fn ask(path: &Path) -> Result<SecretString, Fault> {
    let shown = path.display();
    let stream = UnixStream::connect(path).await.map_err(|error| unconnected(&error, path))?;
    let broken = |error: hyper::Error| {
        Fault::new(Class::SocketRefused, format!("the machine socket broke off: {error}: path=`{shown}`"))
    };
    let (mut sender, connection): (SendRequest<Full<Bytes>>, _) =
        handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let body = json!({ "aud": AUDIENCE }).to_string();
    let request = Request::post("/v1/tokens/oidc")
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::from(body.into_bytes()))
        .expect("constants make a request");
    let answered = async {
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        if !status.is_success() {
            let class = if status.is_server_error() { Class::SocketRefused } else { Class::SocketAnswer };
            return Err(Fault::new(class, format!("the machine socket answers {status}: path=`{shown}`")));
        }
        let bytes = Limited::new(answer.into_body(), TOKEN_BYTES_MAX as usize).collect().await;
        let bytes = bytes.map_err(|error| {
            Fault::new(
                Class::SocketAnswer,
                format!("the machine socket's answer cannot be read: {error}: path=`{shown}`"),
            )
        })?;
        let text = String::from_utf8(bytes.to_bytes().into()).map_err(|_| {
            Fault::new(Class::SocketAnswer, format!("the machine socket's answer is no text: path=`{shown}`"))
        })?;
        Ok(text.into())
    };
    tokio::pin!(answered);
    tokio::select! {
        answered = &mut answered => answered,
        // What was received before the connection ended, and what went wrong on it, is told there.
        _ = connection => answered.await,
    }
}

fn unconnected(error: &io::Error, path: &Path) -> Fault {
    let shown = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => {
            Fault::new(Class::SocketAbsent, format!("there is no machine socket: path=`{shown}`"))
        }
        io::ErrorKind::PermissionDenied => Fault::new(
            Class::SocketDenied,
            format!(
                "the machine socket is for root only, and it is made at boot, so no image can change that: start \
                 lifeboat as root and let the application drop its rights: path=`{shown}`"
            ),
        ),
        _ => Fault::new(
            Class::SocketRefused,
            format!("connect to the machine socket: {error}: path=`{shown}`"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_for_root_only_is_explained() {
        let fault = unconnected(&io::ErrorKind::PermissionDenied.into(), Path::new("/.fly/api"));
        assert_eq!(fault.class, Class::SocketDenied);
        assert!(fault.text.contains("root") && fault.text.contains("path=`/.fly/api`"), "{}", fault.text);
    }
}
