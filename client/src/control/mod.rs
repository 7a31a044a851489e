//! The control socket: what operators, the CSI driver and `weightctl` ask the agent for, by gRPC.

mod connect;
mod error;

use tonic::{Response, Status, Streaming, transport::Channel};
use weightd_proto::{MAX_MESSAGE_BYTES, v1};

pub use error::{ConnectError, Error};

/// Where the agent listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/weightd/weightd.sock";

/// A connection to one agent. Clones share it.
#[derive(Debug, Clone)]
pub struct Client {
    rpc: v1::weights_client::WeightsClient<Channel>,
    volumes: v1::volumes_client::VolumesClient<Channel>,
}

/// What a call that reports along the way sends.
#[derive(Debug)]
pub struct Events<T> {
    stream: Streaming<T>,
}

impl<T> Events<T> {
    /// The next event; `None` after the last. Dropping this before then tells the agent that nobody waits.
    ///
    /// # Errors
    /// When the call failed, or the agent went away.
    pub async fn next(&mut self) -> Result<Option<T>, Error> {
        Ok(self.stream.message().await?)
    }
}

impl Client {
    /// Connects to the agent that listens on `socket`.
    ///
    /// # Errors
    /// [`Error::Connect`] says what is wrong with the socket.
    pub async fn connect(socket: &std::path::Path) -> Result<Self, Error> {
        Ok(Self::from_channel(connect::channel(socket).await?))
    }

    /// A client of the agent that listens on `socket` whenever one does: for programs that outlive agents. A call while
    /// none is there fails at once with [`Error::Lost`]. Needs a tokio runtime.
    pub fn lazy(socket: &std::path::Path) -> Self {
        Self::from_channel(connect::lazy(socket))
    }

    /// A client of whatever is at the other end of `channel`: an agent in this process, for example.
    pub fn from_channel(channel: Channel) -> Self {
        let rpc = v1::weights_client::WeightsClient::new(channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let volumes =
            v1::volumes_client::VolumesClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        Self { rpc, volumes }
    }

    /// Brings a source's snapshot into the store.
    ///
    /// # Errors
    /// [`Error`], as every call.
    pub async fn prefetch(&self, request: v1::PrefetchRequest) -> Result<Events<v1::PrefetchEvent>, Error> {
        events(self.rpc.clone().prefetch(request).await)
    }

    /// Says what a prefetch would take.
    ///
    /// # Errors
    /// [`Error`], as every call.
    pub async fn resolve(&self, request: v1::ResolveRequest) -> Result<v1::ResolveResponse, Error> {
        answer(self.rpc.clone().resolve(request).await)
    }

    /// Lists the snapshots of the store.
    ///
    /// # Errors
    /// [`Error`], as every call.
    pub async fn list(&self) -> Result<Vec<v1::SnapshotInfo>, Error> {
        Ok(answer(self.rpc.clone().list(v1::ListRequest {}).await)?.snapshots)
    }

    /// One snapshot with its objects.
    ///
    /// # Errors
    /// [`Error`], as every call.
    pub async fn get(&self, request: v1::GetRequest) -> Result<v1::GetResponse, Error> {
        answer(self.rpc.clone().get(request).await)
    }

    /// Transfers in flight, and the store's use of its disk.
    ///
    /// # Errors
    /// [`Error`], as every call.
    pub async fn status(&self) -> Result<v1::StatusResponse, Error> {
        answer(self.rpc.clone().status(v1::StatusRequest {}).await)
    }

    /// Never evict.
    ///
    /// # Errors
    /// [`Error`], as every call.
    pub async fn pin(&self, request: v1::PinRequest) -> Result<v1::PinResponse, Error> {
        answer(self.rpc.clone().pin(request).await)
    }

    /// Evict when room is needed.
    ///
    /// # Errors
    /// [`Error`], as every call.
    pub async fn unpin(&self, request: v1::UnpinRequest) -> Result<v1::UnpinResponse, Error> {
        answer(self.rpc.clone().unpin(request).await)
    }

    /// Says which models the node is to have, and learns how they stand.
    ///
    /// # Errors
    /// [`Error`], as every call.
    pub async fn set_wanted(&self, request: v1::SetWantedRequest) -> Result<v1::SetWantedResponse, Error> {
        answer(self.rpc.clone().set_wanted(request).await)
    }

    /// Removes snapshots that nobody uses.
    ///
    /// # Errors
    /// [`Error`], as every call.
    pub async fn remove(&self, request: v1::RemoveRequest) -> Result<v1::RemoveResponse, Error> {
        answer(self.rpc.clone().remove(request).await)
    }

    /// Removes what no snapshot needs.
    ///
    /// # Errors
    /// [`Error`], as every call.
    pub async fn collect_garbage(
        &self,
        request: v1::CollectGarbageRequest,
    ) -> Result<v1::CollectGarbageResponse, Error> {
        answer(self.rpc.clone().collect_garbage(request).await)
    }

    /// Shows a source's snapshot at a directory.
    ///
    /// # Errors
    /// [`Error`], as every call.
    pub async fn publish(&self, request: v1::PublishRequest) -> Result<v1::PublishResponse, Error> {
        answer(self.volumes.clone().publish(request).await)
    }

    /// Takes a volume away; says whether there was one.
    ///
    /// # Errors
    /// [`Error`], as every call.
    pub async fn unpublish(&self, target_path: String) -> Result<bool, Error> {
        let request = v1::UnpublishRequest { target_path };
        Ok(answer(self.volumes.clone().unpublish(request).await)?.was_published)
    }

    /// Sizes of one volume.
    ///
    /// # Errors
    /// [`Error`], as every call.
    pub async fn volume_stats(&self, target_path: String) -> Result<v1::StatsResponse, Error> {
        answer(self.volumes.clone().stats(v1::StatsRequest { target_path }).await)
    }

    /// Volumes, and what went wrong with them lately.
    ///
    /// # Errors
    /// [`Error`], as every call.
    pub async fn list_volumes(&self) -> Result<v1::ListVolumesResponse, Error> {
        answer(self.volumes.clone().list_volumes(v1::ListVolumesRequest {}).await)
    }

    /// Reads stored chunks and checks them.
    ///
    /// # Errors
    /// [`Error`], as every call.
    pub async fn verify(&self, request: v1::VerifyRequest) -> Result<Events<v1::VerifyEvent>, Error> {
        events(self.rpc.clone().verify(request).await)
    }
}

fn answer<T>(response: Result<Response<T>, Status>) -> Result<T, Error> {
    Ok(response?.into_inner())
}

fn events<T>(response: Result<Response<Streaming<T>>, Status>) -> Result<Events<T>, Error> {
    Ok(Events { stream: answer(response)? })
}
