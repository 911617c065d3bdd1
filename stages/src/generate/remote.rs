//! A model behind a server that speaks `OpenAI`'s protocol: vLLM, llama.cpp, Ollama and others.

mod answer;
mod request;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use crossbeam_channel::{Receiver, SendTimeoutError, Sender, bounded};
use pagemill_pipeline::{FieldError, ItemError, Resources, Secrets, StageError};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use self::answer::{Unread, read_answer, read_vectors};
use self::request::{Dialect, Shape, chat_request};
use super::ask::{Answer, Ask, Outcome, Said};

/// How long a stage waits before it looks whether the run was cancelled.
const PATIENCE: Duration = Duration::from_millis(50);

/// The wait after the first attempt; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 500 });

/// The longest wait between two attempts, whatever a server asks for.
const MAX_WAIT: Duration = Duration::from_mins(5);

/// The most that is read of an answer.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

/// A text that never reaches logs, reports or dead letters.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Two servers with two keys are two servers.
        write!(f, "secret {}", mark_of(&self.0))
    }
}

/// Tells secrets apart without telling them.
fn mark_of(text: &str) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("{:04x}", hasher.finish() as u16)
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// Settings of `model = { url = "...", name = "..." }`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteModel {
    /// Where the protocol begins, such as `http://127.0.0.1:8000/v1`.
    pub url: String,
    /// The model's name there.
    pub name: String,
    /// What the server knows its users by, such as `"${OPENAI_API_KEY}"`.
    #[serde(default)]
    pub key: Option<Secret>,
    /// Requests at once.
    #[serde(default = "usual_concurrency")]
    pub concurrency: usize,
    /// Time for one answer, in seconds.
    #[serde(default = "usual_timeout")]
    pub timeout_s: u64,
    /// How often a request is made that gets no answer, with longer and longer waits.
    #[serde(default = "usual_attempts")]
    pub attempts: usize,
}

fn usual_concurrency() -> usize {
    8
}

fn usual_timeout() -> u64 {
    300
}

fn usual_attempts() -> usize {
    6
}

impl RemoteModel {
    /// The model `name` of the server at `url`, with the usual limits.
    pub fn new(url: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            name: name.into(),
            key: None,
            concurrency: usual_concurrency(),
            timeout_s: usual_timeout(),
            attempts: usual_attempts(),
        }
    }

    /// The server, one for all stages of a run, so that the limit of requests is theirs
    /// together.
    ///
    /// # Errors
    /// A setting that cannot be used.
    pub(crate) fn shared(&self, resources: &Resources) -> Result<Arc<Remote>, FieldError> {
        self.check()?;
        let place = format!("{self:?}");
        Ok(resources.get_or_insert(&place, || Remote::new(self)))
    }

    fn check(&self) -> Result<(), FieldError> {
        let wrong = |problem: &str, hint: &str| Err(FieldError::new("model", problem, hint));
        if !self.url.starts_with("http://") && !self.url.starts_with("https://") {
            return wrong(
                "needs a `url` that begins with `http://` or `https://`",
                "for example `url = \"http://127.0.0.1:8000/v1\"`",
            );
        }
        if self.concurrency == 0 || self.timeout_s == 0 || self.attempts == 0 {
            return wrong(
                "must have at least 1 as `concurrency`, `timeout_s` and `attempts`",
                "leave them out for 8, 300 and 6",
            );
        }
        Ok(())
    }
}

/// A server, with the requests that are under way.
#[derive(Debug)]
pub struct Remote {
    settings: RemoteModel,
    agent: ureq::Agent,
    /// A request puts something in, and takes it out when it ends.
    under_way: (Sender<()>, Receiver<()>),
    /// On which nothing ever comes.
    silence: (Sender<()>, Receiver<()>),
    /// Whether it wants schemas in the older shape.
    older_shape: AtomicBool,
    /// Whether it tells no likelihoods.
    no_logprobs: AtomicBool,
}

/// Why no attempt was answered.
enum Unanswered {
    /// The server does not take the request.
    Refused(String),
    /// Every attempt failed.
    Failed(String),
}

impl Unanswered {
    fn why(self) -> String {
        match self {
            Self::Refused(why) | Self::Failed(why) => why,
        }
    }
}

/// Why an attempt got no answer.
enum Refused {
    /// Another attempt may; the server may have said when.
    ForNow { why: String, wait: Option<Duration> },
    /// This request never will.
    Request(String),
    /// No request will.
    All(String),
}

