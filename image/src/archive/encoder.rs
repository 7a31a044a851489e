//! The archive's bytes, made from the disk's data in order.

use serde::{Deserialize, Serialize};

use super::{
    Out, Plan,
    gzip::{self, Crc32, Framer},
};

/// Data or a state that does not fit the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EncodeError {
    /// More than the plan has.
    #[error("{given} bytes of data were given for an archive that was planned with {planned}")]
    TooMuch {
        /// Bytes of data given, with the refused ones.
        given: u64,
        /// Bytes of data in the plan.
        planned: u64,
    },
    /// Less than the plan has.
    #[error("the archive was planned with {planned} bytes of data and ends after {given}")]
    TooLittle {
        /// Bytes of data given.
        given: u64,
        /// Bytes of data in the plan.
        planned: u64,
    },
    /// A state of another archive, or one that contradicts itself.
    #[error("the state after {0} bytes of data belongs to another archive: start this one afresh")]
    OtherPlan(u64),
}

/// Where an encoder stands between two writes; all that is needed to go on, given the same plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EncoderState {
    /// Bytes of data taken.
    pub(crate) data_bytes: u64,
    /// Bytes of the archive made from them; nothing is held back.
    pub(crate) archive_bytes: u64,
    /// CRC-32 of the tar stream so far.
    crc32: u32,
    /// Which plan this is about.
    plan_crc32: u32,
}

/// Makes the archive of a disk from its data. It holds nothing back, so its state is small and may be asked for
/// between any two writes.
#[derive(Debug)]
pub(crate) struct Encoder {
    plan: Plan,
    framer: Framer,
}

impl Encoder {
    /// An archive from its beginning.
    pub(crate) fn new(plan: Plan) -> Self {
        Self { framer: Framer::new(plan.tar_bytes()), plan }
    }

    /// Goes on where an encoder of the same plan stood: the bytes that come are those that it would have made.
    ///
    /// # Errors
    /// [`EncodeError::OtherPlan`] when the state is not of this plan.
    pub(crate) fn resume(plan: Plan, state: EncoderState) -> Result<Self, EncodeError> {
        // Before the first write not even the head was made.
        let begun = state.archive_bytes != 0;
        let pushed = if begun { plan.head_bytes().saturating_add(state.data_bytes) } else { 0 };
        let fits = state.plan_crc32 == plan.fingerprint()
            && state.data_bytes <= plan.data_bytes()
            && state.archive_bytes == gzip::written_bytes(pushed)
            && (begun || (state.data_bytes, state.crc32) == (0, 0));
        if !fits {
            return Err(EncodeError::OtherPlan(state.data_bytes));
        }
        let framer = Framer::resume(plan.tar_bytes(), pushed, Crc32(state.crc32));
        Ok(Self { plan, framer })
    }

    /// Where it stands now.
    pub(crate) fn state(&self) -> EncoderState {
        EncoderState {
            data_bytes: self.data_bytes(),
            archive_bytes: gzip::written_bytes(self.framer.pushed()),
            crc32: self.framer.crc().0,
            plan_crc32: self.plan.fingerprint(),
        }
    }

    /// Takes the next bytes of data, in the order of [`Plan::data`] without the holes between, and appends what
    /// the archive makes of them to `out`.
    ///
    /// # Errors
    /// [`EncodeError::TooMuch`] when there is more than was planned; nothing is taken then.
    pub(crate) fn write(&mut self, data: &[u8], out: &mut impl Out) -> Result<(), EncodeError> {
        let (given, planned) = (self.data_bytes() + data.len() as u64, self.plan.data_bytes());
        if given > planned {
            return Err(EncodeError::TooMuch { given, planned });
        }
        self.begin(out);
        self.framer.push(data, out);
        Ok(())
    }

    /// Appends the end of the archive to `out`.
    ///
    /// # Errors
    /// [`EncodeError::TooLittle`] when data is missing; `out` is no archive then.
    pub(crate) fn finish(mut self, out: &mut impl Out) -> Result<(), EncodeError> {
        let (given, planned) = (self.data_bytes(), self.plan.data_bytes());
        if given < planned {
            return Err(EncodeError::TooLittle { given, planned });
        }
        self.begin(out);
        self.framer.push(&self.plan.tail(), out);
        self.framer.finish(out);
        Ok(())
    }

    /// Bytes of data taken so far.
    fn data_bytes(&self) -> u64 {
        self.framer.pushed().saturating_sub(self.plan.head_bytes())
    }

    fn begin(&mut self, out: &mut impl Out) {
        if self.framer.pushed() == 0 {
            self.framer.push(self.plan.head(), out);
        }
    }
}
