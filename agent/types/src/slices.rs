//! Slices of tensors: what one of several processes needs that share the work of a model.
//!
//! Tensor-parallel servers cut each tensor along one dimension into equal parts, and each rank takes one. Where it is the
//! first dimension a part is one range of bytes; where it is another, it is a run of bytes in each row.

use globset::{Glob, GlobSet, GlobSetBuilder};
use safetensors::Dtype;

use crate::ByteRange;

/// One part of several equal ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Along which dimension.
    pub dimension: usize,
    /// Which part, from zero.
    pub part: usize,
    /// How many parts there are.
    pub parts: usize,
}

/// Which cut of which tensors. Of several rules the first that fits a name counts; what none fits is whole.
#[derive(Debug, Clone, Default)]
pub struct Slicing {
    rules: Vec<Rule>,
    /// Of the rules, in their order.
    patterns: GlobSet,
}

/// Most rules: each is compared with each of tens of thousands of names.
const MAX_RULES: usize = 256;
/// Longest pattern. Names of tensors are shorter.
const MAX_PATTERN_BYTES: usize = 512;
/// Most alternatives in braces: whoever reads patterns goes one call deeper with each.
const MAX_BRACES: usize = 8;

#[derive(Debug, Clone)]
struct Rule {
    pattern: String,
    /// `None`: the whole.
    cut: Option<Cut>,
}

/// Where a slice lies in its tensor, whose elements follow each other row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSlice {
    /// Its own shape, in elements.
    pub shape: Vec<usize>,
    /// How far elements are apart that are neighbours along each dimension, in elements.
    pub strides: Vec<usize>,
    /// How many runs of bytes it is: one where it is contiguous.
    pub runs: usize,
    /// Bytes of each run.
    pub run_bytes: usize,
    /// Where the first run begins, in bytes from the tensor's beginning.
    pub start: usize,
    /// From one run's beginning to the next one's, in bytes.
    pub step: usize,
}

/// Why a tensor cannot be cut. The caller names the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SliceError {
    /// Not how patterns are written.
    #[error("the pattern {pattern:?} of a slice: {problem}")]
    Pattern {
        /// As it was given.
        pattern: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A part that there cannot be.
    #[error(
        "part {part} of {parts} of the tensors {pattern:?}: parts are counted from 0, and there is at least one"
    )]
    Part {
        /// Of the rule.
        pattern: String,
        /// Which was asked for.
        part: usize,
        /// Of how many.
        parts: usize,
    },
    /// A rule for one tensor, which is not there.
    #[error("no tensor {0:?}, of which a slice was asked for")]
    NoTensor(String),
    /// More dimensions than there are.
    #[error("the tensor {tensor:?} has no dimension {dimension}, but {dimensions} of them, counted from 0")]
    Dimension {
        /// Its name.
        tensor: String,
        /// Which was asked for.
        dimension: usize,
        /// How many it has.
        dimensions: usize,
    },
    /// Parts that would not be equal.
    #[error(
        "the tensor {tensor:?} has the length {length} along dimension {dimension}, which {parts} parts do not divide"
    )]
    Uneven {
        /// Its name.
        tensor: String,
        /// Along which.
        dimension: usize,
        /// Its length there.
        length: usize,
        /// How many parts were asked for.
        parts: usize,
    },
    /// Elements that share bytes, cut where no byte ends.
    #[error(
        "the tensor {tensor:?} packs several elements into a byte, and {parts} parts along dimension {dimension} do not begin on bytes"
    )]
    Packed {
        /// Its name.
        tensor: String,
        /// Along which.
        dimension: usize,
        /// How many parts were asked for.
        parts: usize,
    },
}

impl Slicing {
    /// Rules in their order: patterns of names as a shell has them, and how to cut what they fit; `None` leaves it whole.
    ///
    /// # Errors
    /// [`SliceError::Pattern`] and [`SliceError::Part`].
    pub fn new(rules: impl IntoIterator<Item = (String, Option<Cut>)>) -> Result<Self, SliceError> {
        let invalid = |pattern: &str, problem: &str| SliceError::Pattern {
            pattern: pattern.chars().take(80).collect(),
            problem: problem.to_owned(),
        };
        let (mut all, mut patterns) = (Vec::new(), GlobSetBuilder::new());
        for (pattern, cut) in rules {
            if let Some(Cut { part, parts, .. }) = cut
                && part >= parts
            {
                return Err(SliceError::Part { pattern, part, parts });
            }
            if pattern.len() > MAX_PATTERN_BYTES || pattern.matches('{').count() > MAX_BRACES {
                return Err(invalid(
                    &pattern,
                    "it has more than 512 letters, or more than 8 alternatives in braces",
                ));
            }
            if all.len() == MAX_RULES {
                return Err(invalid(&pattern, "there are 256 before it, and no more are allowed"));
            }
            patterns.add(Glob::new(&pattern).map_err(|error| invalid(&pattern, &error.kind().to_string()))?);
            all.push(Rule { pattern, cut });
        }
        let patterns = patterns.build().map_err(|error| invalid("", &error.to_string()))?;
        Ok(Self { rules: all, patterns })
    }

