//! How kubelet learns of the driver: it watches a directory for sockets, asks each who it is, and says whether it took it.

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use weightd_proto::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
    registration_server::Registration as Service,
};

use crate::DRIVER;

/// The name of the socket in kubelet's directory, where any will do.
///
/// kubelet names no host when it calls, so Go's gRPC takes the socket's path for one and sends it percent-encoded. HTTP
/// servers in Rust refuse a `%` in a host. Before an `@` it is allowed: there it is not the host, but who asks.
pub(crate) fn socket_name() -> String {
    format!("{DRIVER}@reg.sock")
}

/// Whether kubelet has taken the driver, for whoever wants to know.
#[derive(Debug, Clone)]
pub(crate) struct Registered {
    state: watch::Sender<bool>,
    gauge: Gauge,
}

impl Registered {
    pub(crate) fn new(gauge: Gauge) -> Self {
        Self { state: watch::Sender::new(false), gauge }
    }

    pub(crate) fn set(&self, is_registered: bool) {
        self.gauge.set(is_registered.into());
        self.state.send_replace(is_registered);
    }

    pub(crate) fn is_so(&self) -> bool {
        *self.state.borrow()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<bool> {
        self.state.subscribe()
    }
}

/// The service that kubelet asks.
#[derive(Debug)]
pub(crate) struct Registration {
    /// Where the driver listens, as kubelet sees it.
    pub(crate) endpoint: String,
    pub(crate) registered: Registered,
}

#[tonic::async_trait]
impl Service for Registration {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: DRIVER.to_owned(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec!["1.0.0".to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let RegistrationStatus { plugin_registered, error } = request.into_inner();
        self.registered.set(plugin_registered);
        if plugin_registered {
            tracing::info!(endpoint = self.endpoint, "kubelet has registered the driver");
        } else {
            tracing::error!(error, "kubelet refuses the driver, and asks again when it is restarted");
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use tonic::codegen::http::uri::Authority;

    use super::*;

    #[test]
    fn kubelets_name_for_the_socket_is_one_of_a_host() {
        let encoded = |name: &str| format!("/var/lib/kubelet/plugins_registry/{name}").replace('/', "%2F");
        assert_eq!(encoded(&socket_name()).parse::<Authority>().unwrap().host(), "reg.sock");
        assert!(
            encoded("csi.weightd.io-reg.sock").parse::<Authority>().is_err(),
            "the usual name would do, too"
        );
    }
}
