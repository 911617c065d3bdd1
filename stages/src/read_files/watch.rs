//! Following a folder: hears, looks, reads, sends and removes as the plan says.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures::future::{BoxFuture, FutureExt, OptionFuture};
use futures::stream::{FuturesUnordered, StreamExt};
use pagemill_pipeline::{ItemError, Provenance, Prune, StageError};

use super::listing::{Listed, Observed, Seen};
use super::notice::{Eyes, Notices};
use super::pass::Pass;
use super::reading::Attempt;
use super::rest::{Job, Plan, RootState, Scan, Work};
use super::{Watching, blocking};

/// Documents that are read, or wait to be sent, at one time. Each is held in
/// memory. One whose earlier version is still under way waits for that one.
const MAX_JOBS: usize = 4;

/// Follows a folder until the run drains.
pub(super) struct Watch {
    pass: Pass,
    watching: Watching,
    notices: Arc<Notices>,
    eyes: Arc<Mutex<Eyes>>,
    /// Documents that were announced to the progress bar and must be read again.
    n_announced: usize,
}

/// What a scan found out; as the plan takes it.
enum Answer {
    Listed(Option<Listed>),
    Looked(Option<Vec<(std::path::PathBuf, Observed)>>),
    Checked(Vec<(Job, bool)>),
}

type Running<T> = BoxFuture<'static, Result<T, StageError>>;

impl Watch {
    pub(super) fn new(pass: Pass, watching: Watching) -> Self {
        let notices = Arc::new(Notices::default());
        let eyes = Eyes::new(Arc::clone(&pass.listing), Arc::clone(&notices));
        Self {
            pass,
            watching,
            notices,
            eyes: Arc::new(Mutex::new(eyes)),
            n_announced: 0,
        }
    }

    pub(super) async fn run(mut self) -> Result<(), StageError> {
        let pass = self.pass.clone();
        let known = blocking(move || pass.known());
        let Some(known) = self.pass.unless_draining(known).await.transpose()? else {
            return Ok(());
        };
        let listing = Arc::clone(&self.pass.listing);
        let removes_all = self.pass.outlet.prune() == Prune::All;
        let now = Instant::now();
        let mut plan = Plan::new(listing, self.watching, known?, removes_all, now);
        let mut scan: OptionFuture<Running<Answer>> = None.into();
        let (mut is_scanning, mut jobs) = (false, FuturesUnordered::new());
        loop {
            let now = Instant::now();
            self.hear(&mut plan, now);
            if !is_scanning && let Some(next) = plan.next_scan(now) {
                (scan, is_scanning) = (Some(self.scan(next)).into(), true);
            }
            while jobs.len() < MAX_JOBS
                && let Some(job) = plan.next_job()
            {
                jobs.push(self.start(job));
            }
            let wake_at = tokio::time::Instant::from_std(plan.wake_at());
            let is_idle = jobs.is_empty() && !is_scanning;
            // Dropped at the end of the wait, be it by an event, by draining or by
            // cancelling the run.
            let idle = is_idle.then(|| self.pass.outlet.idle());
            tokio::select! {
                biased;
                () = self.pass.outlet.draining() => break,
                Some(done) = jobs.next(), if !jobs.is_empty() => {
                    let (job, carried_out) = done?;
                    self.n_announced += usize::from(!carried_out && is_read(&job));
                    plan.done(Instant::now(), &job, carried_out);
                }
                Some(answer) = &mut scan, if is_scanning => {
                    is_scanning = false;
                    self.answer(&mut plan, answer?);
                }
                () = self.notices.came() => {}
                () = tokio::time::sleep_until(wake_at), if !is_scanning => {}
            }
            drop(idle);
        }
        // A document that is half sent must not look like one that has ended.
        while let Some(done) = jobs.next().await {
            done?;
        }
        Ok(())
    }

    fn hear(&self, plan: &mut Plan, now: Instant) {
        let heard = self.notices.take();
        for path in &heard.paths {
            plan.event(now, path);
        }
        if heard.has_gaps {
            plan.list_soon(now);
        }
    }

    /// Finds something out on a thread that may wait.
    fn scan(&self, scan: Scan) -> Running<Answer> {
        let (pass, eyes) = (self.pass.clone(), Arc::clone(&self.eyes));
        let find_out = move || {
            let mut eyes = eyes.lock().unwrap_or_else(PoisonError::into_inner);
            let listing = &pass.listing;
            Ok(match scan {
                Scan::Everything => {
                    let listed = eyes.find_root().then(|| listing.list());
                    Answer::Listed(listed.filter(|listed| !listed.is_without_root))
                }
                Scan::Look(paths) => {
                    let look = |path: std::path::PathBuf| {
                        let observed = listing.look(&path);
                        (path, observed)
                    };
                    let seen: Vec<_> = paths.into_iter().map(look).collect();
                    // Afterwards: a root that goes meanwhile takes its files along.
                    Answer::Looked(eyes.has_root().then_some(seen))
                }
                Scan::Check(jobs) => {
                    let check = |job: Job| Ok((is_done(&pass, &job)?, job));
                    let checked = jobs.into_iter().map(check);
                    let checked = checked.map(|done| done.map(|(is_done, job)| (job, is_done)));
                    Answer::Checked(checked.collect::<Result<_, StageError>>()?)
                }
            })
        };
        blocking(find_out)
            .map(|answer| answer.and_then(|it| it))
            .boxed()
    }

