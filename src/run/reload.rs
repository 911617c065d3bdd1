//! Reading the configuration again while its pipelines run.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use pagemill::{ConfigError, ConfigFile, Resources};
use tokio::time::{Interval, MissedTickBehavior};

use super::{Choice, check};
use crate::ConfigArgs;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The configuration that runs, and whether the file says something else by now.
pub(super) struct Reload<'a> {
    args: &'a ConfigArgs,
    choice: Choice,
    text: String,
    file_watch: FileWatch,
}

/// What the file says by now.
pub(super) enum News {
    /// What it said before.
    Same,
    /// Something that cannot be run.
    Wrong(ConfigError),
    /// Something new, which builds.
    Changed(Changed),
}

/// A new configuration, beside the one that it replaces.
pub(super) struct Changed {
    pub(super) file: ConfigFile,
    /// The chosen pipelines that are still in the file, and whether each reads
    /// as before.
    pub(super) pipelines: Vec<(String, bool)>,
}

impl<'a> Reload<'a> {
    /// Reads the file for the first time.
    pub(super) fn begin(
        args: &'a ConfigArgs,
        choice: Choice,
    ) -> Result<(Self, ConfigFile), ConfigError> {
        let file_watch = FileWatch::new(&args.config);
        let text = fs::read_to_string(&args.config);
        let file = match &text {
            Ok(text) => args.parse(text)?,
            Err(_) => args.read()?, // It says why it cannot be read.
        };
        let reload = Self {
            args,
            choice,
            text: text.unwrap_or_default(),
            file_watch,
        };
        Ok((reload, file))
    }

    pub(super) fn choice(&self) -> &Choice {
        &self.choice
    }

    pub(super) fn path(&self) -> &Path {
        &self.args.config
    }

    /// Waits until the file has changed and then stayed as it is for a moment.
    pub(super) async fn file_changed(&mut self) {
        self.file_watch.changed(&self.args.config).await;
    }

    /// Reads the file. What is wrong with it is told again by the next call.
    pub(super) fn read(&mut self, resources: &Resources) -> News {
        self.file_watch.looks = Looks::of(stamp(&self.args.config));
        let text = match fs::read_to_string(&self.args.config) {
            Ok(text) if text == self.text => return News::Same,
            Ok(text) => text,
            Err(_) => match self.args.read() {
                Err(error) => return News::Wrong(error),
                Ok(_) => return News::Same, // It is just being replaced.
            },
        };
        let file = match self.args.parse(&text) {
            Ok(file) => file,
            Err(error) => return News::Wrong(error),
        };
        let graphs = self.choice.still_in(&file);
        if let Err(error) = check(&file, &graphs, resources) {
            return News::Wrong(error);
        }
        let (old, new) = (tables(&self.text), tables(&text));
        let pipelines = graphs.iter().map(|graph| {
            let name = graph.name();
            (name.to_owned(), old.get(name) == new.get(name))
        });
        let pipelines = pipelines.collect();
        self.text = text;
        News::Changed(Changed { file, pipelines })
    }
}

/// The pipelines of a text that was read before, for comparing: comments and
/// order do not count.
fn tables(text: &str) -> toml::Table {
    toml::from_str(text).unwrap_or_default()
}

/// What tells one version of a file from another without reading it.
type Stamp = Option<(SystemTime, u64, u64)>;

fn stamp(path: &Path) -> Stamp {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

/// Looks at a file once a second.
struct FileWatch {
    looks: Looks,
    ticks: Option<Interval>,
}

/// What was seen of a file.
struct Looks {
    /// The version that was read.
    handled: Stamp,
    /// What it was at the last look, if that is another one.
    latest: Stamp,
}

impl FileWatch {
    fn new(path: &Path) -> Self {
        Self {
            looks: Looks::of(stamp(path)),
            ticks: None,
        }
    }

    /// Nothing is lost when the future is dropped and made again.
    async fn changed(&mut self, path: &Path) {
        let ticks = self.ticks.get_or_insert_with(|| {
            let mut ticks = tokio::time::interval(LOOK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        loop {
            ticks.tick().await;
            if self.looks.is_changed(stamp(path)) {
                return;
            }
        }
    }
}

impl Looks {
    fn of(handled: Stamp) -> Self {
        Self {
            handled,
            latest: None,
        }
    }

    /// Whether this is another version than the one that was read, and the
    /// same as at the last look. It then counts as read.
    fn is_changed(&mut self, now: Stamp) -> bool {
        // An editor may take the file away before it puts the new one there.
        if now.is_none() || now == self.handled {
            self.latest = None;
            return false;
        }
        if now != self.latest {
            self.latest = now;
            return false;
        }
        *self = Self::of(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_of_once_when_it_has_come_to_rest() {
        let at = |seconds| Some((SystemTime::UNIX_EPOCH + Duration::from_secs(seconds), 7, 1));
        let mut looks = Looks::of(at(1));
        let seen = [at(1), at(2), at(3), None, at(4), at(4), at(4), at(5), at(4)];
        let told = seen.map(|stamp| looks.is_changed(stamp));
        let expected = [false, false, false, false, false, true, false, false, false];
        assert_eq!(told, expected);
    }

    #[test]
    fn comments_and_order_make_no_other_pipeline() {
        let old = tables("[a.source.x]\nkind = \"k\"\n[b]\ndescription = \"d\"\n");
        let new = tables("[b]\ndescription = \"e\"\n# a\n[a.source.x]\nkind = \"k\"\n");
        assert_eq!(old.get("a"), new.get("a"));
        assert_ne!(old.get("b"), new.get("b"));
    }
}
