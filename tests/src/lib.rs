//! End to end, by subject: the tests are in `tests/`, one program per subject, and what they share is the package
//! `weightd-harness`. The programs under test are found by `weightd_harness::binary`, built by `cargo xtask test`.
