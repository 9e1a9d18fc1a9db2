//! CPU kernels with run-time instruction-set dispatch.
