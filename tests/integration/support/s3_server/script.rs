//! What goes wrong: rules that strike chosen requests before, after or instead of the real answer.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Mutex;
use std::time::Duration;

use axum::http::HeaderMap;
use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use s3s::dto::StreamingBlob;
use s3s::service::S3Service;
use s3s::stream::DynByteStream;
use s3s::{Body, HttpResponse};

#[derive(Default)]
pub(super) struct Script {
    pub(super) rules: Vec<Rule>,
    pub(super) log: Vec<String>,
    pub(super) headers: Vec<HeaderMap>,
    /// What every answer says the time is.
    pub(super) date: Option<String>,
    /// Strikes every other time that the same request comes, in one of so many shares of them.
    pub(super) alternating: Option<(Fault, usize, usize)>,
    /// How many requests came that were not repeated.
    fresh: usize,
    /// What each listing was answered with the last time.
    listings: HashMap<String, Bytes>,
}

pub(super) struct Rule {
    /// Any, if empty.
    pub(super) method: &'static str,
    pub(super) target: &'static str,
    /// How many matching requests pass before this strikes.
    pub(super) after: usize,
    /// How many it strikes then.
    pub(super) times: usize,
    pub(super) fault: Fault,
}

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// Answered with this status and error code, and not done.
    Status(u16, &'static str),
    /// The connection is cut before the request was read to its end; not done.
    Reset,
    /// Done, and the connection is cut instead of an answer.
    Unanswered,
    /// Never answered, and not done.
    Silence,
    /// Answered with 200 and an error in the body, and not done.
    ErrorInside200,
    /// Answered with 200 and a page of somebody in between, and not done.
    ForeignPage,
    /// Done, but the answer's body is cut short.
    Cut,
    /// Done, but the answer's body is half as long, and its headers agree.
    Halved,
    /// Done, and the answer's body comes in this many pieces, each after this time.
    Trickle(usize, Duration),
    /// A listing is answered as the same one was the last time; with nothing if there was none.
    Stale,
}

pub(super) type Answer = Result<HttpResponse, Box<dyn std::error::Error + Send + Sync>>;

pub(super) async fn answer(
    service: &S3Service,
    script: &Mutex<Script>,
    request: hyper::Request<Incoming>,
) -> Answer {
    let mut answer = answer_undated(service, script, request).await?;
    if let Some(date) = &script.lock().expect("not poisoned").date {
        answer.headers_mut().insert("date", date.parse().expect("a header"));
    }
    Ok(answer)
}

async fn answer_undated(
    service: &S3Service,
    script: &Mutex<Script>,
    request: hyper::Request<Incoming>,
) -> Answer {
    let fault = script.lock().expect("not poisoned").next(&request);
    match fault {
        None => act(service, script, request).await,
        Some(Fault::Status(status, code)) => Ok(error_page(status, code)),
        Some(Fault::ErrorInside200) => Ok(error_page(200, "InternalError")),
        Some(Fault::ForeignPage) => {
            Ok(HttpResponse::new(Body::from("<html>please sign in</html>".to_owned())))
        }
        Some(Fault::Reset) => {
            let mut body = Body::from(request.into_body());
            let _ = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
            Err("cut".into())
        }
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::Unanswered) => {
            act(service, script, request).await?;
            Err("cut".into())
        }
        Some(Fault::Cut) => {
            let beginning = stream::iter([Ok(Bytes::from_static(b"?")), Err(std::io::Error::other("cut"))]);
            Ok(act(service, script, request).await?.map(|_| streamed(beginning)))
        }
        Some(Fault::Halved) => {
            let (mut head, body) = collected(act(service, script, request).await?).await?;
            let half = body.slice(..body.len() / 2);
            head.headers_mut().insert("content-length", half.len().into());
            Ok(head.map(|()| Body::from(half)))
        }
        Some(Fault::Trickle(pieces, wait)) => {
            let (head, body) = collected(act(service, script, request).await?).await?;
            let step = body.len().div_ceil(pieces).max(1);
            let pieces: Vec<Bytes> = body.chunks(step).map(Bytes::copy_from_slice).collect();
            let slow = stream::iter(pieces).then(move |piece| async move {
                tokio::time::sleep(wait).await;
                Ok(piece)
            });
            Ok(head.map(|()| streamed(Box::pin(slow))))
        }
        Some(Fault::Stale) => {
            let target = request.uri().to_string();
            let before = script.lock().expect("not poisoned").listings.get(&target).cloned();
            let nothing =
                "<?xml version=\"1.0\"?><ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>";
            let mut page = HttpResponse::new(Body::from(before.unwrap_or_else(|| nothing.into())));
            page.headers_mut().insert("content-type", "application/xml".parse().expect("valid"));
            Ok(page)
        }
    }
}

async fn act(service: &S3Service, script: &Mutex<Script>, request: hyper::Request<Incoming>) -> Answer {
    let target = request.uri().to_string();
    let answer = service.call(request.map(Body::from)).await.map_err(|error| format!("{error:?}"))?;
    if !target.contains("list-type=2") || !answer.status().is_success() {
        return Ok(answer);
    }
    let (head, body) = collected(answer).await?;
    script.lock().expect("not poisoned").listings.insert(target, body.clone());
    Ok(head.map(|()| Body::from(body)))
}

async fn collected(
    answer: HttpResponse,
) -> Result<(axum::http::Response<()>, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    let (parts, body) = answer.into_parts();
    let body = BodyExt::collect(body).await.map_err(|error| format!("{error:?}"))?.to_bytes();
    Ok((axum::http::Response::from_parts(parts, ()), body))
}

fn streamed(
    pieces: impl futures::Stream<Item = std::io::Result<Bytes>> + Send + Sync + Unpin + 'static,
) -> Body {
    Body::from(DynByteStream::from(StreamingBlob::wrap(pieces)))
}

fn error_page(status: u16, code: &str) -> HttpResponse {
    // S3 quotes what it was sent beside its message.
    let text = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>scripted</Message>\
         <Token-0>session-token-quoted</Token-0><StringToSign>not-a-secret</StringToSign></Error>"
    );
    let mut page = HttpResponse::new(Body::from(text));
    *page.status_mut() = status.try_into().expect("a status");
    page.headers_mut().insert("content-type", "application/xml".parse().expect("valid"));
    if status == 301 || code == "AuthorizationHeaderMalformed" {
        page.headers_mut().insert("x-amz-bucket-region", "eu-north-1".parse().expect("valid"));
    }
    if matches!(status, 429 | 503) {
        page.headers_mut().insert("retry-after", "1".parse().expect("valid"));
    }
    page
}

impl Script {
    fn next(&mut self, request: &hyper::Request<Incoming>) -> Option<Fault> {
        let (method, target) = (request.method().as_str(), request.uri().to_string());
        let line = format!("{method} {target}");
        let is_repeated = self.log.iter().filter(|earlier| **earlier == line).count() % 2 == 1;
        self.log.push(line);
        self.headers.push(request.headers().clone());
        if let Some((fault, share, shares)) = self.alternating {
            self.fresh += usize::from(!is_repeated);
            return Some(fault).filter(|_| !is_repeated && self.fresh % shares == share);
        }
        let matching = |rule: &&mut Rule| {
            rule.times > 0
                && (rule.method.is_empty() || rule.method == method)
                && target.contains(rule.target)
        };
        let rule = self.rules.iter_mut().find(matching)?;
        if rule.after > 0 {
            rule.after -= 1;
            return None;
        }
        rule.times -= 1;
        Some(rule.fault)
    }
}
