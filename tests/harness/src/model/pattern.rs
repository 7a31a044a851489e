//! Bytes that look random, repeat exactly, and can be made at any offset.

/// An endless sequence of bytes, told apart from others by its seed.
///
/// Eight bytes are SplitMix64 of their position: as fast as memory, and a test can compute what any range must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    seed: u64,
}

impl Pattern {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed: mix(seed) }
    }

    /// The sequence of a tensor of a model.
    pub fn of_tensor(model_seed: u64, name: &str) -> Self {
        // FNV-1a: names differ in few letters, and `mix` spreads the difference.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self::new(model_seed ^ hash)
    }

    /// Fills `buffer` with the bytes from `offset` on.
    pub fn fill(&self, offset: u64, buffer: &mut [u8]) {
        let mut position = offset / 8;
        let skip = (offset % 8) as usize;
        let (head, rest) = buffer.split_at_mut(if skip == 0 { 0 } else { (8 - skip).min(buffer.len()) });
        if !head.is_empty() {
            head.copy_from_slice(&self.word(position)[skip..skip + head.len()]);
            position += 1;
        }
        let mut words = rest.chunks_exact_mut(8);
        for chunk in &mut words {
            chunk.copy_from_slice(&self.word(position));
            position += 1;
        }
        let tail = words.into_remainder();
        tail.copy_from_slice(&self.word(position)[..tail.len()]);
    }

    /// The bytes from `offset` on.
    pub fn bytes(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut buffer = vec![0; length];
        self.fill(offset, &mut buffer);
        buffer
    }

    fn word(&self, position: u64) -> [u8; 8] {
        mix(self.seed.wrapping_add(position.wrapping_mul(0x9e37_79b9_7f4a_7c15))).to_le_bytes()
    }
}

/// The finaliser of SplitMix64.
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_is_a_part_of_the_whole() {
        let pattern = Pattern::new(7);
        let whole = pattern.bytes(0, 100);
        for start in 0..40 {
            for length in 0..40 {
                let part = pattern.bytes(start, length);
                let start = usize::try_from(start).unwrap();
                assert_eq!(part, whole[start..start + length]);
            }
        }
        assert_ne!(whole, Pattern::new(8).bytes(0, 100));
    }
}
