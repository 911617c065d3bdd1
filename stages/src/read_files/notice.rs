//! Collects the events of a watched folder until somebody asks.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Config, ErrorKind, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use super::listing::Listing;

/// Paths that are remembered; above that, everything is listed instead.
const MAX_PATHS: usize = 65_536;

/// Where something has happened. The thread that tells never waits: what
/// happens often at one place is put down once.
#[derive(Debug, Default)]
pub(super) struct Notices {
    heard: Mutex<Heard>,
    came: Notify,
    /// The folder that is watched may no longer be the one at its path.
    is_root_moved: AtomicBool,
}

/// What was heard since it was last asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) paths: HashSet<PathBuf>,
    /// Something was missed: only a listing of everything tells what.
    pub(super) has_gaps: bool,
}

impl Notices {
    /// Waits until there is something to [take](Notices::take).
    pub(super) async fn came(&self) {
        self.came.notified().await;
    }

    pub(super) fn take(&self) -> Heard {
        std::mem::take(&mut *self.lock())
    }

    fn put_down(&self, listing: &Listing, root: &Path, event: notify::Result<Event>) {
        let mut heard = self.lock();
        match event {
            Err(error) => {
                if matches!(error.kind, ErrorKind::MaxFilesWatch) {
                    warn_of_limit(&error);
                }
                heard.has_gaps = true;
            }
            Ok(event) if event.need_rescan() => heard.has_gaps = true,
            Ok(event) if !is_change(event.kind) => return,
            Ok(event) => {
                let may_move = matches!(
                    event.kind,
                    EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))
                );
                for path in event.paths {
                    let Ok(below) = path.strip_prefix(root) else {
                        continue;
                    };
                    if below.as_os_str().is_empty() {
                        self.is_root_moved.fetch_or(may_move, Ordering::Relaxed);
                        heard.paths.insert(listing.root.clone());
                        continue;
                    }
                    let path = listing.root.join(below);
                    if listing.concerns(&path) {
                        heard.paths.insert(path);
                    }
                }
                if heard.paths.len() > MAX_PATHS {
                    heard.paths = HashSet::new();
                    heard.has_gaps = true;
                }
            }
        }
        drop(heard);
        self.came.notify_one();
    }

    fn take_root_moved(&self) -> bool {
        self.is_root_moved.swap(false, Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether something may be other than before. Our own reading is told, too.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

fn warn_of_limit(error: &notify::Error) {
    tracing::warn!(
        %error,
        hint = "raise `fs.inotify.max_user_watches` with sysctl",
        "the system watches no more folders: some changes are found only by listing, every `rescan_s`"
    );
}

/// What tells a folder from another one that takes its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RootId {
    device: u64,
    inode: u64,
}

impl RootId {
    #[cfg(unix)]
    fn of(root: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let metadata = fs::metadata(root).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }

    #[cfg(not(unix))]
    fn of(root: &Path) -> Option<Self> {
        fs::metadata(root).ok().map(|_| Self {
            device: 0,
            inode: 0,
        })
    }
}

/// Asks the system to tell of changes below the root.
#[derive(Debug)]
pub(super) struct Eyes {
    listing: Arc<Listing>,
    notices: Arc<Notices>,
    root: Option<RootId>,
    watcher: Option<RecommendedWatcher>,
    has_warned: bool,
}

impl Eyes {
    pub(super) fn new(listing: Arc<Listing>, notices: Arc<Notices>) -> Self {
        Self {
            listing,
            notices,
            root: None,
            watcher: None,
            has_warned: false,
        }
    }

    /// Watches the folder that is at the root's path now, if it is another one
    /// than before. To be called before everything is listed, so that nothing
    /// falls between. `false` if there is none, or only the empty place where
    /// a disk was mounted.
    pub(super) fn find_root(&mut self) -> bool {
        let found = RootId::of(&self.listing.root);
        let is_moved = self.notices.take_root_moved();
        let is_unmounted = self.is_elsewhere(found) && is_empty(&self.listing.root);
        if found.is_none() || is_unmounted {
            self.watcher = None;
            return false;
        }
        if is_moved || found != self.root || self.watcher.is_none() {
            self.watcher = None; // Its thread ends before the next begins.
            self.watcher = self.watch();
            self.root = found;
        }
        true
    }

    /// Whether the root is where it was.
    pub(super) fn has_root(&self) -> bool {
        let found = RootId::of(&self.listing.root);
        found.is_some() && !self.is_elsewhere(found)
    }

    fn is_elsewhere(&self, found: Option<RootId>) -> bool {
        let devices = self.root.zip(found);
        devices.is_some_and(|(before, now)| before.device != now.device)
    }

    fn watch(&mut self) -> Option<RecommendedWatcher> {
        let (listing, notices) = (Arc::clone(&self.listing), Arc::clone(&self.notices));
        let asked = (|| {
            // The watcher does not look into a folder that is given as a symbolic link.
            let root = fs::canonicalize(&listing.root).map_err(notify::Error::io)?;
            let config = Config::default().with_follow_symlinks(listing.follow_links);
            // A file that is replaced is no longer watched, but its folder is.
            let file = root.parent().filter(|_| root.is_file()).map(Path::to_owned);
            let place = root.clone();
            let tell = move |event| notices.put_down(&listing, &root, event);
            let mut watcher = RecommendedWatcher::new(tell, config)?;
            let answer = match &file {
                Some(folder) => watcher.watch(folder, RecursiveMode::NonRecursive),
                None => watcher.watch(&place, RecursiveMode::Recursive),
            };
            Ok::<_, notify::Error>((watcher, answer))
        })();
        let (watcher, answer) = asked.map_or_else(
            |error| (None, Err(error)),
            |(watcher, answer)| (Some(watcher), answer),
        );
        if let Err(error) = answer
            && !std::mem::replace(&mut self.has_warned, true)
        {
            if matches!(error.kind, ErrorKind::MaxFilesWatch) {
                warn_of_limit(&error);
            } else {
                tracing::warn!(
                    %error,
                    "the system does not tell of changes: they are found only by listing, every `rescan_s`"
                );
            }
        }
        watcher
    }
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, Flag, RenameMode};

    use super::*;
    use crate::read_files::{ReadFiles, tests::config};

    fn notices(folder: &Path) -> impl Fn(notify::Result<Event>) -> Heard {
        let config = crate::read_files::ReadFilesConfig {
            exclude: vec!["drafts".into()],
            ..config(folder)
        };
        let (listing, folder) = (ReadFiles::new(&config).unwrap().listing, folder.to_owned());
        let notices = Notices::default();
        move |event| {
            notices.put_down(&listing, &folder, event);
            notices.take()
        }
    }

    fn event(kind: EventKind, path: PathBuf) -> Event {
        Event::new(kind).add_path(path)
    }

    const CREATED: EventKind = EventKind::Create(CreateKind::File);

    #[test]
    fn changes_are_heard_and_our_own_reading_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let hear = notices(folder.path());
        let path = folder.path().join("a.pdf");
        let closed = |mode| EventKind::Access(AccessKind::Close(mode));
        let heard = |kind| hear(Ok(event(kind, path.clone()))).paths.len();
        assert_eq!(heard(CREATED), 1);
        assert_eq!(heard(closed(AccessMode::Write)), 1);
        assert_eq!(heard(closed(AccessMode::Read)), 0);
        assert_eq!(
            heard(EventKind::Access(AccessKind::Open(AccessMode::Any))),
            0
        );
    }

    #[test]
    fn what_the_patterns_shut_out_is_not_heard() {
        let folder = tempfile::tempdir().unwrap();
        let hear = notices(folder.path());
        for name in [".a.pdf.swp", ".git/index", "drafts/a.pdf", "../b.pdf"] {
            let heard = hear(Ok(event(CREATED, folder.path().join(name))));
            assert_eq!(heard, Heard::default(), "{name}");
        }
    }

    #[test]
    fn an_overflow_leaves_gaps_and_so_do_more_paths_than_can_be_kept() {
        let folder = tempfile::tempdir().unwrap();
        let hear = notices(folder.path());
        let overflow = Event::new(EventKind::Other).set_flag(Flag::Rescan);
        assert!(hear(Ok(overflow)).has_gaps);
        assert!(hear(Err(notify::Error::generic("lost"))).has_gaps);
        let names = 0..=MAX_PATHS;
        let many = names.map(|n| folder.path().join(n.to_string()));
        let event = many.fold(Event::new(CREATED), Event::add_path);
        let heard = hear(Ok(event));
        assert!(heard.has_gaps && heard.paths.is_empty());
    }

    #[test]
    fn a_root_that_moves_is_found_again_at_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("documents");
        fs::create_dir(&root).unwrap();
        let listing = Arc::new(ReadFiles::new(&config(&root)).unwrap().listing);
        let notices = Arc::new(Notices::default());
        let mut eyes = Eyes::new(Arc::clone(&listing), Arc::clone(&notices));
        assert!(eyes.find_root() && eyes.has_root());
        fs::remove_dir(&root).unwrap();
        assert!(!eyes.has_root() && !eyes.find_root());
        fs::create_dir(&root).unwrap();
        assert!(eyes.find_root() && eyes.watcher.is_some());
        let moved = EventKind::Modify(ModifyKind::Name(RenameMode::From));
        notices.put_down(&listing, &root, Ok(event(moved, root.clone())));
        assert!(notices.take_root_moved());
    }

    #[test]
    fn an_empty_folder_on_another_disk_is_no_root() {
        let folder = tempfile::tempdir().unwrap();
        let listing = Arc::new(ReadFiles::new(&config(folder.path())).unwrap().listing);
        let mut eyes = Eyes::new(listing, Arc::default());
        assert!(eyes.find_root());
        // As if a disk had been mounted here.
        let device = eyes.root.as_mut().map(|root| &mut root.device);
        *device.unwrap() += 1;
        assert!(!eyes.has_root() && !eyes.find_root());
        fs::write(folder.path().join("a.pdf"), "").unwrap();
        assert!(eyes.find_root() && eyes.has_root());
    }
}
