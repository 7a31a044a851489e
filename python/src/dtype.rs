//! What the types of safetensors are to others.

use safetensors::Dtype;

/// A type as DLPack numbers it: code and bits.
pub(crate) type DlpackType = (u8, u8);

/// The number of a type in DLPack 1.1. None for types of which several share a byte: no two consumers agree on their shape.
pub(crate) fn dlpack(dtype: Dtype) -> Option<DlpackType> {
    const INT: u8 = 0;
    const UINT: u8 = 1;
    const FLOAT: u8 = 2;
    const BFLOAT: u8 = 4;
    const COMPLEX: u8 = 5;
    const BOOL: u8 = 6;
    const FLOAT8_E4M3FN: u8 = 10;
    const FLOAT8_E4M3FNUZ: u8 = 11;
    const FLOAT8_E5M2: u8 = 12;
    const FLOAT8_E5M2FNUZ: u8 = 13;
    const FLOAT8_E8M0FNU: u8 = 14;
    Some(match dtype {
        Dtype::BOOL => (BOOL, 8),
        Dtype::U8 => (UINT, 8),
        Dtype::U16 => (UINT, 16),
        Dtype::U32 => (UINT, 32),
        Dtype::U64 => (UINT, 64),
        Dtype::I8 => (INT, 8),
        Dtype::I16 => (INT, 16),
        Dtype::I32 => (INT, 32),
        Dtype::I64 => (INT, 64),
        Dtype::F16 => (FLOAT, 16),
        Dtype::F32 => (FLOAT, 32),
        Dtype::F64 => (FLOAT, 64),
        Dtype::BF16 => (BFLOAT, 16),
        Dtype::C64 => (COMPLEX, 64),
        Dtype::F8_E4M3 => (FLOAT8_E4M3FN, 8),
        Dtype::F8_E4M3FNUZ => (FLOAT8_E4M3FNUZ, 8),
        Dtype::F8_E5M2 => (FLOAT8_E5M2, 8),
        Dtype::F8_E5M2FNUZ => (FLOAT8_E5M2FNUZ, 8),
        Dtype::F8_E8M0 => (FLOAT8_E8M0FNU, 8),
        _ => return None,
    })
}

/// Whether torch takes a type from DLPack as it is, in all its versions.
pub(crate) fn is_known_to_torch(dtype: Dtype) -> bool {
    use Dtype::{BF16, F16, F32, F64, I8, I16, I32, I64, U8};
    matches!(dtype, U8 | I8 | I16 | I32 | I64 | F16 | F32 | F64 | BF16)
}

/// A type as numpy's array interface writes it. What numpy does not have is plain bytes of that size to it.
pub(crate) fn numpy(dtype: Dtype) -> Option<&'static str> {
    Some(match dtype {
        Dtype::BOOL => "|b1",
        Dtype::U8 => "|u1",
        Dtype::U16 => "<u2",
        Dtype::U32 => "<u4",
        Dtype::U64 => "<u8",
        Dtype::I8 => "|i1",
        Dtype::I16 => "<i2",
        Dtype::I32 => "<i4",
        Dtype::I64 => "<i8",
        Dtype::F16 => "<f2",
        Dtype::F32 => "<f4",
        Dtype::F64 => "<f8",
        Dtype::C64 => "<c8",
        Dtype::BF16 => "|V2",
        Dtype::F8_E4M3 | Dtype::F8_E4M3FNUZ | Dtype::F8_E5M2 | Dtype::F8_E5M2FNUZ | Dtype::F8_E8M0 => "|V1",
        _ => return None,
    })
}

/// At a multiple of how many bytes a processor wants it.
pub(crate) fn alignment(dtype: Dtype) -> usize {
    (dtype.bitsize() / 8).max(1)
}
