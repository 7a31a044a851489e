//! An archive in a bucket, without a copy of it here.

use tokio::task::spawn_blocking;
use weightd_fetch::FetchError;
use weightd_source::Origins;
use weightd_store::io::Buffer;
use weightd_types::SourceUri;

use crate::{
    ImageError,
    archive::{Encoder, Plan},
};

/// An archive that is being uploaded.
pub(crate) struct Upload {
    /// `None` while a thread has it.
    encoder: Option<Encoder>,
    upload: weightd_source::Upload,
    archive_bytes: u64,
    /// For messages.
    name: String,
}

impl Upload {
    pub(super) async fn begin(origins: &Origins, uri: &SourceUri, plan: Plan) -> Result<Self, ImageError> {
        let archive_bytes = plan.archive_bytes();
        let upload = origins.upload(uri, archive_bytes).await?;
        Ok(Self { encoder: Some(Encoder::new(plan)), upload, archive_bytes, name: uri.to_string() })
    }

    pub(super) async fn put(&mut self, buffer: Buffer) -> Result<(), ImageError> {
        let Some(mut encoder) = self.encoder.take() else { return Err(FetchError::Closed.into()) };
        let encoded = spawn_blocking(move || {
            let mut out = Vec::with_capacity(buffer.len() + (buffer.len() >> 10) + 4096);
            let outcome = encoder.write(&buffer, &mut out);
            (encoder, outcome.map(|()| out))
        });
        let (encoder, out) = match encoded.await {
            Ok(encoded) => encoded,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => return Err(FetchError::Closed.into()),
        };
        self.encoder = Some(encoder);
        let out = out.map_err(ImageError::encode(self.name.clone()))?;
        Ok(self.upload.write(out.into()).await?)
    }

    pub(super) async fn finish(mut self) -> Result<u64, ImageError> {
        let Some(encoder) = self.encoder.take() else { return Err(FetchError::Closed.into()) };
        let mut out = Vec::new();
        encoder.finish(&mut out).map_err(ImageError::encode(self.name.clone()))?;
        self.upload.write(out.into()).await?;
        self.upload.finish().await?;
        Ok(self.archive_bytes)
    }
}
