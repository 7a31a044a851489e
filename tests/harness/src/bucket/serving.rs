//! Connections. Each is served here and not by axum, because each has a pace of its own.

use std::{convert::Infallible, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use axum::body::Body;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::sleep,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

use super::{
    answer::Shared,
    shape::{Line, Pace, Shape},
};
use crate::tls::Tls;

/// How long nobody is let in after someone could not be: connections have to end first.
const FULL: Duration = Duration::from_millis(10);

/// A listener and its connections, ended when dropped.
#[derive(Debug)]
pub(super) struct Accepting(JoinHandle<()>);

impl Accepting {
    pub(super) fn start(
        listener: TcpListener,
        tls: Option<TlsAcceptor>,
        shape: Shape,
        shared: Arc<Shared>,
    ) -> Self {
        Self(tokio::spawn(accept(listener, tls, shape, shared)))
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What speaks TLS with a server's certificate.
///
/// # Errors
/// When its files cannot be read.
pub(super) fn acceptor(tls: &Tls) -> Result<TlsAcceptor> {
    let certificates = CertificateDer::pem_file_iter(&tls.certificate)
        .and_then(Iterator::collect)
        .with_context(|| format!("reading {}", tls.certificate.display()))?;
    let key =
        PrivateKeyDer::from_pem_file(&tls.key).with_context(|| format!("reading {}", tls.key.display()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config).into())
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shape: Shape, shared: Arc<Shared>) {
    let host = Arc::new(Pace::new(shape.per_host));
    // They end with it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let line = Line::new(&shape, Arc::clone(&host), Arc::clone(&shared.sent));
                    connections.spawn(connect(stream, tls.clone(), Arc::new(line), Arc::clone(&shared)));
                }
                Err(_) => sleep(FULL).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(stream: TcpStream, tls: Option<TlsAcceptor>, line: Arc<Line>, shared: Arc<Shared>) {
    // Slower without, and no less right.
    let _ = stream.set_nodelay(true);
    match tls {
        None => serve(stream, line, shared).await,
        // A client that does not trust the certificate has gone.
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                serve(stream, line, shared).await;
            }
        }
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    line: Arc<Line>,
    shared: Arc<Shared>,
) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (line, shared) = (Arc::clone(&line), Arc::clone(&shared));
        async move { Ok::<_, Infallible>(shared.answer(request.map(Body::new), &line).await) }
    });
    // Clients break off when they have what they want.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}
