//! Tests of the service.

use std::sync::Arc;

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Status};
use weightd_access::Access;
use weightd_expose::{Demands, Volumes};
use weightd_fetch::Fetcher;
use weightd_proto::v1::{self, FailureKind, volumes_server::Volumes as _};
use weightd_source::MemoryOrigin;
use weightd_store::Store;

use crate::{Control, Loads};

/// What a pod is answered that wants a volume pinned, of a source at which there is nothing.
async fn pin_nothing(pods_may_pin: bool) -> Status {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::create_dir(at("kubelet")).unwrap();
    let store_config = weightd_store::Config { floor: 0.0, ..weightd_store::Config::new(at("store")) };
    let store = tokio::task::spawn_blocking(|| Store::open(store_config)).await.unwrap().unwrap();
    let access_config = weightd_access::Config {
        kubelet_directory: at("kubelet"),
        pods_may_pin,
        ..weightd_access::Config::default()
    };
    let access = Access::new(Arc::new(MemoryOrigin::new("m")), access_config);
    let fetcher = Fetcher::start(store.clone(), access.opener(), weightd_fetch::Config::default());
    let (tasks, stopping) = (TaskTracker::new(), CancellationToken::new());
    let loads = Arc::new(Loads::new(fetcher.clone(), access.clone(), tasks.clone(), stopping.clone()));
    let demands = Arc::clone(&loads) as Arc<dyn Demands>;
    let volumes = Volumes::new(store, weightd_expose::Config::new(at("volumes")), demands).unwrap();
    let control = Control::new(fetcher, access, volumes, loads, tasks, stopping);
    let request = v1::PublishRequest {
        source: "memory://m/nothing".to_owned(),
        target_path: at("kubelet").join("pods/one/mount").display().to_string(),
        pin: true,
        pod: Some(v1::Pod { name: "one".to_owned(), ..v1::Pod::default() }),
        ..v1::PublishRequest::default()
    };
    control.publish(Request::new(request)).await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_pins_is_refused_unless_the_operator_lets_pods() {
    let refused = pin_nothing(false).await;
    assert_eq!(refused.code(), FailureKind::NotPermitted.code(), "{refused:?}");
    assert!(refused.message().contains("access.pods_may_pin = true"), "{refused:?}");
    let missing = pin_nothing(true).await;
    assert_eq!(missing.code(), FailureKind::NotFound.code(), "{missing:?}");
}
