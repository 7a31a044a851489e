//! The Identity service: what the driver is, and whether it is ready.

use tonic::{Request, Response, Status};
use weightd_proto::csi::{
    self,
    identity_server::Identity as Service,
    plugin_capability::{Service as Offered, Type, service},
};

use crate::{DRIVER, agent::Agent, calls::Calls};

/// The Identity service.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) agent: Agent,
    pub(crate) calls: Calls,
}

#[tonic::async_trait]
impl Service for Identity {
    async fn get_plugin_info(
        &self,
        _: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        let info = csi::GetPluginInfoResponse {
            name: DRIVER.to_owned(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        };
        self.calls.answer("GetPluginInfo", "", async { Ok(info) }).await
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<csi::GetPluginCapabilitiesResponse>, Status> {
        let offered = Offered { r#type: service::Type::ControllerService.into() };
        let capabilities = vec![csi::PluginCapability { r#type: Some(Type::Service(offered)) }];
        let answer = csi::GetPluginCapabilitiesResponse { capabilities };
        self.calls.answer("GetPluginCapabilities", "", async { Ok(answer) }).await
    }

    /// Ready when the agent is.
    async fn probe(&self, _: Request<csi::ProbeRequest>) -> Result<Response<csi::ProbeResponse>, Status> {
        let ready = async { Ok(csi::ProbeResponse { ready: Some(self.agent.reach().await.is_ok()) }) };
        self.calls.answer("Probe", "", ready).await
    }
}
