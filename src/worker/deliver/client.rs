//! The HTTP client that all targets share, and with it one connection pool.
//!
//! Takes no proxy from the environment and follows no redirect: where messages go is in the configuration, or
//! nowhere. With the feature `tls` it speaks TLS by rustls with ring and the system's certificates, named here and
//! not found by chance: no process-wide provider is needed or installed.

use std::time::Duration;

use reqwest::Client;

/// How long a connection may take to open, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[cfg(feature = "tls")]
    #[error("the system's certificates cannot be used")]
    Certificates(#[source] rustls::Error),
    #[error("no http client can be made")]
    Build(#[source] reqwest::Error),
}

/// Makes the client; one a process is enough.
///
/// # Errors
///
/// With the feature `tls`, if the system has no certificates: install its `ca-certificates`.
pub(crate) fn http_client() -> Result<Client, ClientError> {
    let builder = Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .connect_timeout(CONNECT_TIMEOUT)
        .user_agent(concat!("onceward/", env!("CARGO_PKG_VERSION")));
    #[cfg(feature = "tls")]
    let builder = builder.tls_backend_preconfigured(tls().map_err(ClientError::Certificates)?);
    builder.build().map_err(ClientError::Build)
}

#[cfg(feature = "tls")]
fn tls() -> Result<rustls::ClientConfig, rustls::Error> {
    use rustls_platform_verifier::BuilderVerifierExt as _;
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_platform_verifier()?
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
