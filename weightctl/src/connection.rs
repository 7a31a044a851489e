//! How a command reaches an agent.

use std::sync::Arc;

use weightd_client::Client;
use weightd_source::Origins;

use crate::{
    cli::{Embedded, Target},
    error::CommandError,
    progress::AboveBars,
};

/// An agent to talk to.
pub(crate) struct Connection {
    pub(crate) client: Client,
    embedded: Option<weightd::Agent>,
}

impl Connection {
    /// Connects to the agent that listens, or starts one in this process.
    pub(crate) async fn open(target: &Target) -> Result<Self, CommandError> {
        match target {
            Target::Socket(socket) => Ok(Self { client: Client::connect(socket).await?, embedded: None }),
            Target::Embedded(embedded) => embed(embedded).await,
        }
    }

    /// Whether the agent ends with this process.
    pub(crate) fn is_embedded(&self) -> bool {
        self.embedded.is_some()
    }

    /// Lets an agent in this process write down what it has, and end.
    pub(crate) async fn close(self) {
        drop(self.client);
        if let Some(agent) = self.embedded {
            agent.shutdown().await;
        }
    }
}

/// Origins as an agent would have them, for commands that need nothing else of one.
pub(crate) fn origins(target: &Target) -> Result<(Arc<Origins>, weightd_fetch::Config), CommandError> {
    let embedded = match target {
        Target::Embedded(embedded) => embedded,
        Target::Socket(_) => &Embedded::default(),
    };
    // A configuration has a store; these commands do not use it.
    let store = embedded.store.clone().unwrap_or_else(std::env::temp_dir);
    let overrides = weightd::Overrides {
        store: Some(store),
        anonymous: embedded.anonymous,
        user_project: embedded.user_project.clone(),
        log: embedded.log.clone(),
        ..weightd::Overrides::default()
    };
    let config = weightd::Config::load(embedded.config.as_deref(), &overrides)?;
    if embedded.log.is_some() {
        weightd_daemon::logging::init_through(&config.log, || AboveBars);
    }
    Ok((Arc::new(Origins::new(config.source)), config.fetch))
}

async fn embed(embedded: &Embedded) -> Result<Connection, CommandError> {
    let overrides = weightd::Overrides {
        store: embedded.store.clone(),
        anonymous: embedded.anonymous,
        user_project: embedded.user_project.clone(),
        log: embedded.log.clone(),
        ..weightd::Overrides::default()
    };
    let config = weightd::Config::load(embedded.config.as_deref(), &overrides)?;
    if embedded.log.is_some() {
        weightd_daemon::logging::init_through(&config.log, || AboveBars);
    }
    let agent = Box::pin(weightd::Agent::start(config)).await?;
    Ok(Connection { client: Client::from_channel(agent.connect()), embedded: Some(agent) })
}
