//! Shares values between the nodes of a run: loaded models, the places of files.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::meter::{Meters, ModelMeter};

/// What the nodes of a run share: loaded models, the places of files.
///
/// Values are found by their type and a name, so that two stages which name
/// the same model load it once.
#[derive(Clone, Default)]
pub struct Resources {
    values: Arc<Mutex<ResourceMap>>,
    pub(crate) meters: Arc<Meters>,
}

type ResourceMap = HashMap<(TypeId, String), Arc<dyn Any + Send + Sync>>;

impl Resources {
    /// Puts a value in, replacing one of the same type and name.
    pub fn insert<T: Send + Sync + 'static>(&self, name: &str, value: T) {
        self.lock()
            .insert((TypeId::of::<T>(), name.to_owned()), Arc::new(value));
    }

    /// The value of this type and name.
    pub fn get<T: Send + Sync + 'static>(&self, name: &str) -> Option<Arc<T>> {
        let value = self
            .lock()
            .get(&(TypeId::of::<T>(), name.to_owned()))
            .cloned()?;
        value.downcast().ok()
    }

    /// The value of this type and name; the first caller makes it, while the
    /// others wait.
    #[expect(clippy::missing_panics_doc, reason = "the slot's key holds its type")]
    pub fn get_or_insert<T: Send + Sync + 'static>(
        &self,
        name: &str,
        make: impl FnOnce() -> T,
    ) -> Arc<T> {
        let mut values = self.lock();
        let slot = values
            .entry((TypeId::of::<T>(), name.to_owned()))
            .or_insert_with(|| Arc::new(make()));
        Arc::clone(slot)
            .downcast()
            .expect("the slot's key holds its type")
    }

    /// Counts what a model does that is shared under `key`; the report calls it `name`.
    pub fn model_meter(&self, key: &str, name: &str) -> ModelMeter {
        self.meters.get(key, name)
    }

    fn lock(&self) -> MutexGuard<'_, ResourceMap> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
