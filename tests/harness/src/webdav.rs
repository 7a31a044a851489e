//! WsgiDAV over cheroot: WebDAV, and a plain HTTP server that we did not write.

use std::path::PathBuf;

use crate::{
    process::{Program, Server, Unready},
    tools,
};

/// A running WebDAV server over a directory. Files put there are served at once.
#[derive(Debug)]
pub struct WebDavServer {
    server: Server,
    root: PathBuf,
}

impl WebDavServer {
    /// Starts one over an empty directory.
    ///
    /// # Errors
    /// When it is not installed, or does not come up.
    pub async fn start() -> Result<Self, Unready> {
        let path = tools::python_program("wsgidav")?;
        let failed = |error: std::io::Error| Unready::failed("wsgidav", &error);
        let directory = tempfile::tempdir().map_err(failed)?;
        let root = directory.path().join("root");
        std::fs::create_dir(&root).map_err(failed)?;
        let mut args: Vec<_> =
            ["--host", "127.0.0.1", "--port", "{0}", "--auth", "anonymous", "--server", "cheroot"]
                .map(Into::into)
                .into();
        args.extend(["--no-config".into(), "--root".into(), root.clone().into_os_string()]);
        let program = Program { name: "wsgidav", path, args, ports: 1, env: vec![] };
        Ok(Self { server: Server::start(&program, directory).await?, root })
    }

    /// The URL of the directory, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.server.port(0))
    }

    /// The directory that is served.
    pub fn root(&self) -> &std::path::Path {
        &self.root
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use reqwest::{Method, StatusCode};

    use super::*;
    use crate::{require, serve};

    #[tokio::test]
    async fn files_are_listed_and_read_in_ranges_of_one_version() {
        let dav = require!(WebDavServer::start().await);
        fs::create_dir(dav.root().join("m")).unwrap();
        fs::write(dav.root().join("m/x.bin"), "0123456789").unwrap();
        let client = serve::client();
        let propfind = Method::from_bytes(b"PROPFIND").unwrap();
        let listing = client.request(propfind, format!("{}/m/", dav.url())).header("depth", "1");
        assert!(listing.send().await.unwrap().text().await.unwrap().contains("/m/x.bin"));

        let url = format!("{}/m/x.bin", dav.url());
        let etag = client.head(&url).send().await.unwrap().headers()["etag"].clone();
        let get = || client.get(&url).header("range", "bytes=2-4").header("if-match", etag.clone());
        let answer = get().send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(answer.text().await.unwrap(), "234");
        // Its etags have a resolution of one second.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        fs::write(dav.root().join("m/x.bin"), "9876543210").unwrap();
        assert_eq!(get().send().await.unwrap().status(), StatusCode::PRECONDITION_FAILED);
    }
}
