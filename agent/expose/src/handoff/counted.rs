//! How many there are of something.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// One of those that are counted, for as long as it lives.
pub(crate) struct Counted {
    counter: Arc<AtomicUsize>,
    /// How many there were with it when it came.
    pub(crate) number: usize,
}

impl Counted {
    pub(crate) fn one_more(counter: &Arc<AtomicUsize>) -> Self {
        let number = counter.fetch_add(1, Ordering::AcqRel) + 1;
        Self { counter: Arc::clone(counter), number }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.counter.fetch_sub(1, Ordering::AcqRel);
    }
}
