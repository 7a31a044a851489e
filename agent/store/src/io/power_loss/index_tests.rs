//! The index under power cuts: what was committed is there, what was not is not, and it opens.

use redb::{Database, ReadableDatabase, ReadableTableMetadata, TableDefinition};

use super::*;
use crate::io::{IndexBackend, conformance::on_disk};

const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("table");

fn open(engine: &PowerLossEngine, path: &Path) -> Result<Database, redb::DatabaseError> {
    Database::builder().create_with_backend(IndexBackend(engine.index_backend(path)?))
}

/// Commits until the power is cut; says how many commits were acknowledged.
fn commit_until_dead(database: &Database, from: u64) -> u64 {
    let commit = |key: u64| -> Result<(), redb::Error> {
        let write = database.begin_write()?;
        write.open_table(TABLE)?.insert(key, vec![key.to_le_bytes()[0]; 2000].as_slice())?;
        Ok(write.commit()?)
    };
    (from..).take_while(|key| commit(*key).is_ok()).count() as u64
}

#[test]
fn acknowledged_commits_survive() {
    for seed in 0..60 {
        let outer = on_disk();
        let root = outer.path().join("store");
        fs::create_dir(&root).unwrap();
        let path = root.join("index");
        let engine = PowerLossEngine::new(&root).unwrap();
        let database = open(&engine, &path).unwrap();
        engine.sync_directory(&root).unwrap();
        engine.cut_power_after(1 + seed * 3, seed);
        let acknowledged = commit_until_dead(&database, 0);
        drop(database);

        let engine = PowerLossEngine::new(&root).unwrap();
        let database = open(&engine, &path).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let read = database.begin_read().unwrap();
        let found = match read.open_table(TABLE) {
            Ok(table) => {
                let found = table.len().unwrap();
                for key in 0..found {
                    assert_eq!(table.get(key).unwrap().unwrap().value(), vec![key.to_le_bytes()[0]; 2000]);
                }
                found
            }
            Err(_) => 0,
        };
        assert!(
            found == acknowledged || found == acknowledged + 1,
            "seed {seed}: {acknowledged} commits were acknowledged, {found} are there"
        );
    }
}