    /// Whether every tensor is whole.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Makes sure that tensors which rules name outright are there.
    ///
    /// # Errors
    /// [`SliceError::NoTensor`].
    pub fn check_names(&self, has: impl Fn(&str) -> bool) -> Result<(), SliceError> {
        let is_name = |rule: &&Rule| !rule.pattern.contains(['*', '?', '[', '{', '\\']);
        match self.rules.iter().filter(is_name).find(|rule| !has(&rule.pattern)) {
            Some(rule) => Err(SliceError::NoTensor(rule.pattern.clone())),
            None => Ok(()),
        }
    }

    /// The slice of a tensor; `None` where it is whole.
    ///
    /// # Errors
    /// The other [`SliceError`]s.
    pub fn slice(
        &self,
        tensor: &str,
        dtype: Dtype,
        shape: &[usize],
    ) -> Result<Option<TensorSlice>, SliceError> {
        if self.is_empty() {
            return Ok(None);
        }
        let first = self.patterns.matches(tensor).into_iter().min();
        first
            .and_then(|first| self.rules[first].cut)
            .map(|cut| TensorSlice::new(tensor, dtype, shape, cut))
            .transpose()
    }
}

impl TensorSlice {
    fn new(tensor: &str, dtype: Dtype, shape: &[usize], cut: Cut) -> Result<Self, SliceError> {
        let Cut { dimension, part, parts } = cut;
        let tensor = || tensor.to_owned();
        let Some(&length) = shape.get(dimension) else {
            return Err(SliceError::Dimension { tensor: tensor(), dimension, dimensions: shape.len() });
        };
        if !length.is_multiple_of(parts) {
            return Err(SliceError::Uneven { tensor: tensor(), dimension, length, parts });
        }
        let own = length / parts;
        let mut own_shape = shape.to_vec();
        own_shape[dimension] = own;
        if shape.contains(&0) {
            // Nothing has no runs, and its other dimensions may be longer than all memory.
            let strides = vec![1; shape.len()];
            return Ok(Self { shape: own_shape, strides, runs: 0, run_bytes: 0, start: 0, step: 0 });
        }
        let mut strides = vec![1; shape.len()];
        for at in (1..shape.len()).rev() {
            strides[at - 1] = strides[at] * shape[at];
        }
        let bytes = |elements: usize| {
            let bits = elements * dtype.bitsize();
            let packed = || SliceError::Packed { tensor: tensor(), dimension, parts };
            if bits.is_multiple_of(8) { Ok(bits / 8) } else { Err(packed()) }
        };
        let outer: usize = shape[..dimension].iter().product();
        let (run_bytes, start) = (bytes(own * strides[dimension])?, bytes(part * own * strides[dimension])?);
        let step = bytes(length * strides[dimension])?;
        // All of a dimension is no cut.
        let (runs, run_bytes, step) = match run_bytes {
            whole if whole == step => (1, outer * whole, outer * whole),
            _ => (outer, run_bytes, step),
        };
        Ok(Self { shape: own_shape, strides, runs, run_bytes, start, step })
    }

    /// Bytes of all elements together.
    pub fn bytes(&self) -> usize {
        self.runs * self.run_bytes
    }

    /// From its first byte in the tensor to behind its last.
    pub fn span(&self) -> ByteRange {
        let end = if self.runs == 0 {
            self.start
        } else {
            self.start + (self.runs - 1) * self.step + self.run_bytes
        };
        ByteRange::new(self.start as u64, end as u64)
    }

