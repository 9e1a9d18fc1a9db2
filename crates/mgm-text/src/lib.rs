//! Tokenisers, conversation templates and detokenising.
