//! Who may talk to the API server, and how they know it.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use base64::{Engine, prelude::BASE64_STANDARD};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};

use super::place::{API, Place, node_name};

/// Files that the control plane is given.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) authority: PathBuf,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    /// Signs service accounts' tokens, and its public half.
    pub(super) accounts: PathBuf,
    pub(super) accounts_public: PathBuf,
    /// Who has which token.
    pub(super) tokens: PathBuf,
}

/// Makes all of them, and a kubeconfig for the administrator and for each node.
pub(super) fn make(place: &Place, nodes: u8) -> Result<Keys> {
    let at = |name: &str| place.at("keys").join(name);
    fs::create_dir_all(place.at("keys"))?;
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    authority.distinguished_name.push(DnType::CommonName, "weightd test cluster");
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let names = [&API.to_string(), "127.0.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let key = KeyPair::generate()?;
    let server = CertificateParams::new(names.map(str::to_owned))?.signed_by(&key, &authority)?;
    let accounts = KeyPair::generate()?;
    let keys = Keys {
        authority: write(at("ca.pem"), &authority.pem())?,
        certificate: write(at("server.pem"), &server.pem())?,
        key: write(at("server.key"), &key.serialize_pem())?,
        accounts: write(at("accounts.key"), &accounts.serialize_pem())?,
        accounts_public: write(at("accounts.pub"), &accounts.public_key_pem())?,
        tokens: at("tokens.csv"),
    };
    let admin = token()?;
    write(place.admin(), &kubeconfig(&authority.pem(), &admin))?;
    let mut tokens = format!("{admin},admin,admin,system:masters\n");
    for number in 1..=nodes {
        let (name, token) = (node_name(number), token()?);
        write(kubelets(place, number), &kubeconfig(&authority.pem(), &token))?;
        tokens += &format!("{token},system:node:{name},{name},system:nodes\n");
    }
    write(keys.tokens.clone(), &tokens)?;
    Ok(keys)
}

/// The kubeconfig of a node.
pub(super) fn kubelets(place: &Place, number: u8) -> PathBuf {
    place.node(number).join("kubeconfig")
}

fn write(path: PathBuf, text: &str) -> Result<PathBuf> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

fn token() -> Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(hex::encode(bytes))
}

fn kubeconfig(authority: &str, token: &str) -> String {
    let authority = BASE64_STANDARD.encode(authority);
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: weightd\n\
         clusters: [{{name: weightd, cluster: {{server: \"https://{API}\", certificate-authority-data: {authority}}}}}]\n\
         users: [{{name: weightd, user: {{token: \"{token}\"}}}}]\n\
         contexts: [{{name: weightd, context: {{cluster: weightd, user: weightd}}}}]\n"
    )
}
