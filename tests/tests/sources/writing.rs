//! Objects that weightd writes itself, to a server that tells parts of them from the whole.

use bytes::Bytes;
use weightd_harness::BucketServer;

use crate::fixtures::{gcs_origins, uri};

/// More than goes into one request.
const PIECES: usize = 40;

#[tokio::test]
async fn a_written_object_is_whole_or_not_there() {
    let server = BucketServer::start().await.unwrap();
    server.create_bucket("models").await.unwrap();
    let origins = gcs_origins(&server.endpoint());
    let image = uri("gs://models/images/m");
    let pieces: Vec<Bytes> = (0..PIECES).map(|at| vec![u8::try_from(at).unwrap(); 1 << 20].into()).collect();
    let mut upload = origins.upload(&image, (PIECES << 20) as u64).await.unwrap();
    let mut late = origins.upload(&image, 1 << 20).await.unwrap();
    for piece in &pieces {
        upload.write(piece.clone()).await.unwrap();
    }
    assert!(server.stat("models", "images/m").await.is_err());
    upload.finish().await.unwrap();
    assert_eq!(server.download("models", "images/m").await.unwrap(), pieces.concat());
    // Whether it was begun before or after the other's end, it was meant for the place of nothing.
    let written = async {
        late.write(pieces[0].clone()).await?;
        late.finish().await
    };
    assert_eq!(written.await.unwrap_err().kind(), "refused");

    let mut given_up = origins.upload(&uri("gs://models/other"), 2 << 20).await.unwrap();
    given_up.write(pieces[0].clone()).await.unwrap();
    drop(given_up);
    assert!(server.stat("models", "other").await.is_err());
}
