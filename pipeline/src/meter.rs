//! Measures the models that stages share, for the report.

use std::collections::HashMap;
use std::iter;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::metrics::read;

/// Counts what one loaded model does. [`Resources::model_meter`](crate::Resources::model_meter)
/// gives it; clones count together.
#[derive(Debug, Clone)]
pub struct ModelMeter(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    name: String,
    load: OnceLock<Load>,
    busy_ns: AtomicU64,
    tokens: AtomicU64,
}

#[derive(Debug)]
struct Load {
    n_bytes: u64,
    time: Duration,
    ended: Instant,
}

impl ModelMeter {
    /// To be called once the model is there: memory of its weights, and how long that took.
    pub fn loaded(&self, n_bytes: u64, time: Duration) {
        let ended = Instant::now();
        self.0.load.get_or_init(|| Load {
            n_bytes,
            time,
            ended,
        });
    }

    /// The device has worked for so long, and has made so many tokens.
    pub fn worked(&self, time: Duration, n_tokens: usize) {
        let busy_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.busy_ns.fetch_add(busy_ns, Ordering::Relaxed);
        self.0.tokens.fetch_add(n_tokens as u64, Ordering::Relaxed);
    }
}

/// What one model did in a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelReport {
    /// What the model is called.
    pub name: String,
    /// Memory of its weights.
    pub memory_bytes: u64,
    /// Seconds that loading took, in this run or before it.
    pub load_s: f64,
    /// Seconds of the run in which it was loaded.
    pub there_s: f64,
    /// Seconds of these in which its device worked for it.
    pub busy_s: f64,
    /// Tokens that it wrote.
    pub tokens: u64,
}

impl ModelReport {
    /// Share of the time since it was loaded in which its device was busy, 0 to 1.
    pub fn busy_share(&self) -> f64 {
        if self.there_s > 0.0 {
            (self.busy_s / self.there_s).min(1.0)
        } else {
            0.0
        }
    }
}

/// All models of a program, by what tells them apart.
#[derive(Debug, Default)]
pub(crate) struct Meters(Mutex<HashMap<String, ModelMeter>>);

impl Meters {
    pub(crate) fn get(&self, key: &str, name: &str) -> ModelMeter {
        let mut meters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(meter) = meters.get(key) {
            return meter.clone();
        }
        let is_taken = |name: &str| meters.values().any(|meter| meter.0.name == name);
        let numbered = (2..).map(|number| format!("{name} ({number})"));
        let mut names = iter::once(name.to_owned()).chain(numbered);
        let meter = ModelMeter(Arc::new(Counts {
            name: names.find(|name| !is_taken(name)).unwrap_or_default(),
            load: OnceLock::new(),
            busy_ns: AtomicU64::new(0),
            tokens: AtomicU64::new(0),
        }));
        meters.insert(key.to_owned(), meter.clone());
        meter
    }
}

/// What the models did since a run began.
pub(crate) struct MetersSince {
    meters: Arc<Meters>,
    /// What had been counted of each before.
    before: HashMap<String, (u64, u64)>,
    began: Instant,
}

impl MetersSince {
    pub(crate) fn now(meters: &Arc<Meters>) -> Self {
        let known = meters.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = |meter: &ModelMeter| (read(&meter.0.busy_ns), read(&meter.0.tokens));
        let before = known
            .iter()
            .map(|(key, meter)| (key.clone(), counts(meter)));
        Self {
            before: before.collect(),
            meters: Arc::clone(meters),
            began: Instant::now(),
        }
    }

    /// Of each model that is loaded, by name.
    pub(crate) fn reports(&self) -> Vec<ModelReport> {
        let known = self.meters.0.lock().unwrap_or_else(PoisonError::into_inner);
        let report = |(key, ModelMeter(counts)): (&String, &ModelMeter)| {
            let load = counts.load.get()?;
            let (busy_ns, tokens) = self.before.get(key).copied().unwrap_or_default();
            Some(ModelReport {
                name: counts.name.clone(),
                memory_bytes: load.n_bytes,
                load_s: load.time.as_secs_f64(),
                there_s: load.ended.max(self.began).elapsed().as_secs_f64(),
                busy_s: Duration::from_nanos(read(&counts.busy_ns) - busy_ns).as_secs_f64(),
                tokens: read(&counts.tokens) - tokens,
            })
        };
        let mut reports: Vec<ModelReport> = known.iter().filter_map(report).collect();
        reports.sort_by(|one, other| one.name.cmp(&other.name));
        reports
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_told_what_was_done_since_it_began() {
        let meters = Arc::<Meters>::default();
        let (one, other) = (meters.get("a/1", "a"), meters.get("b/1", "b"));
        one.loaded(5, Duration::from_secs(2));
        one.worked(Duration::from_millis(30), 7);
        let since = MetersSince::now(&meters);
        meters.get("a/1", "a").worked(Duration::from_millis(20), 3);
        other.worked(Duration::from_millis(1), 1);
        let reports = since.reports();
        assert_eq!(reports.len(), 1, "the other one is not loaded yet");
        let a = &reports[0];
        assert_eq!((a.name.as_str(), a.memory_bytes, a.tokens), ("a", 5, 3));
        assert!((a.busy_s - 0.02).abs() < 1e-9 && (a.load_s - 2.0).abs() < 1e-9);
        other.loaded(6, Duration::ZERO);
        let names: Vec<String> = since
            .reports()
            .into_iter()
            .map(|model| model.name)
            .collect();
        assert_eq!(names, ["a", "b"]);
        meters.get("a/2", "a").loaded(1, Duration::ZERO);
        let names: Vec<String> = since
            .reports()
            .into_iter()
            .map(|model| model.name)
            .collect();
        assert_eq!(names, ["a", "a (2)", "b"], "two are never called the same");
    }

    #[test]
    fn a_model_that_came_late_was_busy_since_it_came() {
        let report = ModelReport {
            name: "a".into(),
            memory_bytes: 1,
            load_s: 8.0,
            there_s: 2.0,
            busy_s: 1.9,
            tokens: 10,
        };
        assert!((report.busy_share() - 0.95).abs() < 1e-9);
    }
}