    fn answer(&mut self, plan: &mut Plan, answer: Answer) {
        let now = Instant::now();
        match answer {
            Answer::Looked(seen) => plan.looked(now, seen),
            Answer::Checked(jobs) => {
                let n_known = jobs.len().min(self.n_announced);
                self.n_announced -= n_known;
                self.pass.outlet.expect(jobs.len() - n_known);
                plan.checked(now, jobs);
            }
            Answer::Listed(listed) => {
                if let Some(root) = plan.listed(now, listed) {
                    self.report(root);
                }
            }
        }
    }

    /// Logs that the root was lost or found.
    fn report(&self, root: RootState) {
        let path = self.pass.listing.root.display();
        match root {
            RootState::There => tracing::info!(%path, "the watched folder is back"),
            RootState::Lost => {
                let hint = "nothing is removed until it is back; stop the run if it is to stay so";
                tracing::warn!(%path, hint, "the watched folder is gone or cannot be read");
            }
            RootState::Empty => {
                let hint = "nothing is removed until a file appears; look whether the folder is \
                            mounted, and at `include`; if the documents are gone for good, start \
                            the run again with `--prune=all`";
                tracing::warn!(
                    %path,
                    hint,
                    "no file is found in the watched folder, and earlier runs have stored some"
                );
            }
        }
    }

    /// Begins a job; ends with it and with whether it could be carried out.
    fn start(&self, job: Job) -> Running<(Job, bool)> {
        let (pass, eyes) = (self.pass.clone(), Arc::clone(&self.eyes));
        async move {
            let carried_out = match &job.what {
                Work::Read(seen) => read(&pass, &job, *seen).await?,
                Work::SetAside(error) => set_aside(&pass, &job, error)?,
                Work::Remove => remove(&pass, eyes, &job).await?,
            };
            Ok((job, carried_out))
        }
        .boxed()
    }
}

fn is_read(job: &Job) -> bool {
    matches!(job.what, Work::Read(_))
}

/// Whether the ledger knows the file as it is.
fn is_done(pass: &Pass, job: &Job) -> Result<bool, StageError> {
    match &job.what {
        Work::Read(Seen { state, at }) if !state.is_fresh(*at, state.tick()) => {
            pass.outlet.is_done(&job.uri, &state.to_string())
        }
        _ => Ok(false),
    }
}

async fn read(pass: &Pass, job: &Job, seen: Seen) -> Result<bool, StageError> {
    let (reader, path) = (pass.reader, job.path.clone());
    let reserved = pass
        .read_ahead
        .reserve(seen.state.n_bytes(), pass.outlet.room());
    let Some(_reserved) = pass.unless_draining(reserved).await.transpose()? else {
        return Ok(false);
    };
    let attempt = blocking(move || reader.attempt(&path, Some(seen.state)));
    let file = match pass.unless_draining(attempt).await.transpose()? {
        None | Some(Attempt::Changed | Attempt::Gone) => return Ok(false),
        Some(Attempt::Failed(error)) => {
            pass.outlet.dead_letter(&job.uri, &error)?;
            return Ok(true);
        }
        Some(Attempt::Read(file)) => file,
    };
    let tick = file.state.tick();
    let state = file.lasting_state(tick).map(|state| state.to_string());
    match reader.document(&job.uri, file.bytes, file.hash) {
        Ok(item) => {
            let provenance = Provenance { state, input: None };
            pass.outlet.send_from(item, provenance).await?;
        }
        Err(error) => pass.outlet.dead_letter(&job.uri, &error)?,
    }
    Ok(true)
}

fn set_aside(pass: &Pass, job: &Job, error: &ItemError) -> Result<bool, StageError> {
    pass.outlet.expect(1);
    pass.outlet.dead_letter(&job.uri, error)?;
    Ok(true)
}

async fn remove(pass: &Pass, eyes: Arc<Mutex<Eyes>>, job: &Job) -> Result<bool, StageError> {
    let (listing, path, uri) = (Arc::clone(&pass.listing), job.path.clone(), job.uri.clone());
    let is_gone = blocking(move || {
        let is_gone = match listing.look(&path) {
            Observed::Nothing => true,
            Observed::There(listed) => !listed.missing(&uri, [uri.clone()]).is_empty(),
            Observed::Unclear => false,
        };
        is_gone
            && eyes
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .has_root()
    });
    let is_gone = pass.unless_draining(is_gone).await.transpose()?;
    if is_gone == Some(true) {
        pass.outlet.remove(&job.uri).await?;
    }
    Ok(is_gone == Some(true))
}
