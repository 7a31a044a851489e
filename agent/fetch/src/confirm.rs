//! Is it what the origin has? Invariant 1: until this says so, a blob's chunks are provisional.

use weightd_store::PartialBlob;
use weightd_types::Crc32c;

use crate::{FetchError, Mismatch, ObjectSum, fetcher::Inner, flight::Flying};

/// Compares a blob that is arriving with what its origin says. Sums in order while it arrives where that is needed;
/// ends when every piece was there. An origin that publishes nothing is confirmed by size and version alone.
pub(crate) async fn confirm(inner: &Inner, flying: &Flying) -> Result<Option<Mismatch>, FetchError> {
    match ObjectSum::of(&flying.partial.wanted().object) {
        Some(sum) => confirm_in_order(inner, flying, &sum).await,
        None => confirm_combined(inner, flying).await,
    }
}

async fn confirm_combined(inner: &Inner, flying: &Flying) -> Result<Option<Mismatch>, FetchError> {
    // Combining reads nothing, so records of an earlier run would vouch for bytes that nobody looked at since.
    inner.reread(flying).await?;
    // All at one moment: a reader may find a chunk rotten at any other, and then it is missing again.
    let found = wait_for(&flying.partial, PartialBlob::object_crc32c).await;
    Ok(Mismatch::of_crc32c(&flying.partial.wanted().object, found))
}

/// Sums until what was summed is what is there: a piece may rot after its turn, be found rotten by a reader, and be
/// fetched again with other damage, which the manifest must not vouch for.
async fn confirm_in_order(
    inner: &Inner,
    flying: &Flying,
    sum: &ObjectSum,
) -> Result<Option<Mismatch>, FetchError> {
    let mut attempts = 0;
    loop {
        let (mismatch, crcs) = sum_in_order(inner, &flying.partial, sum.clone()).await?;
        let changed = flying.partial.chunks_unlike(&crcs);
        // Where the disk keeps losing what is written, fetching a few chunks again does not help for ever.
        if changed.is_empty() || (mismatch.is_some() && attempts == inner.line.config.refetches) {
            return Ok(mismatch);
        }
        attempts += 1;
        for chunk in changed {
            inner.reread_chunk(flying, chunk).await?;
        }
    }
}

/// Sums a blob in order behind its writes. Also gives the checksum of each piece as it was summed.
async fn sum_in_order(
    inner: &Inner,
    partial: &PartialBlob,
    mut sum: ObjectSum,
) -> Result<(Option<Mismatch>, Vec<Crc32c>), FetchError> {
    let mut crcs = Vec::with_capacity(partial.placement().pieces().len());
    sum.update(&partial.wanted().header);
    for piece in 0..partial.placement().pieces().len() {
        wait_for(partial, |partial| partial.has_piece(piece).then_some(())).await;
        let buffer = inner.store.pool().acquire().await;
        let (buffer, within) = partial.read_piece(piece, buffer).await?;
        // A chunk takes milliseconds to sum, too long for a thread that serves the network.
        let summing = tokio::task::spawn_blocking(move || {
            let bytes = &buffer[within];
            sum.update(bytes);
            (sum, Crc32c::of(bytes))
        });
        let crc;
        (sum, crc) = summing.await.map_err(|_| FetchError::Closed)?;
        crcs.push(crc);
    }
    Ok((sum.compare(), crcs))
}

/// Waits until there is something to be found.
async fn wait_for<T>(partial: &PartialBlob, look: impl Fn(&PartialBlob) -> Option<T>) -> T {
    loop {
        // Made before looking, so that nothing is missed in between.
        let advanced = partial.advanced();
        if let Some(found) = look(partial) {
            return found;
        }
        advanced.await;
    }
}

#[cfg(test)]
mod tests;
