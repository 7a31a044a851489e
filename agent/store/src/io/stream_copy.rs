//! Copying bytes that arrive to where they are to stay, and summing them on the way.
//!
//! An ordinary copy reads every line of its target from memory before it writes it, and pushes out of the caches what is needed
//! there. What arrives is next read by the disk, or seconds later by whoever waits for it. So its stores go past the caches, which
//! was measured to take less than half as long; and what is summed is copied while it is in the nearest cache.
#![expect(unsafe_code, reason = "stores that go past the caches are instructions of their own")]

use weightd_types::Crc32c;

/// Summed and then copied at once: what the nearest cache holds. Less is summed slower, because each sum begins in several places.
const AT_ONCE: usize = 32 << 10;

/// Copies all of `from` to `to`, which is as long and which other threads may read afterwards as after any copy. Gives the checksum
/// of what was summed so far followed by `from`.
pub(super) fn copy_summed(to: &mut [u8], from: &[u8], mut sum: Crc32c) -> Crc32c {
    assert_eq!(to.len(), from.len(), "the target is as long");
    for (to, from) in to.chunks_mut(AT_ONCE).zip(from.chunks(AT_ONCE)) {
        sum = sum.append(from);
        #[cfg(target_arch = "x86_64")]
        x86_64::copy(to, from);
        #[cfg(not(target_arch = "x86_64"))]
        to.copy_from_slice(from);
    }
    #[cfg(target_arch = "x86_64")]
    x86_64::fence();
    sum
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::x86_64::{__m256i, _mm_sfence, _mm256_loadu_si256, _mm256_stream_si256};

    /// Two cache lines.
    const STEP: usize = 128;

    /// Copies past the caches, but for what is no whole step at either end, where the processor can. A fence must follow.
    pub(super) fn copy(to: &mut [u8], from: &[u8]) {
        if !std::is_x86_feature_detected!("avx2") {
            to.copy_from_slice(from);
            return;
        }
        let head = to.as_ptr().align_offset(STEP).min(to.len());
        let steps = (to.len() - head) / STEP * STEP;
        let ((to_head, to), (from_head, from)) = (to.split_at_mut(head), from.split_at(head));
        let ((to_steps, to_tail), (from_steps, from_tail)) = (to.split_at_mut(steps), from.split_at(steps));
        to_head.copy_from_slice(from_head);
        // SAFETY: there is AVX2; the target begins on a step, and both are so many whole steps.
        unsafe { copy_steps(to_steps, from_steps) };
        to_tail.copy_from_slice(from_tail);
    }

    /// Puts stores that went past the caches before all that follow, as others are by themselves.
    pub(super) fn fence() {
        // SAFETY: every processor of this kind has the instruction.
        unsafe { _mm_sfence() };
    }

    /// Copies whole steps.
    ///
    /// # Safety
    /// The processor has AVX2; the target begins on a multiple of [`STEP`]; both are as long, and a multiple of it.
    #[target_feature(enable = "avx2")]
    unsafe fn copy_steps(to: &mut [u8], from: &[u8]) {
        for (to, from) in to.chunks_exact_mut(STEP).zip(from.chunks_exact(STEP)) {
            let (to, from) = (to.as_mut_ptr().cast::<__m256i>(), from.as_ptr().cast::<__m256i>());
            // SAFETY: both have four words; the target's are aligned, and those that are loaded need not be.
            unsafe {
                let first = _mm256_loadu_si256(from);
                let second = _mm256_loadu_si256(from.add(1));
                let third = _mm256_loadu_si256(from.add(2));
                let fourth = _mm256_loadu_si256(from.add(3));
                _mm256_stream_si256(to, first);
                _mm256_stream_si256(to.add(1), second);
                _mm256_stream_si256(to.add(2), third);
                _mm256_stream_si256(to.add(3), fourth);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_arrive_and_are_summed_wherever_they_begin_and_end() {
        let bytes = (0_u32..).map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()[1]);
        let from: Vec<u8> = bytes.take(4 * AT_ONCE).collect();
        let before = Crc32c::of(b"before");
        for start in [0, 1, 63, 64, 127, 128] {
            for from_start in [0, 3, 64] {
                for len in [0, 1, 50, 127, 128, 300, AT_ONCE - 1, AT_ONCE, AT_ONCE + 1, 3 * AT_ONCE + 77] {
                    let mut to = vec![0; from.len()];
                    let part = &from[from_start..from_start + len];
                    let sum = copy_summed(&mut to[start..start + len], part, before);
                    assert_eq!(&to[start..start + len], part, "{len} bytes to {start} from {from_start}");
                    assert!(to[..start].iter().chain(&to[start + len..]).all(|&byte| byte == 0));
                    assert_eq!(sum, before.append(part));
                }
            }
        }
    }
}
