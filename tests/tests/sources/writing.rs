//! Objects that weightd writes itself, to a server that tells parts of them from the whole.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;
use weightd_harness::{BucketServer, Fault, FaultProxy, Wire};

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

    // All of it came, in the length of two requests, and nobody said that it is the end.
    let mut given_up = origins.upload(&uri("gs://models/other"), 64 << 20).await.unwrap();
    for at in 0..64 {
        given_up.write(pieces[at % PIECES].clone()).await.unwrap();
    }
    sleep(Duration::from_millis(500)).await;
    drop(given_up);
    sleep(Duration::from_millis(100)).await;
    assert!(server.stat("models", "other").await.is_err());

    for (name, count) in [("nothing", 0), ("exact", 32), ("two", 64)] {
        let mut upload = origins.upload(&uri(&format!("gs://models/{name}")), count << 20).await.unwrap();
        for _ in 0..count {
            upload.write(pieces[7].clone()).await.unwrap();
        }
        upload.finish().await.unwrap();
        assert_eq!(server.stat("models", name).await.unwrap().size, count << 20, "{name}");
    }
}

#[tokio::test]
async fn an_upload_whose_connections_break_goes_on_where_it_was() {
    let server = BucketServer::start().await.unwrap();
    server.create_bucket("models").await.unwrap();
    let wire = Wire::start(&server.endpoint()).await.unwrap();
    let origins = gcs_origins(wire.url());
    let pieces: Vec<Bytes> = (0..PIECES).map(|at| vec![u8::try_from(at).unwrap(); 1 << 20].into()).collect();
    // In the first request: before anything of it has come, within a part that is kept, and near its end; and in the last.
    for (at, (times, after)) in
        [(2, 1000), (2, 5_000_000), (1, 33_000_000), (2, 100), (2, 7_900_000)].into_iter().enumerate()
    {
        let image = uri(&format!("gs://models/images/{at}"));
        let mut upload = origins.upload(&image, (PIECES << 20) as u64).await.unwrap();
        for (number, piece) in pieces.iter().enumerate() {
            // The end goes on the way when it is said: until then nothing of the last request is sent.
            let is_last_request = at > 2;
            if number == if is_last_request { PIECES - 1 } else { 0 } {
                wire.break_uploads(times, after);
            }
            upload.write(piece.clone()).await.unwrap();
        }
        upload.finish().await.unwrap();
        assert_eq!(wire.breaks_left(), 0, "{after}");
        let written = server.download("models", &format!("images/{at}")).await.unwrap();
        assert!(written == pieces.concat(), "{after}");
    }
}

#[tokio::test]
async fn an_upload_goes_to_whom_it_was_begun_with_and_fails_at_once_where_that_is_final() {
    let server = BucketServer::start().await.unwrap();
    server.create_bucket("models").await.unwrap();
    // It says of itself that uploads go on at its own address: nothing passes there.
    let proxy = FaultProxy::start(&server.endpoint()).await.unwrap();
    let origins = gcs_origins(&proxy.url());
    let later = Fault::Status { code: 503, retry_after: None };
    proxy.inject("GET /storage/v1/b/models/o/m", 1, later);
    proxy.inject("POST /upload", 1, later);
    proxy.inject("PUT /upload", 2, later);
    let bytes = Bytes::from_static(b"0123456789");
    let mut upload = origins.upload(&uri("gs://models/m"), 10).await.unwrap();
    upload.write(bytes.clone()).await.unwrap();
    upload.finish().await.unwrap();
    assert_eq!(server.download("models", "m").await.unwrap(), bytes);

    for (status, kind) in [(404, "refused"), (403, "denied"), (412, "refused"), (400, "protocol")] {
        let image = uri(&format!("gs://models/{status}"));
        let mut upload = origins.upload(&image, 10).await.unwrap();
        proxy.inject("PUT /upload", 1, Fault::Status { code: status, retry_after: None });
        upload.write(bytes.clone()).await.unwrap();
        let error = upload.finish().await.unwrap_err();
        assert_eq!(error.kind(), kind, "{status}: {error}");
        assert!(error.to_string().contains(&image.to_string()), "{error}");
    }

    let mut short = origins.upload(&uri("gs://models/short"), 11).await.unwrap();
    short.write(bytes.clone()).await.unwrap();
    let error = short.finish().await.unwrap_err().to_string();
    assert!(error.contains("11 bytes") && error.contains("10 came"), "{error}");
    let mut long = origins.upload(&uri("gs://models/long"), 9).await.unwrap();
    let error = long.write(bytes).await.unwrap_err().to_string();
    assert!(error.contains("9 bytes") && error.contains("10 came"), "{error}");
}
