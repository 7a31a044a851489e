//! A line in front of an image's file system, where a boot loader would be: it says whose image this is, and how much of the disk
//! has to be read to know its files, for those who can only read on and on.

/// ext4 begins behind it.
const NOTE_BYTES: usize = 1024;
const WORD: &str = "weightd-image 1 ";

/// What the line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BootNote {
    /// First byte of the disk that belongs to a file.
    pub(crate) data_start: u64,
}

impl BootNote {
    pub(crate) fn encode(self) -> [u8; NOTE_BYTES] {
        let mut note = [0; NOTE_BYTES];
        let line = format!("{WORD}{}\n", self.data_start);
        note[..line.len()].copy_from_slice(line.as_bytes());
        note
    }

    /// `None` when a disk begins otherwise.
    pub(crate) fn decode(disk: &[u8]) -> Option<Self> {
        let note = disk.get(..NOTE_BYTES)?;
        let line = note.split(|&byte| byte == b'\n').next()?;
        let number = std::str::from_utf8(line).ok()?.strip_prefix(WORD)?;
        let read = Self { data_start: number.parse().ok()? };
        // Nothing of it is free to be otherwise: it has no checksum.
        (read.encode() == note).then_some(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let note = BootNote { data_start: u64::MAX };
        assert_eq!(BootNote::decode(&note.encode()), Some(note));
        assert_eq!(BootNote::decode(&[0; 1024]), None);
        assert_eq!(BootNote::decode(b"weightd-image 1 7\n"), None);
        for at in 0..1024 {
            let mut other = note.encode();
            other[at] ^= 1;
            assert_ne!(BootNote::decode(&other), Some(note), "byte {at}");
        }
    }
}
