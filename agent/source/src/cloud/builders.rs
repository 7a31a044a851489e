//! Stores from configuration and environment.

use std::{sync::Arc, time::Duration};

use object_store::{
    ClientOptions, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey, resolve_bucket_region},
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
    http::{HttpBuilder, HttpStore},
};
use weightd_types::{Scheme, SourceUri};

use super::{
    Connector, error,
    profile::{Profile, ProfileKeys},
};
use crate::{Credential, S3Keys, SourceError, answer::chain, config::Settings, web::confined_client};

/// How long a server may stay silent. The fetch room notices slow bodies long before; this ends listings.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// What of the environment says where an S3 bucket is, and nothing of who asks.
const PLACES: [AmazonS3ConfigKey; 6] = [
    AmazonS3ConfigKey::Region,
    AmazonS3ConfigKey::DefaultRegion,
    AmazonS3ConfigKey::Endpoint,
    AmazonS3ConfigKey::S3Endpoint,
    AmazonS3ConfigKey::VirtualHostedStyleRequest,
    AmazonS3ConfigKey::UnsignedPayload,
];

/// The store that holds a source of `s3://` or `az://`.
pub(crate) async fn open(
    settings: &Settings,
    uri: &SourceUri,
    credential: &Credential,
) -> Result<Arc<dyn ObjectStore>, SourceError> {
    match uri.scheme() {
        Scheme::S3 => s3(settings, uri, credential).await,
        _ => azure(settings, uri, credential),
    }
}

/// The server of an `http://` or `https://` source.
pub(crate) fn web(
    settings: &Settings,
    origin: &str,
    credential: &Credential,
) -> Result<HttpStore, SourceError> {
    let options = client_options(settings).with_allow_http(true);
    let builder = HttpBuilder::new()
        .with_url(origin)
        .with_client_options(options)
        .with_retry(no_retries())
        .with_http_connector(connector(settings, origin, credential)?);
    builder.build().map_err(|error| misconfigured(origin, &error))
}

/// Whoever asks as someone in particular is led astray by no redirect.
fn connector(settings: &Settings, what: &str, credential: &Credential) -> Result<Connector, SourceError> {
    let confined = |addresses| confined_client(settings.connect_timeout, what, addresses);
    Ok(Connector { confined: credential.redirects().map(confined).transpose()? })
}

async fn s3(
    settings: &Settings,
    uri: &SourceUri,
    credential: &Credential,
) -> Result<Arc<dyn ObjectStore>, SourceError> {
    let is_node = *credential == Credential::Node;
    let options = client_options(settings);
    let mut builder = AmazonS3Builder::new()
        .with_client_options(options.clone())
        .with_bucket_name(uri.authority())
        .with_retry(no_retries())
        .with_http_connector(connector(settings, &uri.to_string(), credential)?);
    for (name, value) in settings.environment.beginning("AWS_") {
        if let Ok(key) = name.parse::<AmazonS3ConfigKey>()
            && (is_node || PLACES.contains(&key))
        {
            builder = builder.with_config(key, value);
        }
    }
    for (key, value) in [
        (AmazonS3ConfigKey::S3Endpoint, settings.s3.endpoint.clone()),
        (AmazonS3ConfigKey::Region, settings.s3.region.clone()),
        (AmazonS3ConfigKey::SkipSignature, settings.s3.anonymous.map(|anonymous| anonymous.to_string())),
    ] {
        if let Some(value) = value {
            builder = builder.with_config(key, value);
        }
    }
    let value = |builder: &AmazonS3Builder, key| builder.get_config_value(&key);
    builder = match credential {
        Credential::S3(keys) => with_keys(builder, keys),
        Credential::Node => builder,
        _ => builder.with_skip_signature(true),
    };
    builder = with_profile(settings, uri, builder, is_node).await?;
    let endpoint = value(&builder, AmazonS3ConfigKey::S3Endpoint)
        .or_else(|| value(&builder, AmazonS3ConfigKey::Endpoint));
    if endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://")) {
        builder = builder.with_allow_http(true);
    }
    if endpoint.is_none() && value(&builder, AmazonS3ConfigKey::Region).is_none() {
        builder = builder.with_region(region(uri, &options).await?);
    }
    let store = builder.build().map_err(|error| misconfigured(&uri.to_string(), &error))?;
    Ok(Arc::new(store))
}

fn with_keys(builder: AmazonS3Builder, keys: &S3Keys) -> AmazonS3Builder {
    let mut builder = builder
        .with_skip_signature(false)
        .with_access_key_id(&keys.access_key_id)
        .with_secret_access_key(keys.secret_access_key.reveal());
    if let Some(token) = &keys.session_token {
        builder = builder.with_token(token.reveal());
    }
    match &keys.region {
        Some(region) => builder.with_region(region),
        None => builder,
    }
}

