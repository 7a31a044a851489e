//! Byte ranges and sizes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Length of a chunk, the unit of fetching, checking and recording. 8 MiB is large enough that one O_DIRECT
/// write reaches a disk's full speed and small enough that losing one in a crash costs little.
pub const CHUNK_BYTES: u64 = 8 << 20;

/// A half-open range of bytes: `start` is in it, `end` is not. Empty when both are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte; never below `start`.
    pub end: u64,
}

impl ByteRange {
    /// The range from `start` up to `end`; an `end` below `start` gives an empty range at `start`.
    pub fn new(start: u64, end: u64) -> Self {
        Self { start, end: end.max(start) }
    }

    /// The range of `len` bytes at `start`.
    pub fn at(start: u64, len: u64) -> Self {
        Self { start, end: start.saturating_add(len) }
    }

    /// The bytes that a chunk is, of a blob of `blob_len`.
    pub fn of_chunk(chunk: u32, blob_len: u64) -> Self {
        let start = u64::from(chunk) * CHUNK_BYTES;
        Self::new(start, (start + CHUNK_BYTES).min(blob_len))
    }

    /// Number of bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The bytes that both ranges hold; empty when they do not meet.
    pub fn intersect(&self, other: &Self) -> Self {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// Whether every byte of `other` is in this range.
    pub fn contains(&self, other: &Self) -> bool {
        other.is_empty() || (self.start <= other.start && other.end <= self.end)
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes {}..{}", self.start, self.end)
    }
}

/// A size that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a size: write bytes, or a number with KiB, MiB, GiB, TiB, kB, MB, GB or TB")]
pub struct InvalidByteSize(String);

/// Reads `"256MiB"`, `"1.5 GiB"`, `"10GB"` or plain bytes.
///
/// # Errors
/// When the text is no number, has an unknown unit, is negative, or does not fit 64 bits.
pub fn parse_bytes(text: &str) -> Result<u64, InvalidByteSize> {
    let invalid = || InvalidByteSize(text.to_owned());
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" | "ki" => 1 << 10,
        "mib" | "mi" => 1 << 20,
        "gib" | "gi" => 1 << 30,
        "tib" | "ti" => 1 << 40,
        "kb" | "k" => 1_000,
        "mb" | "m" => 1_000_000,
        "gb" | "g" => 1_000_000_000,
        "tb" | "t" => 1_000_000_000_000,
        _ => return Err(invalid()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(invalid);
    }
    let fraction: f64 = number.parse().map_err(|_| invalid())?;
    #[expect(clippy::cast_precision_loss, reason = "a size written with a fraction is approximate already")]
    let bytes = fraction * factor as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounds are checked here")]
    if bytes.is_finite() && (0.0..1.8e19).contains(&bytes) { Ok(bytes as u64) } else { Err(invalid()) }
}

/// Writes a size for a person: `3.46 GiB`, `512 B`.
pub fn display_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.995 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.2} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_written() {
        assert_eq!(parse_bytes("256MiB"), Ok(256 << 20));
        assert_eq!(parse_bytes(" 1.5 GiB "), Ok(3 << 29));
        assert_eq!(parse_bytes("10GB"), Ok(10_000_000_000));
        assert_eq!(parse_bytes("512"), Ok(512));
        for bad in ["", "GiB", "-1", "1 parsec", "99999999999TiB", "1e30"] {
            assert!(parse_bytes(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn any_text_is_a_size_or_refused_without_a_panic() {
        bolero::check!().with_type::<String>().for_each(|text| {
            let _ = parse_bytes(text);
        });
    }

    #[test]
    fn sizes_are_shown_with_three_digits() {
        assert_eq!(display_bytes(0), "0 B");
        assert_eq!(display_bytes(1023), "1023 B");
        assert_eq!(display_bytes(1 << 20), "1.00 MiB");
        assert_eq!(display_bytes((1 << 30) - 1), "1.00 GiB");
    }

    #[test]
    fn ranges_meet_only_where_both_are() {
        let a = ByteRange::new(10, 20);
        assert_eq!(a.intersect(&ByteRange::new(15, 30)), ByteRange::new(15, 20));
        assert!(a.intersect(&ByteRange::new(20, 30)).is_empty());
        assert!(a.contains(&ByteRange::new(12, 20)));
        assert!(!a.contains(&ByteRange::new(9, 12)));
    }
}
