//! The thread that owns a model: it takes what any stage asks, and answers as each ends.
//!
//! All stages and pipelines that name a model share its thread, so that their sequences run
//! in one batch, and one that ends makes room for the next at once.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use std::collections::HashMap;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use pagemill_models::{
    Event, GenerateRequest, Generator, GeneratorOptions, Limits, Message, ModelError, Part,
    Patches, RequestId, Sampling,
};
use pagemill_pipeline::{ModelMeter, StageError};

use super::ask::{Answer, Ask, Picture, Said, Wanted};
use crate::models;

/// How long a stage waits before it looks whether the run was cancelled.
const PATIENCE: Duration = Duration::from_millis(50);

/// Questions that wait for the thread; each has a worker that waits for its answer.
const MAX_JOBS: usize = 1024;

/// Tokens that a chat template may add.
const TEMPLATE_ROOM: usize = 64;

/// Why there is no answer.
pub(super) enum Unanswered {
    /// For this item, beside others that have theirs.
    Item(Box<ModelError>),
    /// The device failed, or the thread did.
    Broken(String),
    /// The run stops.
    Cancelled,
}

/// A model and its thread.
#[derive(Debug)]
pub(crate) struct Host {
    /// `None` once the thread is to end.
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

struct Job {
    ask: Ask,
    reply: Sender<Result<Answer, Unanswered>>,
    is_cancelled: Arc<AtomicBool>,
}

impl Host {
    /// Loads the model on a thread of its own.
    ///
    /// # Errors
    /// Those of [`Generator::load`], and of starting a thread.
    pub(super) fn start(
        folder: PathBuf,
        options: GeneratorOptions,
        meter: ModelMeter,
    ) -> Result<Self, StageError> {
        let (jobs, waiting) = bounded(MAX_JOBS);
        let (loaded, is_loaded) = bounded(1);
        let run = move || match Generator::load(&folder, &options) {
            Ok(generator) => {
                meter.loaded(generator.memory_bytes() as u64, generator.load_time());
                let _ = loaded.send(Ok(())); // Whoever started it may have given up.
                Running::new(generator, waiting, meter).run();
            }
            Err(error) => {
                let _ = loaded.send(Err(error));
            }
        };
        let failed =
            |error: String| StageError::fatal(error, "see the lines above, and report this");
        let thread = std::thread::Builder::new()
            .name("pagemill-model".into())
            .spawn(run)
            .map_err(|error| failed(format!("no thread for the model: {error}")))?;
        match is_loaded.recv() {
            Ok(Ok(())) => Ok(Self {
                jobs: Some(jobs),
                thread: Some(thread),
            }),
            Ok(Err(error)) => Err(models::fatal(error)),
            Err(_) => Err(failed("the model's thread panicked while it loaded".into())),
        }
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn answer(
        &self,
        ask: Ask,
        is_cancelled: impl Fn() -> bool,
    ) -> Result<Answer, Unanswered> {
        let gone = || Unanswered::Broken("the model's thread ended".into());
        let (reply, answer) = bounded(1);
        let flag = Arc::new(AtomicBool::new(false));
        let job = Job {
            ask,
            reply,
            is_cancelled: Arc::clone(&flag),
        };
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(job).map_err(|_| gone())?;
        loop {
            match answer.recv_timeout(PATIENCE) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Disconnected) => return Err(gone()),
                Err(RecvTimeoutError::Timeout) if is_cancelled() => {
                    flag.store(true, Ordering::Relaxed);
                    return Err(Unanswered::Cancelled);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic has been told to whoever waited for an answer.
            let _ = thread.join();
        }
    }
}

/// What the thread has.
struct Running {
    generator: Generator,
    jobs: Receiver<Job>,
    asked: HashMap<RequestId, Asked>,
    meter: ModelMeter,
}

/// A sequence under way.
struct Asked {
    reply: Sender<Result<Answer, Unanswered>>,
    is_cancelled: Arc<AtomicBool>,
    note: Option<String>,
}

impl Running {
    fn new(generator: Generator, jobs: Receiver<Job>, meter: ModelMeter) -> Self {
        Self {
            generator,
            jobs,
            asked: HashMap::new(),
            meter,
        }
    }

    /// Until nobody can ask any more.
    fn run(&mut self) {
        while self.take_jobs() {
            if self.generator.is_idle() {
                continue;
            }
            for (id, asked) in &self.asked {
                if asked.is_cancelled.load(Ordering::Relaxed) {
                    self.generator.cancel(*id);
                }
            }
            self.asked
                .retain(|_, asked| !asked.is_cancelled.load(Ordering::Relaxed));
            if let Err(error) = self.step() {
                self.break_off(&error);
                break;
            }
        }
    }

    /// Takes what waits; with nothing to do, waits. False when nobody can ask any more.
    fn take_jobs(&mut self) -> bool {
        loop {
            let job = if self.generator.is_idle() {
                match self.jobs.recv() {
                    Ok(job) => job,
                    Err(_) => return false,
                }
            } else {
                match self.jobs.try_recv() {
                    Ok(job) => job,
                    Err(TryRecvError::Empty) => return true,
                    // Whoever still waits would have kept the channel open.
                    Err(TryRecvError::Disconnected) => return false,
                }
            };
            self.begin(job);
        }
    }