/// Takes from the profile what neither the configuration nor the environment says; its keys are the node's.
async fn with_profile(
    settings: &Settings,
    uri: &SourceUri,
    mut builder: AmazonS3Builder,
    is_node: bool,
) -> Result<AmazonS3Builder, SourceError> {
    let profile = Profile::read(&settings.environment).await?;
    let has = |builder: &AmazonS3Builder, keys: &[AmazonS3ConfigKey]| {
        keys.iter().any(|key| builder.get_config_value(key).is_some())
    };
    if let Some(region) = profile.get("region").filter(|_| !has(&builder, &[AmazonS3ConfigKey::Region])) {
        builder = builder.with_region(region);
    }
    let endpoints = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint];
    if let Some(endpoint) = profile.get("endpoint_url").filter(|_| !has(&builder, &endpoints)) {
        builder = builder.with_endpoint(endpoint);
    }
    let identities = [AmazonS3ConfigKey::AccessKeyId, AmazonS3ConfigKey::WebIdentityTokenFile];
    let is_anonymous = builder.get_config_value(&AmazonS3ConfigKey::SkipSignature).as_deref() == Some("true");
    if is_node
        && !is_anonymous
        && !has(&builder, &identities)
        && let Some(keys) = profile.keys(&uri.to_string())?
    {
        builder = builder.with_credentials(Arc::new(ProfileKeys::new(&settings.environment, keys)));
    }
    Ok(builder)
}

/// Asks Amazon where a bucket is.
async fn region(uri: &SourceUri, options: &ClientOptions) -> Result<String, SourceError> {
    resolve_bucket_region(uri.authority(), options).await.map_err(|error| {
        let detail = chain(&error);
        if detail.contains("not found") {
            return error::no_bucket(uri);
        }
        let cause = format!("{detail}; set source.s3.region if it is known").into();
        SourceError::Unavailable { what: uri.to_string(), cause, retry_after: None }
    })
}

fn azure(
    settings: &Settings,
    uri: &SourceUri,
    credential: &Credential,
) -> Result<Arc<dyn ObjectStore>, SourceError> {
    let is_node = *credential == Credential::Node;
    let mut builder = MicrosoftAzureBuilder::new()
        .with_client_options(client_options(settings))
        .with_container_name(uri.authority())
        .with_retry(no_retries())
        .with_http_connector(connector(settings, &uri.to_string(), credential)?);
    for (name, value) in settings.environment.beginning("AZURE_") {
        let is_place =
            |key: &AzureConfigKey| matches!(key, AzureConfigKey::AccountName | AzureConfigKey::Endpoint);
        if let Ok(key) = name.parse::<AzureConfigKey>()
            && (is_node || is_place(&key))
        {
            builder = builder.with_config(key, value);
        }
    }
    let flag = |flag: Option<bool>| flag.map(|flag| flag.to_string());
    for (key, value) in [
        (AzureConfigKey::AccountName, settings.azure.account.clone()),
        (AzureConfigKey::Endpoint, settings.azure.endpoint.clone()),
        (AzureConfigKey::UseEmulator, flag(settings.azure.emulator)),
        (AzureConfigKey::SkipSignature, flag(if is_node { settings.azure.anonymous } else { Some(true) })),
    ] {
        if let Some(value) = value {
            builder = builder.with_config(key, value);
        }
    }
    let endpoint = builder.get_config_value(&AzureConfigKey::Endpoint);
    if endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")) {
        builder = builder.with_allow_http(true);
    }
    let store = builder.build().map_err(|error| no_account(uri, &error))?;
    Ok(Arc::new(store))
}

fn no_account(uri: &SourceUri, error: &object_store::Error) -> SourceError {
    let what = uri.to_string();
    let detail = chain(error);
    if detail.contains("Account must be specified") {
        let why = "the storage account is not known: set source.azure.account or AZURE_STORAGE_ACCOUNT_NAME";
        return SourceError::Configuration { what, why: why.to_owned() };
    }
    misconfigured(&what, error)
}

fn misconfigured(what: &str, error: &object_store::Error) -> SourceError {
    SourceError::Configuration { what: what.to_owned(), why: chain(error) }
}

fn client_options(settings: &Settings) -> ClientOptions {
    // The library's own limit is for a whole request, body included: 30 seconds would cut every large range.
    ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(settings.connect_timeout)
        .with_read_timeout(READ_TIMEOUT)
}

fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}
