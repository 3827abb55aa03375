//! TLS to the broker: whom we trust, who we say we are, and what went wrong in words.
//!
//! By rustls with ring, both named here: nothing is installed for the whole process. With certificates of CAs of the
//! options' own only these are trusted, else those of the system; the name in the broker's certificate is always
//! checked. The files are read at each connection, so certificates are renewed by putting new ones in their place.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt as _;

use super::url::AmqpTls;

/// Reads the files and puts them together; the problem names the file.
pub(super) fn config(tls: &AmqpTls) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let unusable = |error: rustls::Error| format!("TLS cannot be set up: {error}");
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let builder = match &tls.ca_file {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path, "ca_file")? {
                let added = roots.add(certificate);
                added.map_err(|error| format!("ca_file {}: {error}", path.display()))?;
            }
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = verifier.build();
            let verifier =
                verifier.map_err(|error| format!("ca_file {}: {error}", path.display()))?;
            builder.with_webpki_verifier(verifier)
        }
        None => builder.with_platform_verifier().map_err(|error| {
            format!(
                "the system's certificates cannot be used, name the broker's CA in ca_file: {error}"
            )
        })?,
    };
    match &tls.identity {
        None => Ok(builder.with_no_client_auth()),
        Some((cert_file, key_file)) => {
            let chain = certificates(cert_file, "cert_file")?;
            let key = PrivateKeyDer::from_pem_file(key_file)
                .map_err(|error| unreadable("key_file", key_file, &error, "private key"))?;
            let (cert, key_path) = (cert_file.display(), key_file.display());
            builder.with_client_auth_cert(chain, key).map_err(|error| {
                format!("cert_file {cert} and key_file {key_path} do not go together: {error}")
            })
        }
    }
}

fn certificates(path: &PathBuf, key: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed =
        |error: rustls::pki_types::pem::Error| unreadable(key, path, &error, "certificate");
    let read = CertificateDer::pem_file_iter(path).map_err(failed)?;
    let certificates: Vec<_> = read.collect::<Result<_, _>>().map_err(failed)?;
    if certificates.is_empty() {
        return Err(format!("{key} {}: no certificate in PEM is in it", path.display()));
    }
    Ok(certificates)
}

/// Repeats nothing of the file.
fn unreadable(
    key: &str,
    path: &Path,
    error: &rustls::pki_types::pem::Error,
    wanted: &str,
) -> String {
    use rustls::pki_types::pem::Error;
    let path = path.display();
    match error {
        Error::Io(error) => format!("{key} {path}: cannot be read: {error}"),
        Error::NoItemsFound => format!("{key} {path}: no {wanted} in PEM is in it"),
        _ => format!("{key} {path}: it is no PEM"),
    }
}

/// What an error of TLS means and what to do about it; `None` if it is none.
pub(super) fn explained(error: &(dyn std::error::Error + 'static), host: &str) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(in_words(error, host));
        }
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn in_words(error: &rustls::Error, host: &str) -> String {
    use rustls::Error;
    let remedy = match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "its certificate is of no CA that is trusted here: name its CA's certificate in ca_file".to_owned()
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => format!("its certificate is not for {host:?}: put a name that it is for into the url"),
        Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "its certificate has expired: renew it".to_owned(),
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "its certificate is not valid yet: look at the clocks".to_owned(),
        Error::InvalidCertificate(_) => "its certificate is not accepted".to_owned(),
        Error::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure,
        ) => "it asks for a certificate of ours, or has no cipher in common: name one in cert_file and key_file".to_owned(),
        Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRevoked
            | AlertDescription::AccessDenied,
        ) => "it does not accept our certificate, of cert_file".to_owned(),
        Error::InvalidMessage(_) => "it does not speak TLS on this port".to_owned(),
        _ => return format!("TLS: {error}"),
    };
    format!("TLS: {remedy} ({error})")
}
