//! How `vllm serve` is told to be about weights and nothing else.

/// Its arguments.
pub const ARGUMENTS: [&str; 7] =
    ["--dtype", "bfloat16", "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "4"];

/// Its environment.
pub const ENVIRONMENT: [(&str, &str); 4] = [
    ("HF_HUB_OFFLINE", "1"),
    ("VLLM_NO_USAGE_STATS", "1"),
    // The smallest cache there can be, and no trial runs.
    ("VLLM_CPU_KVCACHE_SPACE", "1"),
    ("VLLM_CPU_CI_ENV", "1"),
];
