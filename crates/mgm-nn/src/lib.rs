//! Differentiable operations, layers and weight sources.
