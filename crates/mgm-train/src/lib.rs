//! Optimiser, schedules, stages, checkpoints and resume.
