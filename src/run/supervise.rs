//! Runs pipelines beside each other: starts them, hears signals, starts those
//! anew whose configuration has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal as _;
use std::net::TcpListener;
use std::path::PathBuf;

use pagemill::pipeline::RunOptions;
use pagemill::{ConfigError, ConfigFile, Graph, Pipeline, Report, Resources, RunControl, RunError};
use tokio::task::{JoinError, JoinSet};

use super::reload::{Changed, News, Reload};
use super::reports::{Ended, Reports};
use super::signals::{Asked, Signals};
use super::{Board, systemd};
use crate::{FAILED, metrics, progress};

/// A pipeline that is to be run.
pub(crate) struct Job {
    pipeline: Pipeline,
    is_continuous: bool,
    /// Where its dead letters go.
    letters: Option<PathBuf>,
}

impl Job {
    pub(crate) fn new(
        file: &ConfigFile,
        graph: &Graph,
        resources: &Resources,
        options: RunOptions,
    ) -> Result<Self, ConfigError> {
        Ok(Self {
            is_continuous: graph.is_continuous() && options.retries.is_none(),
            letters: graph.dead_letters().map(|root| root.join(graph.name())),
            pipeline: file.build(graph, resources)?.with_options(options),
        })
    }
}

/// What pipelines are made from when the configuration has changed.
pub(crate) struct Anew<'a> {
    pub(super) reload: Reload<'a>,
    pub(super) resources: Resources,
    pub(super) options: RunOptions,
}

/// Runs `jobs` until the last of them has ended. One that fails does not stop
/// the others.
pub(crate) async fn supervise(
    jobs: Vec<Job>,
    anew: Option<Anew<'_>>,
    listener: Option<TcpListener>,
    reports: &mut Reports,
) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let board = Board::default();
    // They end when this function does.
    let mut onlookers = JoinSet::new();
    onlookers.spawn(progress::show(board.clone()));
    onlookers.spawn(systemd::keep_telling(board.clone()));
    if let Some(listener) = listener {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        onlookers.spawn(metrics::serve(listener, board.clone()));
    }
    let mut supervisor = Supervisor {
        anew,
        board,
        reports,
        running: BTreeMap::new(),
        runs: JoinSet::new(),
        starting: JoinSet::new(),
        not_started: BTreeSet::new(),
        successors: BTreeMap::new(),
        is_ready: false,
        is_stopping: false,
    };
    for job in jobs {
        supervisor.start(job);
    }
    supervisor.serve(&mut signals).await;
    Ok(())
}

struct Supervisor<'a, 'b> {
    anew: Option<Anew<'a>>,
    board: Board,
    reports: &'b mut Reports,
    running: BTreeMap<String, Running>,
    runs: JoinSet<(String, Result<Report, RunError>)>,
    /// Each ends when its run has started, or will not start any more.
    starting: JoinSet<(String, bool)>,
    not_started: BTreeSet<String>,
    /// What is run when the run of the same pipeline has ended.
    successors: BTreeMap<String, Successor>,
    /// Whether systemd knows that everything runs.
    is_ready: bool,
    is_stopping: bool,
}

/// A run that is under way.
struct Running {
    control: RunControl,
    letters: Option<PathBuf>,
    is_continuous: bool,
    /// Whether it ends because its configuration has changed.
    is_outdated: bool,
}

/// A configuration whose pipeline is built when the run before it has ended, so
/// that the two do not share what belongs to one.
type Successor = std::sync::Arc<ConfigFile>;

impl Supervisor<'_, '_> {
    fn start(&mut self, job: Job) {
        let name = job.pipeline.name().to_owned();
        let control = RunControl::default();
        self.board.begin(&name, job.is_continuous, control.clone());
        let running = Running {
            control: control.clone(),
            letters: job.letters,
            is_continuous: job.is_continuous,
            is_outdated: false,
        };
        self.running.insert(name.clone(), running);
        self.not_started.insert(name.clone());
        // It does not hold the control, which would hold the ledger.
        let (of_start, started) = (name.clone(), control.started());
        self.starting
            .spawn(async move { (of_start, started.await) });
        self.runs
            .spawn(async move { (name, job.pipeline.run(&control).await) });
    }

