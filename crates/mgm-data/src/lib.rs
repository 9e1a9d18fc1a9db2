//! Training data: reading, checking, label masking, sampling.
