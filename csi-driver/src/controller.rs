//! The Controller service: volumes by name, for claims. It keeps no list: a volume's id says which snapshot it shows, so
//! making one is looking the source up, and deleting one is nothing.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use tonic::{Request, Response, Status};
use weightd_proto::{
    csi::{self, controller_server::Controller as Service, validate_volume_capabilities_response::Confirmed},
    v1,
};

use crate::{
    agent::Agent,
    attributes::{Attributes, KUBERNETES},
    calls::Calls,
    capability,
    error::CallError,
    volume_id::VolumeId,
};

/// Longest name of a volume, as the interface has it.
const MAX_NAME_BYTES: usize = 128;
/// Volumes that are remembered.
const REMEMBERED: usize = 1024;

/// The Controller service.
#[derive(Debug)]
pub(crate) struct Controller {
    pub(crate) agent: Agent,
    pub(crate) calls: Calls,
    pub(crate) made: Arc<Mutex<Made>>,
}

/// Volumes that were made lately. The interface wants a name that is used again for something else to be refused; without
/// a list that can be promised only as far back as this goes.
#[derive(Debug, Default)]
pub(crate) struct Made {
    by_name: HashMap<String, Remembered>,
    order: VecDeque<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Remembered {
    id: String,
    range: (i64, i64),
}

impl Controller {
    async fn create(
        &self,
        request: csi::CreateVolumeRequest,
    ) -> Result<csi::CreateVolumeResponse, CallError> {
        check(&request)?;
        let attributes = Attributes::parse(&request.parameters)?;
        let range = request.capacity_range.unwrap_or_default();
        let asked = v1::ResolveRequest {
            source: attributes.source.clone(),
            layout: attributes.layout.into(),
            selection: None,
        };
        let found = self.agent.resolve(asked).await?;
        if range.limit_bytes > 0 && found.total_bytes > range.limit_bytes.unsigned_abs() {
            let (bytes, limit) = (found.total_bytes, range.limit_bytes);
            return Err(CallError::TooLarge { source_uri: attributes.source, bytes, limit });
        }
        // What Kubernetes says of the claim is not part of what the volume is.
        let own: BTreeMap<&String, &String> =
            request.parameters.iter().filter(|(key, _)| !key.starts_with(KUBERNETES)).collect();
        let id = VolumeId::new(&found.snapshot_id, attributes.layout, &request.name, &own)
            .map_err(|_| CallError::Defect(format!("{:?} is no snapshot's id", found.snapshot_id)))?
            .to_string();
        self.remember(&request.name, &id, (range.required_bytes, range.limit_bytes))?;
        let volume_context = own.iter().map(|(key, value)| ((*key).clone(), (*value).clone())).collect();
        // A claim must ask for some size, and takes no less: a volume that can only be read has as much as anyone wants.
        let bytes = i64::try_from(found.total_bytes).unwrap_or(i64::MAX).max(range.required_bytes);
        let volume = csi::Volume { capacity_bytes: bytes, volume_id: id, volume_context };
        Ok(csi::CreateVolumeResponse { volume: Some(volume) })
    }

    /// Whether the name is free, or the very same volume's.
    fn remember(&self, name: &str, id: &str, range: (i64, i64)) -> Result<(), CallError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let new = Remembered { id: id.to_owned(), range };
        match made.by_name.get(name) {
            Some(known) if *known == new => return Ok(()),
            Some(_) => return Err(CallError::AlreadyMade { name: name.to_owned() }),
            None => {}
        }
        made.order.push_back(name.to_owned());
        made.by_name.insert(name.to_owned(), new);
        while made.order.len() > REMEMBERED {
            if let Some(oldest) = made.order.pop_front() {
                made.by_name.remove(&oldest);
            }
        }
        Ok(())
    }

    fn delete(&self, request: &csi::DeleteVolumeRequest) -> Result<csi::DeleteVolumeResponse, CallError> {
        if request.volume_id.is_empty() {
            return Err(CallError::Missing { what: "the volume's id" });
        }
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let Made { by_name, order } = &mut *made;
        by_name.retain(|_, known| known.id != request.volume_id);
        order.retain(|name| by_name.contains_key(name));
        Ok(csi::DeleteVolumeResponse {})
    }

    fn validate(
        request: csi::ValidateVolumeCapabilitiesRequest,
    ) -> Result<csi::ValidateVolumeCapabilitiesResponse, CallError> {
        if request.volume_id.is_empty() {
            return Err(CallError::Missing { what: "the volume's id" });
        }
        if request.volume_capabilities.is_empty() {
            return Err(CallError::Missing { what: "the list of capabilities" });
        }
        if request.volume_id.parse::<VolumeId>().is_err() {
            return Err(CallError::NoSuchVolume { id: request.volume_id.chars().take(200).collect() });
        }
        let refused = request.volume_capabilities.iter().find_map(|one| capability::check(Some(one)).err());
        let message = refused.map_or_else(String::new, |error| error.to_string());
        let confirmed = message.is_empty().then_some(Confirmed {
            volume_context: request.volume_context,
            volume_capabilities: request.volume_capabilities,
            parameters: request.parameters,
        });
        Ok(csi::ValidateVolumeCapabilitiesResponse { confirmed, message })
    }

    fn capabilities() -> csi::ControllerGetCapabilitiesResponse {
        use csi::controller_service_capability::{Rpc, Type, rpc};
        let kind = Some(Type::Rpc(Rpc { r#type: rpc::Type::CreateDeleteVolume.into() }));
        csi::ControllerGetCapabilitiesResponse {
            capabilities: vec![csi::ControllerServiceCapability { r#type: kind }],
        }
    }
}

fn check(request: &csi::CreateVolumeRequest) -> Result<(), CallError> {
    if request.name.is_empty() || request.name.len() > MAX_NAME_BYTES {
        return Err(CallError::Missing { what: "a name of 1 to 128 bytes" });
    }
    if request.volume_capabilities.is_empty() {
        return Err(CallError::Missing { what: "the list of capabilities" });
    }
    for one in &request.volume_capabilities {
        capability::check(Some(one))?;
    }
    if request.volume_content_source.is_some() { Err(CallError::ContentSource) } else { Ok(()) }
}

#[tonic::async_trait]
impl Service for Controller {
    async fn create_volume(
        &self,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Result<Response<csi::CreateVolumeResponse>, Status> {
        let request = request.into_inner();
        let name = request.name.clone();
        self.calls.answer("CreateVolume", &name, self.create(request)).await
    }

    async fn delete_volume(
        &self,
        request: Request<csi::DeleteVolumeRequest>,
    ) -> Result<Response<csi::DeleteVolumeResponse>, Status> {
        let request = request.get_ref();
        self.calls.answer("DeleteVolume", &request.volume_id, async { self.delete(request) }).await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<csi::ValidateVolumeCapabilitiesResponse>, Status> {
        let request = request.into_inner();
        let id = request.volume_id.clone();
        self.calls.answer("ValidateVolumeCapabilities", &id, async { Self::validate(request) }).await
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<csi::ControllerGetCapabilitiesResponse>, Status> {
        self.calls.answer("ControllerGetCapabilities", "", async { Ok(Self::capabilities()) }).await
    }
}
