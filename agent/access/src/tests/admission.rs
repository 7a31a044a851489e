//! What a pod is let in by, and what ends that.

use std::sync::Arc;

use super::{Manner, Notes, Origin, admit, hub, uri, with_hub_token};
use crate::{Access, AccessError, Admission, Config, Pod};

fn access(notes: &Arc<Notes>, config: Config) -> Access {
    Access::new(Arc::new(Origin(Arc::clone(notes))), config)
}

/// Whether an earlier answer counts for a pod while the origin is away.
async fn counts(access: &Access, notes: &Notes, pod: &Pod) -> bool {
    notes.answer(Manner::Away);
    matches!(admit(access, pod, "hf://o/n").await, Ok(Admission::Earlier { .. }))
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_shows_a_pod_nothing_any_more_ends_what_it_granted() {
    let notes = Notes::new(&[hub("mine"), hub("other")]);
    let access = access(&notes, Config::default());
    let (mine, other) = (with_hub_token("mine"), with_hub_token("other"));
    for pod in [&mine, &other] {
        admit(&access, pod, "hf://o/n").await.unwrap();
    }
    assert!(counts(&access, &notes, &mine).await);
    notes.answer(Manner::Hides);
    notes.welcome(&[hub("other")]);
    let error = admit(&access, &mine, "hf://o/n").await.unwrap_err();
    assert!(matches!(&error, AccessError::Resolve(error) if error.kind() == "not_found"), "{error}");
    assert!(!counts(&access, &notes, &mine).await, "it was shown what is here");
    assert!(counts(&access, &notes, &other).await);
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_while_fetching_is_not_shown_what_is_here_either() {
    for manner in [Manner::Refuses, Manner::Hides] {
        let notes = Notes::new(&[hub("mine"), hub("other")]);
        let access = access(&notes, Config::default());
        let (mine, other) = (with_hub_token("mine"), with_hub_token("other"));
        let _other = admit(&access, &other, "hf://o/n").await.unwrap();
        let _mine = admit(&access, &mine, "hf://o/n").await.unwrap();
        assert!(counts(&access, &notes, &mine).await);
        notes.answer(manner);
        notes.welcome(&[hub("other")]);
        access.opener().open(&uri("hf://o/n")).await.unwrap().list().await.unwrap();
        assert!(!counts(&access, &notes, &mine).await, "{manner:?}");
        assert!(counts(&access, &notes, &other).await, "{manner:?}");
    }
}
