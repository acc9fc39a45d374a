//! How requests to AWS go over the wire: what is in clear goes straight to its host, what would carry an identity
//! elsewhere does not go, and no answer is read without end.

use aws_sdk_s3::primitives::SdkBody;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use http_body_util::Limited;
use hyper::Uri;

use crate::config::is_loopback;

/// More of an answer that is no object is not read, in bytes. The longest is a page of a listing:
/// 1,000 keys of 1 KiB, each character of them up to six in XML.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// What AWS's own domains end in, in every partition.
const DOMAINS: [&str; 9] = [
    "amazonaws.com",
    "amazonaws.com.cn",
    "api.aws",
    "api.amazonwebservices.com.cn",
    "amazonaws.eu",
    "c2s.ic.gov",
    "sc2s.sgov.gov",
    "cloud.adc-e.uk",
    "csp.hci.ic.gov",
];

/// Whom a client may send what proves an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peers {
    /// The endpoint was chosen by us.
    Chosen,
    /// The SDK chooses, by variables and profiles that may be about another store.
    AwsOnly,
}

/// Refused: an identity would have gone to this host.
#[derive(Debug, thiserror::Error)]
#[error(
    "AWS_ENDPOINT_URL, or endpoint_url of a profile, would carry an identity to a host that is not the token service \
     of AWS: set AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE instead of a role in the profile: host=`{0}`"
)]
pub(super) struct Elsewhere(String);

/// A client for one session.
pub(super) fn client(peers: Peers) -> SharedHttpClient {
    let tls = || Provider::Rustls(CryptoMode::AwsLc);
    let proxied = Builder::new().build_with_connector_fn(move |settings, components| {
        let mut builder = Connector::builder().tls_provider(tls()).proxy_config(ProxyConfig::from_env());
        builder.set_connector_settings(settings.cloned());
        builder.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
        builder.build()
    });
    SharedHttpClient::new(Client { peers, direct: Builder::new().tls_provider(tls()).build_https(), proxied })
}

#[derive(Debug)]
struct Client {
    peers: Peers,
    direct: SharedHttpClient,
    proxied: SharedHttpClient,
}

#[derive(Debug)]
struct Wire {
    peers: Peers,
    direct: SharedHttpConnector,
    proxied: SharedHttpConnector,
}

impl HttpClient for Client {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(Wire {
            peers: self.peers,
            direct: self.direct.http_connector(settings, components),
            proxied: self.proxied.http_connector(settings, components),
        })
    }
}

impl HttpConnector for Wire {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let uri: Uri = match request.uri().parse() {
            Ok(uri) => uri,
            Err(error) => return HttpConnectorFuture::ready(Err(ConnectorError::user(Box::new(error)))),
        };
        // The only service that the SDK's providers of credentials send anything to is STS.
        if self.peers == Peers::AwsOnly && request.method() == "POST" && !is_sts(&uri) {
            let refusal = Elsewhere(uri.host().unwrap_or_default().to_owned());
            return HttpConnectorFuture::ready(Err(ConnectorError::user(Box::new(refusal))));
        }
        let answer = if goes_straight(&uri) { &self.direct } else { &self.proxied }.call(request);
        HttpConnectorFuture::new(async move {
            let answer = answer.await?;
            if is_object(&uri) && answer.status().is_success() {
                // Whoever asks for an object counts its bytes.
                return Ok(answer);
            }
            Ok(answer.map(|body| SdkBody::from_body_1_x(Limited::new(body, ANSWER_BYTES_MAX))))
        })
    }
}

/// A proxy is handed no request that it could read.
fn goes_straight(uri: &Uri) -> bool {
    uri.scheme_str() != Some("https") || is_loopback(uri)
}

/// Nobody but AWS can be given a name of this form below its domains.
fn is_sts(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    let is_of = |domain: &str| {
        let rest = host.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.'));
        let labels: Vec<&str> = rest.unwrap_or_default().split('.').collect();
        matches!(labels[..], ["sts" | "sts-fips"] | ["sts" | "sts-fips", _])
    };
    uri.scheme_str() == Some("https") && DOMAINS.into_iter().any(is_of)
}

/// Keys are escaped in a URL, so none can look like this.
fn is_object(uri: &Uri) -> bool {
    uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "x-id=GetObject"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().expect("a URL")
    }

    #[test]
    fn the_token_service_is_known_by_its_name() {
        for host in [
            "sts.amazonaws.com",
            "sts.eu-north-1.amazonaws.com",
            "sts-fips.us-east-1.amazonaws.com",
            "sts.cn-north-1.amazonaws.com.cn",
            "sts.eu-north-1.api.aws",
        ] {
            assert!(is_sts(&uri(&format!("https://{host}/"))), "{host}");
            assert!(!is_sts(&uri(&format!("http://{host}/"))), "{host} in clear");
        }
        for host in [
            "fly.storage.tigris.dev",
            "sts.amazonaws.com.example",
            "notamazonaws.com",
            "sts.notamazonaws.com",
            "bucket.s3.amazonaws.com",
            "sts.x.execute-api.amazonaws.com",
            "amazonaws.com",
        ] {
            assert!(!is_sts(&uri(&format!("https://{host}/"))), "{host}");
        }
    }

    #[test]
    fn only_what_is_sealed_goes_through_a_proxy() {
        assert!(!goes_straight(&uri("https://sts.amazonaws.com/")));
        for text in ["http://minio.internal:9000/x", "http://169.254.170.2/v2", "https://127.0.0.1:5000/"] {
            assert!(goes_straight(&uri(text)), "{text}");
        }
    }

    #[test]
    fn an_object_is_told_from_an_answer() {
        assert!(is_object(&uri("https://b.s3.amazonaws.com/k?x-id=GetObject")));
        assert!(!is_object(&uri(
            "https://b.s3.amazonaws.com/x-id=GetObject?list-type=2&prefix=x-id%3DGetObject"
        )));
    }
}
