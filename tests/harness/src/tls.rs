//! A certificate authority for one test.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};

/// Files of a server that speaks TLS on loopback.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The authority's certificate, PEM: what clients must trust (`SSL_CERT_FILE`).
    pub ca: PathBuf,
    /// The server's certificate, PEM, for `127.0.0.1` and `localhost`.
    pub certificate: PathBuf,
    /// The server's private key, PEM.
    pub key: PathBuf,
}

impl Tls {
    /// Makes an authority and a server certificate in `directory`.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn create(directory: &Path) -> Result<Self> {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        authority.distinguished_name.push(rcgen::DnType::CommonName, "weightd test authority");
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let mut server = CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()])?;
        // Python 3.13 and later refuse a certificate that does not say whose key signed it.
        server.use_authority_key_identifier_extension = true;
        let server = server.signed_by(&key, &authority)?;

        let files = Self::at(directory);
        fs::write(&files.ca, authority.pem())?;
        fs::write(&files.certificate, server.pem())?;
        fs::write(&files.key, key.serialize_pem())?;
        Ok(files)
    }

    /// Where they are in `directory`, made or not.
    pub(crate) fn at(directory: &Path) -> Self {
        Self {
            ca: directory.join("ca.pem"),
            certificate: directory.join("server.pem"),
            key: directory.join("server.key"),
        }
    }
}
