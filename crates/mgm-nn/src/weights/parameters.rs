//! The registry of trainable variables.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Tensor, Var};

use crate::Result;

/// Trainable variables by full checkpoint name. Clones share one registry.
#[derive(Clone, Default)]
pub struct Parameters(Arc<Mutex<BTreeMap<String, Var>>>);

impl Parameters {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Var>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The variable with this name.
    pub fn get(&self, name: &str) -> Option<Var> {
        self.lock().get(name).cloned()
    }

    /// All variables in the order of their names.
    pub fn all(&self) -> Vec<(String, Var)> {
        self.lock()
            .iter()
            .map(|(name, variable)| (name.clone(), variable.clone()))
            .collect()
    }

    /// All names in order.
    pub fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// Number of variables.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether nothing is trainable.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Number of trained values.
    pub fn elements(&self) -> usize {
        self.lock()
            .values()
            .map(|variable| variable.elem_count())
            .sum()
    }

    /// Registers a variable with the values of `tensor`, or returns the one that has this name already, so that tied
    /// weights are one variable.
    pub fn register(&self, name: &str, tensor: &Tensor) -> Result<Var> {
        let mut variables = self.lock();
        if let Some(present) = variables.get(name) {
            return Ok(present.clone());
        }
        let variable = Var::from_tensor(tensor)?;
        variables.insert(name.to_string(), variable.clone());
        Ok(variable)
    }
}

impl std::fmt::Debug for Parameters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Parameters({} variables, {} values)",
            self.len(),
            self.elements()
        )
    }
}
