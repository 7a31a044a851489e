//! How one setting is read. Each function says in its error what to write instead.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use toml::Value;
use weightd_daemon::LogFormat;
use weightd_types::parse_bytes;

use super::{Mistake, raw::Setting};

/// What a setting gives, or what to write instead.
pub(super) type Read<T> = Result<T, String>;

/// Reads settings, and remembers what was wrong with them.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) mistakes: Vec<Mistake>,
}

impl Reader {
    /// The setting's value; the default when it is absent, or wrong and remembered as such.
    pub(super) fn get<T>(
        &mut self,
        key: &str,
        setting: Setting,
        default: T,
        read: impl FnOnce(&Value) -> Read<T>,
    ) -> T {
        let Some(value) = setting else { return default };
        read(&value).unwrap_or_else(|remedy| {
            self.mistake(key, value.to_string(), remedy);
            default
        })
    }

    /// Remembers a mistake.
    pub(super) fn mistake(&mut self, key: &str, value: String, remedy: impl Into<String>) {
        self.mistakes.push(Mistake { key: key.to_owned(), value, remedy: remedy.into() });
    }
}

fn text(value: &Value) -> Option<&str> {
    value.as_str().map(str::trim)
}

/// An absolute path.
pub(super) fn path(value: &Value) -> Read<PathBuf> {
    match text(value).map(PathBuf::from) {
        Some(path) if path.is_absolute() => Ok(path),
        _ => Err("write an absolute path in quotes".to_owned()),
    }
}

/// Text that is not empty.
pub(super) fn words(value: &Value) -> Read<String> {
    match text(value) {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err("write it in quotes".to_owned()),
    }
}

/// A path that fits the address of a Unix socket.
pub(super) fn socket(value: &Value) -> Read<PathBuf> {
    // `sun_path` has 108 bytes, the last of them NUL.
    const MAX: usize = 107;
    let path = path(value)?;
    match path.as_os_str().len() {
        0..=MAX => Ok(path),
        length => Err(format!("has {length} bytes; the kernel takes socket paths of up to {MAX}")),
    }
}

/// An address with a port, or `off`.
pub(super) fn address(value: &Value) -> Read<Option<SocketAddr>> {
    match text(value) {
        Some("off") => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| "write an address and a port, 127.0.0.1:9464, or off".to_owned()),
        None => Err("write an address and a port in quotes".to_owned()),
    }
}

/// `info`, or directives.
pub(super) fn log_filter(value: &Value) -> Read<String> {
    let remedy =
        || "write error, warn, info, debug, trace or off, or such as info,weightd_fetch=debug".to_owned();
    let text = text(value).filter(|text| !text.is_empty()).ok_or_else(remedy)?;
    weightd_daemon::logging::check(text).map(|()| text.to_owned()).map_err(|_| remedy())
}

/// `text` or `json`.
pub(super) fn log_format(value: &Value) -> Read<LogFormat> {
    match text(value) {
        Some("text") => Ok(LogFormat::Text),
        Some("json") => Ok(LogFormat::Json),
        _ => Err("write \"text\" or \"json\"".to_owned()),
    }
}

/// A number of bytes above zero.
pub(super) fn bytes(value: &Value) -> Read<u64> {
    let remedy = || "write a size such as \"500GiB\"".to_owned();
    let bytes = match value {
        Value::Integer(bytes) => u64::try_from(*bytes).map_err(|_| remedy())?,
        value => parse_bytes(text(value).ok_or_else(remedy)?).map_err(|_| remedy())?,
    };
    if bytes == 0 {
        Err("must be more than nothing; leave it out for no limit".to_owned())
    } else {
        Ok(bytes)
    }
}

/// Bytes a second.
pub(super) fn rate(value: &Value) -> Read<u64> {
    let remedy = || "write bytes a second such as \"2GB/s\"".to_owned();
    let per_second = text(value).and_then(|text| text.strip_suffix("/s")).ok_or_else(remedy)?;
    bytes(&Value::String(per_second.to_owned())).map_err(|_| remedy())
}

/// Bytes a second, or `off`.
pub(super) fn rate_or_off(value: &Value) -> Read<Option<u64>> {
    match text(value) {
        Some("off") => Ok(None),
        _ => rate(value).map(Some).map_err(|remedy| format!("{remedy}, or \"off\"")),
    }
}

/// A share between 0 and 1.
pub(super) fn share(value: &Value) -> Read<f64> {
    #[expect(clippy::cast_precision_loss, reason = "only 0 and 1 are taken")]
    let number = match value {
        Value::Float(number) => *number,
        Value::Integer(number) => *number as f64,
        _ => f64::NAN,
    };
    if (0.0..=1.0).contains(&number) {
        Ok(number)
    } else {
        Err("write a share from 0 to 1, such as 0.9".to_owned())
    }
}

/// A length of time above zero.
pub(super) fn duration(value: &Value) -> Read<Duration> {
    let parsed = text(value).and_then(|text| text.parse::<jiff::SignedDuration>().ok());
    parsed
        .and_then(|duration| Duration::try_from(duration).ok())
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "write a time such as \"30s\", \"5m\" or \"24h\"".to_owned())
}

/// `true` or `false`.
pub(super) fn truth(value: &Value) -> Read<bool> {
    value.as_bool().ok_or_else(|| "write true or false, without quotes".to_owned())
}

/// A whole number within bounds.
pub(super) fn count(min: u32, max: u32) -> impl FnOnce(&Value) -> Read<u32> {
    move |value| {
        let number = value.as_integer().and_then(|number| u32::try_from(number).ok());
        number
            .filter(|number| (min..=max).contains(number))
            .ok_or_else(|| format!("write a whole number from {min} to {max}"))
    }
}
