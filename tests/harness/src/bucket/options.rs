//! How a bucket server runs: as a value, and as arguments of `test-bucket`.

use std::{ffi::OsString, net::IpAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};

use super::Shape;

/// How a bucket server runs. By default: plain HTTP on any port of 127.0.0.1, as fast as it can, and empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BucketOptions {
    /// Clients must speak TLS, with a certificate that is made in this directory.
    pub tls: Option<PathBuf>,
    /// How slow it is.
    pub shape: Shape,
    /// Whether requests are kept, to look at. Not where there are millions of them.
    pub log: bool,
    /// The address of this machine that it listens on, where that is another: pods do not reach loopback.
    pub address: Option<IpAddr>,
    /// The port it listens on.
    pub port: Option<u16>,
    /// What is in it before the first request is answered.
    pub place: Vec<Placed>,
}

/// A directory whose files are objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The bucket, which is made.
    pub bucket: String,
    /// What the objects' names begin with, without the slash that follows.
    pub prefix: String,
    /// Where the files are.
    pub directory: PathBuf,
}

impl BucketOptions {
    /// Reads the arguments of `test-bucket`.
    ///
    /// # Errors
    /// When one of them is not understood.
    pub fn from_arguments(arguments: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut options = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(name) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{name} wants a value"))?;
            options.set(&name, &value).with_context(|| format!("{name} {value} is not understood"))?;
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        match name {
            "--place" => self.place.push(Placed::parse(value)?),
            "--tls" => self.tls = Some(value.into()),
            "--first-byte" => self.shape.first_byte = duration(value)?,
            "--per-connection" => self.shape.per_connection = Some(value.parse()?),
            "--per-host" => self.shape.per_host = Some(value.parse()?),
            "--listen" => self.address = Some(value.parse()?),
            "--port" => self.port = Some(value.parse()?),
            _ => bail!("there is no such option"),
        }
        Ok(())
    }

    /// The arguments that say the same. The log of another process cannot be looked at.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let mut arguments = Vec::new();
        let mut add = |name: &str, value: OsString| arguments.extend([name.into(), value]);
        for placed in &self.place {
            let mut value = OsString::from(format!("gs://{}/{}=", placed.bucket, placed.prefix));
            value.push(&placed.directory);
            add("--place", value);
        }
        if let Some(directory) = &self.tls {
            add("--tls", directory.into());
        }
        if !self.shape.first_byte.is_zero() {
            add("--first-byte", format!("{}ms", self.shape.first_byte.as_millis()).into());
        }
        for (name, rate) in
            [("--per-connection", self.shape.per_connection), ("--per-host", self.shape.per_host)]
        {
            if let Some(rate) = rate {
                add(name, rate.to_string().into());
            }
        }
        if let Some(address) = self.address {
            add("--listen", address.to_string().into());
        }
        if let Some(port) = self.port {
            add("--port", port.to_string().into());
        }
        arguments
    }
}

impl Placed {
    /// Reads `gs://BUCKET/PREFIX=DIRECTORY`.
    fn parse(text: &str) -> Result<Self> {
        let (uri, directory) = text.split_once('=').context("write gs://BUCKET/PREFIX=DIRECTORY")?;
        let place = uri.strip_prefix("gs://").context("it begins with gs://")?;
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let prefix = prefix.trim_end_matches('/').to_owned();
        Ok(Self { bucket: bucket.to_owned(), prefix, directory: directory.into() })
    }
}

/// Reads `50ms` or `2s`.
fn duration(text: &str) -> Result<Duration> {
    if let Some(milliseconds) = text.strip_suffix("ms") {
        return Ok(Duration::from_millis(milliseconds.parse()?));
    }
    Ok(Duration::from_secs(text.strip_suffix('s').context("write 50ms or 2s")?.parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<BucketOptions> {
        BucketOptions::from_arguments(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_are_the_same_as_arguments() {
        let line = "--place gs://models/a/b=/m/1 --place gs://models/=/m/2 --tls /certificates --first-byte 50ms \
                    --per-connection 150 --per-host 1250 --listen 198.18.0.1 --port 99";
        let options = read(line).unwrap();
        assert_eq!(options.place[0].prefix, "a/b");
        assert_eq!(options.place[1].directory, PathBuf::from("/m/2"));
        assert_eq!(options.shape.first_byte, Duration::from_millis(50));
        let written = options.arguments().into_iter().map(|argument| argument.into_string().unwrap());
        assert_eq!(BucketOptions::from_arguments(written).unwrap(), options);
        assert!(BucketOptions::default().arguments().is_empty());
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for line in [
            "--port",
            "--port x",
            "--listen here",
            "--place models=/m",
            "--place gs://models",
            "--first-byte 50",
            "--fast 1",
        ] {
            let error = format!("{:#}", read(line).unwrap_err());
            assert!(error.contains(line.split(' ').next().unwrap()), "{error}");
        }
    }
}