    /// Whether its bytes follow each other without a gap.
    pub fn is_contiguous(&self) -> bool {
        self.runs <= 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(
        shape: &[usize],
        dimension: usize,
        part: usize,
        parts: usize,
    ) -> Result<TensorSlice, SliceError> {
        TensorSlice::new("w", Dtype::U16, shape, Cut { dimension, part, parts })
    }

    /// All numbers of a slice, found by its strides and found by its runs.
    fn elements(slice: &TensorSlice) -> (Vec<usize>, Vec<usize>) {
        let mut by_strides = vec![slice.start / 2];
        for (&length, &stride) in slice.shape.iter().zip(&slice.strides) {
            by_strides =
                by_strides.iter().flat_map(|at| (0..length).map(move |nth| at + nth * stride)).collect();
        }
        let run = |run: usize| {
            let from = (slice.start + run * slice.step) / 2;
            from..from + slice.run_bytes / 2
        };
        (by_strides, (0..slice.runs).flat_map(run).collect())
    }

    #[test]
    fn strides_and_runs_say_the_same_and_parts_are_all_there_is() {
        bolero::check!().with_type::<([u8; 4], u8, u8, u8)>().for_each(
            |(shape, dimensions, dimension, parts)| {
                let shape: Vec<_> = shape[..1 + usize::from(dimensions % 4)]
                    .iter()
                    .map(|length| usize::from(length % 7))
                    .collect();
                let (dimension, parts) = (usize::from(*dimension) % shape.len(), 1 + usize::from(parts % 4));
                let mut all = Vec::new();
                for part in 0..parts {
                    let Ok(slice) = slice(&shape, dimension, part, parts) else {
                        assert_ne!(shape[dimension] % parts, 0);
                        return;
                    };
                    let (by_strides, by_runs) = elements(&slice);
                    let by_strides = if slice.shape.contains(&0) { Vec::new() } else { by_strides };
                    assert_eq!(by_strides, by_runs, "{slice:?}");
                    assert_eq!(
                        (slice.bytes(), slice.span().len() >= slice.bytes() as u64),
                        (2 * by_runs.len(), true)
                    );
                    all.extend(by_runs);
                }
                all.sort_unstable();
                assert_eq!(all, (0..shape.iter().product()).collect::<Vec<_>>());
            },
        );
    }

    #[test]
    fn the_first_rule_that_fits_counts() {
        let cut = |dimension| Some(Cut { dimension, part: 1, parts: 2 });
        let rules = [("*.norm.*", None), ("*.down.weight", cut(1)), ("*", cut(0))];
        let slicing = Slicing::new(rules.map(|(pattern, cut)| (pattern.to_owned(), cut))).unwrap();
        let of = |name: &str| slicing.slice(name, Dtype::BF16, &[4, 8]).unwrap();
        assert_eq!(of("0.norm.weight"), None);
        let rows = of("0.up.weight").unwrap();
        assert_eq!((rows.shape.as_slice(), rows.runs, rows.start, rows.run_bytes), (&[2, 8][..], 1, 32, 32));
        let columns = of("0.down.weight").unwrap();
        assert_eq!((columns.shape.as_slice(), columns.strides.as_slice()), (&[4, 4][..], &[8, 1][..]));
        assert_eq!((columns.runs, columns.start, columns.step, columns.run_bytes), (4, 8, 16, 8));
    }

    #[test]
    fn what_cannot_be_cut_is_said_by_name() {
        let said = |outcome: Result<TensorSlice, SliceError>| outcome.unwrap_err().to_string();
        assert_eq!(slice(&[usize::MAX, 0, usize::MAX], 1, 0, 2).unwrap().bytes(), 0);
        assert!(said(slice(&[4, 6], 2, 0, 2)).contains("\"w\" has no dimension 2, but 2"));
        assert!(
            said(slice(&[4, 6], 1, 0, 4)).contains("length 6 along dimension 1, which 4 parts do not divide")
        );
        let packed = TensorSlice::new("w", Dtype::F4, &[2, 2], Cut { dimension: 1, part: 0, parts: 2 });
        assert!(said(packed).contains("do not begin on bytes"));
        let rule = |pattern: &str, part| {
            Slicing::new([(pattern.to_owned(), Some(Cut { dimension: 0, part, parts: 2 }))])
        };
        assert!(rule("a", 2).unwrap_err().to_string().contains("part 2 of 2 of the tensors \"a\""));
        assert!(rule("a[", 0).unwrap_err().to_string().contains("\"a[\""));
        let many = |pattern: String, count| Slicing::new((0..count).map(|_| (pattern.clone(), None)));
        assert!(many("a".to_owned(), 257).is_err() && many("a".to_owned(), 256).is_ok());
        for nested in [9, 300, 30_000] {
            assert!(many(format!("{}a{}", "{".repeat(nested), "}".repeat(nested)), 1).is_err());
        }
        assert_eq!(rule("a", 0).unwrap().check_names(|_| false), Err(SliceError::NoTensor("a".to_owned())));
        assert_eq!(rule("a*", 0).unwrap().check_names(|_| false), Ok(()));
    }
}
