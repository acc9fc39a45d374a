//! A server that is somebody, as far as its certificate goes.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Takes connections with the certificate and the key in `file`.
pub(super) fn acceptor(file: &Path) -> TlsAcceptor {
    let chain = CertificateDer::pem_file_iter(file).expect("a certificate");
    let chain = chain.map(|certificate| certificate.expect("a certificate")).collect();
    let key = PrivateKeyDer::from_pem_file(file).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions there are")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("the key of the certificate");
    TlsAcceptor::from(Arc::new(config))
}
