//! Which skips CI lets pass. Any other is a failure there: a test that nobody runs proves nothing.

/// A skip whose line contains this is let pass, for this reason.
pub(crate) struct Allowed {
    pub(crate) contains: &'static str,
    pub(crate) because: &'static str,
}

/// All of them.
pub(crate) const ALLOWED: &[Allowed] = &[
    Allowed {
        contains: "azurite-blob is not installed",
        because: "Azurite comes only from npm, which a machine that builds Rust need not have; the conformance suite \
                  runs the same object_store code against S3, and this case wherever npm is",
    },
    Allowed {
        contains: "PyTorch (Debian's python3-torch) is not installed",
        because: "PyPI has PyTorch only with gigabytes of CUDA, so it comes from Debian alone; the same test runs with \
                  numpy everywhere",
    },
    Allowed {
        contains: "Go (it builds Kubernetes) is not installed",
        because: "a machine that builds Rust need not have Go; where it has, all tests of the cluster run",
    },
    Allowed {
        contains: "Go (it builds csi-provisioner) is not installed",
        because: "the same, with a cluster that was not built here; where Go is, claims are tested on that too",
    },
    Allowed {
        contains: "reads_over_tls",
        because: "another test runs it in a process of its own, where the certificate authority can be set",
    },
];

/// Why this skip may pass, if it may.
pub(crate) fn allowed(skip: &str) -> Option<&'static str> {
    ALLOWED.iter().find(|allowed| skip.contains(allowed.contains)).map(|allowed| allowed.because)
}
