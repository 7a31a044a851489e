//! How a command reaches an agent.

use weightd_client::Client;

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