impl Remote {
    /// Makes no request yet.
    pub fn new(settings: &RemoteModel) -> Self {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(
                Duration::from_secs(10).min(Duration::from_secs(settings.timeout_s)),
            ))
            .timeout_global(Some(Duration::from_secs(settings.timeout_s)))
            .build();
        Self {
            settings: settings.clone(),
            agent: agent.into(),
            silence: bounded(1),
            under_way: bounded(settings.concurrency.max(1)),
            older_shape: AtomicBool::new(false),
            no_logprobs: AtomicBool::new(false),
        }
    }

    /// What the model says.
    ///
    /// # Errors
    /// The server wants another key, or knows no such model; or the run stops.
    pub(super) fn answer(
        &self,
        action: &'static str,
        ask: &Ask,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Outcome, StageError> {
        let read = |reply: &Json| read_answer(reply, &ask.wanted);
        let mut dialect = self.dialect();
        let mut first_refusal = None;
        loop {
            let (request, note) = match chat_request(&self.settings.name, ask, dialect) {
                Ok(request) => request,
                Err(reason) => return Ok(Outcome::Failed(ItemError::new(action, reason))),
            };
            let why = match self.call("chat/completions", request, &read, is_cancelled)? {
                Ok(answer) => {
                    self.learn(dialect);
                    return Ok(Outcome::Answer(match answer {
                        Answer::Text(said) => Answer::Text(Said { note, ..said }),
                        answer => answer,
                    }));
                }
                Err(Unanswered::Failed(why)) => why,
                Err(Unanswered::Refused(why)) => {
                    // If it refuses simpler words too, what it said first tells more.
                    let simpler = dialect.simpler(&why, &ask.wanted);
                    let why = first_refusal.get_or_insert(why);
                    if let Some(simpler) = simpler {
                        dialect = simpler;
                        continue;
                    }
                    std::mem::take(why)
                }
            };
            return Ok(Outcome::Failed(self.failed(action, &why)));
        }
    }

    /// What the server is known to understand.
    fn dialect(&self) -> Dialect {
        Dialect {
            shape: if self.older_shape.load(Ordering::Relaxed) {
                Shape::JsonObject
            } else {
                Shape::JsonSchema
            },
            logprobs: !self.no_logprobs.load(Ordering::Relaxed),
        }
    }

    fn learn(&self, dialect: Dialect) {
        if dialect.shape == Shape::JsonObject {
            self.older_shape.store(true, Ordering::Relaxed);
        }
        if !dialect.logprobs {
            self.no_logprobs.store(true, Ordering::Relaxed);
        }
    }

    /// One vector for each text, all of one length.
    ///
    /// # Errors
    /// The server wants another key, or knows no such model; or `is_cancelled`. The inner one
    /// is for these texts.
    pub fn embed(
        &self,
        texts: &[&str],
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Result<Vec<Vec<f32>>, ItemError>, StageError> {
        let request =
            json!({ "model": self.settings.name, "input": texts, "encoding_format": "float" });
        let read = |reply: &Json| read_vectors(reply, texts.len());
        let vectors = self.call("embeddings", request, &read, is_cancelled)?;
        Ok(vectors.map_err(|unanswered| self.failed("embed", &unanswered.why())))
    }

    fn failed(&self, action: &'static str, why: &str) -> ItemError {
        ItemError::new(action, format_args!("{} {why}", self.settings.url))
            .hint("see whether the server runs; `pagemill dead-letters retry` tries again")
    }

    /// Makes a request until it is answered. A model that says what it was not asked for is
    /// told so, since without chance it would say the same again. Inside, why it never was.
    fn call<T>(
        &self,
        path: &str,
        mut request: Json,
        read: &dyn Fn(&Json) -> Result<T, Unread>,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Result<T, Unanswered>, StageError> {
        let n_messages = request["messages"].as_array().map_or(0, Vec::len);
        let waits = ExponentialBuilder::default()
            .with_min_delay(FIRST_WAIT)
            .with_max_delay(Duration::from_mins(1))
            .with_max_times(self.settings.attempts - 1)
            .with_jitter();
        let mut waits = waits.build();
        loop {
            let (why, asked_wait) = match self.try_once(path, &request, is_cancelled)? {
                Ok(reply) => match read(&reply) {
                    Ok(answer) => return Ok(Ok(answer)),
                    Err(Unread::Garbage(why)) => (why, None),
                    Err(Unread::Useless(why)) => return Ok(Err(Unanswered::Refused(why.into()))),
                    Err(Unread::Misfit { said, why }) => {
                        if let Some(messages) = request["messages"].as_array_mut() {
                            messages.truncate(n_messages);
                            messages.extend(request::correction(&said, &why));
                        }
                        (format!("answered what is not asked for: {why}"), None)
                    }
                },
                Err(Refused::Request(why)) => return Ok(Err(Unanswered::Refused(why))),
                Err(Refused::All(why)) => {
                    return Err(StageError::fatal(
                        format_args!("{} {why}", self.settings.url),
                        "check `url`, `name` and `key` of `model`",
                    ));
                }
                Err(Refused::ForNow { why, wait }) => (why, wait),
            };
            let Some(wait) = waits.next() else {
                let n = self.settings.attempts;
                return Ok(Err(Unanswered::Failed(format!("{why}, {n} times"))));
            };
            let wait = asked_wait.unwrap_or(wait).min(MAX_WAIT);
            let url = Secrets::default().redact(&self.settings.url).into_owned();
            tracing::warn!("{url} {why}; trying again in {wait:.1?}");
            let until = Instant::now() + wait;
            while Instant::now() < until {
                if is_cancelled() {
                    return Err(StageError::Cancelled);
                }
                let left = until.saturating_duration_since(Instant::now());
                // Nobody sends: only the time passes.
                let _ = self.silence.1.recv_timeout(PATIENCE.min(left));
            }
        }
    }

    fn try_once(
        &self,
        path: &str,
        request: &Json,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Result<Json, Refused>, StageError> {
        loop {
            match self.under_way.0.send_timeout((), PATIENCE) {
                Ok(()) => break,
                Err(SendTimeoutError::Timeout(())) if !is_cancelled() => {}
                Err(_) => return Err(StageError::Cancelled),
            }
        }
        let answer = self.request(path, request);
        let _ = self.under_way.1.try_recv(); // What was put in above, or another's.
        Ok(answer)
    }

    fn request(&self, path: &str, request: &Json) -> Result<Json, Refused> {
        let for_now = |why: String| Refused::ForNow { why, wait: None };
        let url = format!("{}/{path}", self.settings.url.trim_end_matches('/'));
        let mut call = self.agent.post(&url).content_type("application/json");
        if let Some(Secret(key)) = &self.settings.key {
            call = call.header("authorization", format!("Bearer {key}"));
        }
        let mut reply = call
            .send(request.to_string())
            .map_err(|error| match error {
                ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                    Refused::All(format!("cannot be called: {error}"))
                }
                error => for_now(format!("gave no answer ({error})")),
            })?;
        let status = reply.status().as_u16();
        let wait = reply.headers().get("retry-after");
        let wait = wait.and_then(|wait| wait.to_str().ok()?.trim().parse::<f64>().ok());
        let wait = wait.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let body = reply
            .body_mut()
            .with_config()
            .limit(MAX_ANSWER_BYTES)
            .read_to_vec();
        if !(200..300).contains(&status) {
            let said = body.map(|body| what_it_says(&body)).unwrap_or_default();
            let why = format!("answered {status}{said}");
            return Err(match status {
                // llama-cpp-python says so of a request that it does not understand.
                500 if why.contains("response_format") || why.contains("logprobs") => {
                    Refused::Request(why)
                }
                408 | 409 | 425 | 429 | 500.. => Refused::ForNow { why, wait },
                401 | 403 | 404 | 405 => Refused::All(why),
                _ => Refused::Request(why),
            });
        }
        let body = body.map_err(|error| for_now(format!("broke off its answer ({error})")))?;
        serde_json::from_slice(&body).map_err(|_| for_now("answered what is not JSON".into()))
    }
}

/// What a server says of an error, shortened.
fn what_it_says(body: &[u8]) -> String {
    let json: Option<Json> = serde_json::from_slice(body).ok();
    let message = json.as_ref().and_then(|json| {
        let error = json.get("error").unwrap_or(json);
        error.get("message").or(Some(error))?.as_str()
    });
    let text = message.map_or_else(|| String::from_utf8_lossy(body).into_owned(), str::to_owned);
    let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.is_empty() {
        return String::new();
    }
    let cut = text.floor_char_boundary(300);
    format!(": {}", &text[..cut])
}

#[cfg(test)]
mod tests;