    fn begin(&mut self, job: Job) {
        let Job {
            mut ask,
            reply,
            is_cancelled,
        } = job;
        let note = fit_hint(&mut ask, &self.generator);
        let request = request_of(&ask);
        if let Wanted::Scores(labels) = &ask.wanted {
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            let mut began = Instant::now();
            let mut scores = self.generator.score(&request, &labels, true);
            if scores.is_err() && !self.generator.is_idle() {
                // Perhaps there was no room beside the others: they go first.
                self.finish_all();
                began = Instant::now();
                scores = self.generator.score(&request, &labels, true);
            }
            self.meter.worked(began.elapsed(), 0);
            let answer = scores.map(Answer::Scores);
            let _ = reply.send(answer.map_err(|error| Unanswered::Item(Box::new(error))));
            return;
        }
        match self.generator.submit(request) {
            Ok(id) => {
                let asked = Asked {
                    reply,
                    is_cancelled,
                    note,
                };
                self.asked.insert(id, asked);
            }
            // Who is gone needs no answer, here and below.
            Err(error) => {
                let _ = reply.send(Err(Unanswered::Item(Box::new(error))));
            }
        }
    }

    /// Steps until every answer has ended.
    fn finish_all(&mut self) {
        while !self.generator.is_idle() {
            if let Err(error) = self.step() {
                return self.break_off(&error);
            }
        }
    }

    fn step(&mut self) -> Result<(), ModelError> {
        let began = Instant::now();
        let events = self.generator.step()?;
        let mut n_tokens = 0;
        for event in events {
            n_tokens += self.tell(event);
        }
        self.meter.worked(began.elapsed(), n_tokens);
        Ok(())
    }

    /// Gives the tokens of an answer that has ended.
    fn tell(&mut self, event: Event) -> usize {
        let (id, answer) = match event {
            Event::Text { .. } => return 0,
            Event::Done { id, generated } => (id, Ok(generated)),
            Event::Failed { id, error } => (id, Err(Unanswered::Item(Box::new(error)))),
        };
        let Some(asked) = self.asked.remove(&id) else {
            return 0;
        };
        let mut n_tokens = 0;
        let answer = answer.map(|generated| {
            n_tokens = generated.token_ids.len();
            Answer::Text(Said {
                text: generated.text,
                finish: generated.finish_reason.into(),
                note: asked.note,
            })
        });
        let _ = asked.reply.send(answer);
        n_tokens
    }

    fn break_off(&mut self, error: &ModelError) {
        for (_, asked) in self.asked.drain() {
            let _ = asked.reply.send(Err(Unanswered::Broken(error.to_string())));
        }
    }
}

/// Shortens the hint until the sequence fits the model's context, and says so. The picture
/// and the prompt are never cut.
fn fit_hint(ask: &mut Ask, generator: &Generator) -> Option<String> {
    let hint = ask.hint.as_mut()?;
    let n_new = match &ask.wanted {
        Wanted::Text { limits, .. } => limits.max_new_tokens,
        Wanted::Scores(_) => 0,
    };
    let n_picture = match &ask.picture {
        Some(Picture::Patches(patches)) => patches.grid.n_tokens(),
        _ => 0,
    };
    let n_system = ask
        .system
        .as_deref()
        .map_or(0, |text| generator.count(text));
    let taken = n_system + generator.count(&ask.prompt) + n_picture + n_new + TEMPLATE_ROOM;
    let room = generator.max_context().saturating_sub(taken);
    let n_tokens = generator.count(hint);
    if n_tokens <= room {
        return None;
    }
    let mut n_left = n_tokens;
    while n_left > room && !hint.is_empty() {
        // A tenth less than its share, so that two rounds mostly do.
        let share = room as f64 / n_left as f64 * 0.9;
        let end = (hint.len() as f64 * share) as usize;
        hint.truncate(hint.floor_char_boundary(end));
        n_left = generator.count(hint);
    }
    Some(format!(
        "the words were cut from {n_tokens} to {n_left} tokens"
    ))
}

fn request_of(ask: &Ask) -> GenerateRequest {
    let mut parts = Vec::with_capacity(2);
    let mut images: Vec<Arc<Patches>> = Vec::new();
    if let Some(Picture::Patches(patches)) = &ask.picture {
        parts.push(Part::Image);
        images.push(Arc::clone(patches));
    }
    parts.push(Part::Text(ask.text()));
    let mut messages = Vec::with_capacity(2);
    if let Some(system) = &ask.system {
        messages.push(Message {
            role: "system".into(),
            parts: vec![Part::Text(system.clone())],
        });
    }
    messages.push(Message {
        role: "user".into(),
        parts,
    });
    let (sampling, limits, constraint) = match &ask.wanted {
        Wanted::Text {
            sampling,
            limits,
            grammar,
        } => {
            let constraint = grammar.as_ref().map(|grammar| grammar.constraint.clone());
            (sampling.clone(), limits.clone(), constraint)
        }
        Wanted::Scores(_) => (Sampling::default(), Limits::default(), None),
    };
    GenerateRequest {
        messages,
        images,
        sampling,
        limits,
        constraint,
    }
}
