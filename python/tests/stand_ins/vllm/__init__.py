"""What a loader sees of vLLM, to be tested without it: the names, the signatures, and who calls whom.

Read from vLLM 0.32.0. `cargo xtask vllm` compares the signatures with those of the vLLM that it installs.
"""
