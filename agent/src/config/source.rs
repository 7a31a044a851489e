//! The `[source]` section, whose settings the source room knows and checks.

use serde::Deserialize;
use toml::{Table, Value};
use weightd_source::{AzureConfig, Config, Environment, GcsConfig, HubConfig, S3Config, Settings};

use super::{Mistake, fields::fields, read::Reader};

/// Reads and checks the section; `None` when something in it is wrong, which is then remembered.
pub(super) fn check(reader: &mut Reader, raw: Table, environment: &Environment) -> Option<Settings> {
    let before = reader.mistakes.len();
    let (mut flat, mut config) = (Table::new(), Config::default());
    for (name, value) in raw {
        match (name.as_str(), value) {
            ("gcs", Value::Table(table)) => config.gcs = section::<GcsConfig>(reader, "source.gcs", table),
            ("s3", Value::Table(table)) => config.s3 = section::<S3Config>(reader, "source.s3", table),
            ("azure", Value::Table(table)) => {
                config.azure = section::<AzureConfig>(reader, "source.azure", table);
            }
            ("hub", Value::Table(table)) => config.hub = section::<HubConfig>(reader, "source.hub", table),
            (_, value) => drop(flat.insert(name, value)),
        }
    }
    let flat: Config = section(reader, "source", flat);
    config.connect_timeout_seconds = flat.connect_timeout_seconds;
    match config.check(environment) {
        Ok(settings) => Some(settings).filter(|_| reader.mistakes.len() == before),
        Err(sentences) => {
            reader.mistakes.extend(sentences.iter().map(|sentence| mistake(sentence)));
            None
        }
    }
}

/// Reads a section key by key, so that one that is wrong does not hide the others.
fn section<T: for<'de> Deserialize<'de> + Default>(reader: &mut Reader, name: &str, table: Table) -> T {
    let mut good = Table::new();
    for (key, value) in table {
        let alone = Table::from_iter([(key.clone(), value.clone())]);
        match alone.try_into::<T>() {
            Ok(_) => drop(good.insert(key, value)),
            Err(_) if !fields::<T>().contains(&key.as_str()) => {
                let remedy = format!("is not known; [{name}] has {}", fields::<T>().join(", "));
                reader.mistake(&format!("{name}.{key}"), String::new(), remedy);
            }
            Err(error) => reader.mistake(&format!("{name}.{key}"), value.to_string(), error.message()),
        }
    }
    good.try_into().unwrap_or_default()
}

/// The source room writes sentences that begin with the setting.
fn mistake(sentence: &str) -> Mistake {
    let (key, rest) = sentence.split_once(' ').unwrap_or((sentence, ""));
    Mistake { key: key.to_owned(), value: String::new(), remedy: rest.to_owned() }
}
