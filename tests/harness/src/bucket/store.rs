//! Buckets and their objects, each in one generation only.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{
    content::Content,
    object::{Described, Stored},
    refusal::Refusal,
    request::{Conditions, Named},
};

/// Objects of a bucket by name.
pub(super) type Objects = BTreeMap<String, Arc<Stored>>;

/// All buckets of a server.
#[derive(Debug, Default)]
pub(super) struct Store(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    buckets: BTreeMap<String, Bucket>,
    /// The generation that was given last.
    generation: i64,
}

#[derive(Debug)]
struct Bucket {
    created: SystemTime,
    objects: Objects,
}

impl Store {
    /// Makes a bucket.
    pub(super) fn create(&self, bucket: &str) -> Result<(), Refusal> {
        if bucket.len() < 3 || bucket.contains('/') {
            return Err(Refusal::invalid(format!("Invalid bucket name: '{bucket}'")));
        }
        let mut state = self.state();
        if state.buckets.contains_key(bucket) {
            return Err(Refusal::BucketExists);
        }
        let made = Bucket { created: SystemTime::now(), objects: Objects::new() };
        state.buckets.insert(bucket.to_owned(), made);
        Ok(())
    }

    /// Every bucket, and when it was made.
    pub(super) fn buckets(&self) -> Vec<(String, SystemTime)> {
        self.state().buckets.iter().map(|(name, bucket)| (name.clone(), bucket.created)).collect()
    }

    /// When a bucket was made.
    pub(super) fn created(&self, bucket: &str) -> Result<SystemTime, Refusal> {
        Ok(self.state().bucket(bucket)?.created)
    }

    /// Looks at the objects of a bucket.
    pub(super) fn look<T>(&self, bucket: &str, at: impl FnOnce(&Objects) -> T) -> Result<T, Refusal> {
        Ok(at(&self.state().bucket(bucket)?.objects))
    }

    /// An object, if it may be read. Only its newest generation is here.
    pub(super) fn get(
        &self,
        named: &Named,
        generation: Option<i64>,
        conditions: &Conditions,
    ) -> Result<Arc<Stored>, Refusal> {
        let found = self.state().find(named)?.ok_or_else(|| named.missing())?;
        if generation.is_some_and(|generation| generation != found.generation) {
            return Err(named.missing());
        }
        conditions.allow_reading(&found)?;
        Ok(found)
    }

    /// Whether an object may be written now.
    pub(super) fn check(&self, named: &Named, conditions: &Conditions) -> Result<(), Refusal> {
        conditions.allow_writing(self.state().find(named)?.as_deref())
    }

    /// Writes an object in the place of what is there.
    pub(super) fn put(
        &self,
        named: &Named,
        content: Content,
        described: Described,
        conditions: &Conditions,
    ) -> Result<Arc<Stored>, Refusal> {
        let mut state = self.state();
        conditions.allow_writing(state.find(named)?.as_deref())?;
        let created = SystemTime::now();
        let generation = state.next_generation(created);
        let stored = Arc::new(Stored { named: named.clone(), content, described, generation, created });
        let objects = &mut state.bucket_mut(&named.bucket)?.objects;
        let replaced = objects.insert(named.name.clone(), Arc::clone(&stored));
        drop(state);
        // Giving gigabytes back takes a while, in which others must not wait.
        drop(replaced);
        Ok(stored)
    }

    /// Removes an object.
    pub(super) fn delete(
        &self,
        named: &Named,
        generation: Option<i64>,
        conditions: &Conditions,
    ) -> Result<(), Refusal> {
        let mut state = self.state();
        let found = state.find(named)?.ok_or_else(|| named.missing())?;
        if generation.is_some_and(|generation| generation != found.generation) {
            return Err(named.missing());
        }
        conditions.allow_writing(Some(&found))?;
        state.bucket_mut(&named.bucket)?.objects.remove(&named.name);
        drop(state);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn bucket(&self, name: &str) -> Result<&Bucket, Refusal> {
        self.buckets.get(name).ok_or(Refusal::NoBucket)
    }

    fn bucket_mut(&mut self, name: &str) -> Result<&mut Bucket, Refusal> {
        self.buckets.get_mut(name).ok_or(Refusal::NoBucket)
    }

    fn find(&self, named: &Named) -> Result<Option<Arc<Stored>>, Refusal> {
        Ok(self.bucket(&named.bucket)?.objects.get(&named.name).cloned())
    }

    /// Microseconds, as the real ones are; and more than ever before.
    fn next_generation(&mut self, now: SystemTime) -> i64 {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(since.as_micros()).unwrap_or(i64::MAX);
        self.generation = now.max(self.generation + 1);
        self.generation
    }
}
