//! What a user would take instead, each told to do its best as its own documentation says.

pub(crate) mod fastsafetensors;
pub(crate) mod gcloud;
pub(crate) mod gcsfuse;
pub(crate) mod instanttensor;
pub(crate) mod rclone;
pub(crate) mod runai;
