//! Benchmarks: readers, prompts, scorers, reports.