    async fn serve(&mut self, signals: &mut Signals) {
        while !self.runs.is_empty() {
            let is_followed = !self.is_stopping && self.running.values().any(|r| r.is_continuous);
            tokio::select! {
                Some(ended) = self.runs.join_next() => self.ended(ended),
                Some(started) = self.starting.join_next() => {
                    if let Ok((name, true)) = started {
                        self.not_started.remove(&name);
                    }
                }
                asked = signals.next() => match asked {
                    Asked::Stop => self.stop(),
                    Asked::Reload => self.reload(),
                },
                () = file_changed(self.anew.as_mut()), if is_followed => self.reload(),
            }
            if !self.is_ready && self.not_started.is_empty() && self.successors.is_empty() {
                self.is_ready = true;
                systemd::ready();
            }
        }
    }

    fn ended(&mut self, ended: Result<(String, Result<Report, RunError>), JoinError>) {
        let (name, result) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                // The engine catches what stages do: this is a bug of its own.
                progress::tell(&format!("error: a run broke off: {error}"));
                self.reports.count(FAILED);
                return;
            }
        };
        let last = match &result {
            Ok(report) => Some(report.totals.clone()),
            Err(error) => error.report.as_ref().map(|report| report.totals.clone()),
        };
        self.board.end(&name, last);
        self.not_started.remove(&name);
        let letters = self
            .running
            .remove(&name)
            .and_then(|running| running.letters);
        let pipeline = name.clone();
        self.reports.add(Ended {
            pipeline,
            result,
            letters,
        });
        if let Some(file) = self.successors.remove(&name)
            && !self.is_stopping
        {
            self.start_from(&file, &name);
        }
    }

    /// The first time it drains, then it cancels.
    fn stop(&mut self) {
        let controls = self.running.values().map(|running| &running.control);
        if self.is_stopping {
            controls.for_each(RunControl::cancel);
            return;
        }
        tracing::warn!("stopping: finishing what is under way (Ctrl-C again to stop at once)");
        controls.for_each(RunControl::drain);
        self.is_stopping = true;
        self.successors.clear();
        systemd::stopping();
    }

    /// Takes the configuration over, if it is another one by now.
    fn reload(&mut self) {
        let Some(anew) = self.anew.as_mut().filter(|_| !self.is_stopping) else {
            return;
        };
        systemd::reloading();
        self.is_ready = false;
        let path = anew.reload.path().display().to_string();
        match anew.reload.read(&anew.resources) {
            News::Same => {}
            News::Wrong(error) => {
                let errors = error.render(std::io::stderr().is_terminal());
                progress::tell(&format!(
                    "{errors}\n\nerror: the changed configuration is not taken over\n\
                     hint: the run goes on as it was; mend `{path}`, and it is read again"
                ));
            }
            News::Changed(changed) => {
                let names = self.take_over(changed);
                if !names.is_empty() {
                    progress::tell(&format!("`{path}` has changed: {}", names.join(", ")));
                }
            }
        }
    }

    /// Ends what has changed or is gone, and starts what has changed or is new;
    /// what is told of it.
    fn take_over(&mut self, changed: Changed) -> Vec<String> {
        let mut told = Vec::new();
        let file = Successor::new(changed.file);
        self.successors.clear();
        for (name, running) in &mut self.running {
            let found = changed.pipelines.iter().find(|(other, _)| other == name);
            match found {
                None => told.push(format!("`{name}` ends")),
                Some((_, true)) if !running.is_outdated => continue,
                Some(_) => {
                    told.push(format!("`{name}` is run anew"));
                    self.successors
                        .insert(name.clone(), Successor::clone(&file));
                }
            }
            running.is_outdated = true;
            running.control.drain();
        }
        for (name, is_same) in changed.pipelines {
            if !is_same && !self.running.contains_key(&name) {
                self.start_from(&file, &name);
                told.push(format!("`{name}` is run"));
            }
        }
        told
    }

    fn start_from(&mut self, file: &ConfigFile, name: &str) {
        let Some(anew) = &self.anew else { return };
        let job = file
            .pipeline(Some(name))
            .and_then(|graph| Job::new(file, graph, &anew.resources, anew.options.clone()));
        match job {
            Ok(job) => self.start(job),
            Err(error) => {
                // It could be built when the file was read.
                progress::tell(&error.render(std::io::stderr().is_terminal()));
                self.reports.count(FAILED);
            }
        }
    }
}

/// Waits until the file has changed; for good where it is not read again.
async fn file_changed(anew: Option<&mut Anew<'_>>) {
    match anew {
        Some(anew) => anew.reload.file_changed().await,
        None => std::future::pending().await,
    }
}
