//! Models from the Hugging Face hub, into the cache that other tools share, by hf-hub.
//!
//! A model is fetched at one commit: the hub says which one a revision is, all files are asked
//! for at that commit, and `refs/<revision>`, by which [`resolve()`] finds a model, is written
//! when all of them are here. So a run that is killed leaves nothing that counts, an older
//! version of the model stays in use until the new one is whole, and what had come is not
//! fetched again.
//!
//! hf-hub resumes: it appends to `blobs/<etag>.part` and asks for the rest. It believes that
//! the rest is what comes, so sizes are checked here, and a part that has all its bytes, or too
//! many, is dealt with before hf-hub asks for what is not there.

mod access;
mod client;
pub(crate) mod names;
mod problem;

#[cfg(test)]
mod server;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process;

use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiError, ApiRepo};

pub use access::Hub;
pub use problem::FetchProblem;

use crate::error::ModelError;
use crate::open;
use crate::resolve::{MAIN, ModelPlaces, resolve};
use client::Client;
use names::RemoteFile;

/// How far the download of a model is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchProgress {
    /// The model that is being fetched; an adapter's base follows its adapter.
    pub model: String,
    /// The file that is being fetched, relative to the model's folder.
    pub file: String,
    /// Its position among the model's files, from 0.
    pub index: usize,
    /// How many files are fetched of this model.
    pub n_files: usize,
    /// What is here of the file, with what an earlier run left.
    pub file_bytes: u64,
    /// Size of the file, if it is known.
    pub file_total_bytes: Option<u64>,
    /// What is here of all the model's files.
    pub model_bytes: u64,
    /// Size of all the model's files, if it is known.
    pub model_total_bytes: Option<u64>,
}

/// Fetches a model into the Hugging Face cache of `places`, and gives its folder.
///
/// Of its files only those come that this crate reads: configuration, vocabulary and
/// safetensors; or, of a model that has only those, GGUF files: one and the vision part beside
/// it. Which one says `owner/model/file.gguf`, and then that file's path is given. Files that
/// are here already are not fetched again, and one that was cut off in the middle goes on from
/// there. `name` is `owner/model`, or `owner/model@revision`, by which
/// [`resolve()`] finds another revision than `main`. If the model is an adapter, its base is
/// fetched as well unless it is here. `progress` is called at each file's start and end, and
/// for every few kilobytes.
///
/// # Errors
/// [`ModelError::InvalidName`] for what can be no name on the hub, and [`ModelError::Fetch`]
/// for all that goes wrong between here and there.
pub fn fetch(
    name: &str,
    revision: Option<&str>,
    places: &ModelPlaces,
    progress: &mut dyn FnMut(&FetchProgress),
) -> Result<PathBuf, ModelError> {
    let invalid = |name: &str, problem| ModelError::InvalidName {
        name: name.to_owned(),
        problem,
    };
    let (model, in_name) = names::split_revision(name);
    let (model, file) = names::split_file(model);
    if !names::is_model(model) {
        return Err(invalid(model, "is no name of a model on the hub"));
    }
    let revision = match (revision, in_name) {
        (Some(one), Some(other)) if one != other => {
            return Err(invalid(
                name,
                "names another revision than the one asked for",
            ));
        }
        (one, other) => one.or(other).unwrap_or(MAIN),
    };
    if !names::is_revision(revision) {
        return Err(invalid(revision, "is no name of a revision"));
    }
    let wanted = Wanted {
        model,
        file,
        revision,
    };
    fetch_at(&wanted, places, HasBase::Maybe, progress)
}

/// What is fetched.
struct Wanted<'a> {
    model: &'a str,
    /// One of several GGUF files.
    file: Option<&'a str>,
    revision: &'a str,
}

/// Whether what is fetched may be an adapter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum HasBase {
    Maybe,
    No,
}

fn fetch_at(
    wanted: &Wanted<'_>,
    places: &ModelPlaces,
    has_base: HasBase,
    progress: &mut dyn FnMut(&FetchProgress),
) -> Result<PathBuf, ModelError> {
    let failed = |problem| ModelError::Fetch {
        name: wanted.model.to_owned(),
        problem,
    };
    let client = Client::new(wanted.model, places).map_err(failed)?;
    let download = Download::begin(&client, wanted, places).map_err(failed)?;
    download.bring_all(progress).map_err(failed)?;
    if has_base == HasBase::Maybe {
        fetch_base(&download.snapshot, places, progress)?;
    }
    download.publish(wanted.revision).map_err(failed)?;
    Ok(match wanted.file {
        Some(file) => download.snapshot.join(file),
        None => download.snapshot,
    })
}

/// The folder of a model, which is fetched if it is not here, and its base with it.
///
/// # Errors
/// Those of [`resolve()`] for a path, and of [`fetch`] for a name on the hub.
pub fn resolve_or_fetch(
    name: &str,
    places: &ModelPlaces,
    progress: &mut dyn FnMut(&FetchProgress),
) -> Result<PathBuf, ModelError> {
    match resolve(name, places) {
        Ok(folder) => {
            fetch_base(&folder, places, progress)?;
            Ok(folder)
        }
        Err(ModelError::NotFound { .. }) if names::is_hub_name(name) => {
            fetch(name, None, places, progress)
        }
        Err(error) => Err(error),
    }
}

/// Fetches what the adapter in `folder` was trained on, if it is a model that is not here. A
/// base that is an adapter itself is refused when it is loaded, so its own base is left.
fn fetch_base(
    folder: &Path,
    places: &ModelPlaces,
    progress: &mut dyn FnMut(&FetchProgress),
) -> Result<(), ModelError> {
    let Some(base) = open::base_of(folder)? else {
        return Ok(());
    };
    let is_here = folder.join(&base.name).is_dir() || base.find(places).is_ok();
    if is_here || !names::is_hub_name(&base.name) {
        return Ok(()); // Loading says what is wrong with a path.
    }
    let (model, in_name) = names::split_revision(&base.name);
    let trained_on = base.revision.as_deref();
    let revision = in_name.or(trained_on.filter(|revision| names::is_revision(revision)));
    let revision = revision.unwrap_or(MAIN);
    let wanted = Wanted {
        model,
        file: None,
        revision,
    };
    fetch_at(&wanted, places, HasBase::No, progress).map(drop)
}

/// One model on its way, at one commit.
struct Download<'a> {
    client: &'a Client<'a>,
    model: &'a str,
    commit: String,
    repo: ApiRepo,
    files: Vec<RemoteFile>,
    /// The model's folder in the cache.
    cache: PathBuf,
    /// The folder of this commit in it, with links to `blobs`.
    snapshot: PathBuf,
}

impl<'a> Download<'a> {
    /// Asks what there is.
    fn begin(
        client: &'a Client<'a>,
        &Wanted {
            model,
            file,
            revision,
        }: &Wanted<'a>,
        places: &ModelPlaces,
    ) -> Result<Self, FetchProblem> {
        let listing = client.list(revision)?;
        let files = names::choose(listing.files, file).map_err(|others| match file {
            Some(file) => FetchProblem::NoSuchFile {
                file: file.to_owned(),
                others,
            },
            None => FetchProblem::NoSafetensors { others },
        })?;
        let cache = places.hugging_face_folder(model);
        Ok(Self {
            client,
            model,
            repo: client.repo(&listing.sha),
            files,
            snapshot: cache.join("snapshots").join(&listing.sha),
            commit: listing.sha,
            cache,
        })
    }

    fn bring_all(&self, progress: &mut dyn FnMut(&FetchProgress)) -> Result<(), FetchProblem> {
        let mut state = FetchProgress {
            model: self.model.to_owned(),
            file: String::new(),
            index: 0,
            n_files: self.files.len(),
            file_bytes: 0,
            file_total_bytes: None,
            model_bytes: 0,
            model_total_bytes: self.files.iter().map(|file| file.size).sum(),
        };
        for (index, file) in self.files.iter().enumerate() {
            state.file.clone_from(&file.name);
            state.index = index;
            state.file_bytes = 0;
            state.file_total_bytes = file.size;
            progress(&state);
            let mut watch = Watch {
                n_bytes_before: state.model_bytes,
                state: &mut state,
                report: &mut *progress,
            };
            let n_bytes = self.bring(file, &mut watch)?;
            watch.set(n_bytes);
        }
        Ok(())
    }

    /// Puts one file into the snapshot. Gives its size.
    fn bring(&self, file: &RemoteFile, watch: &mut Watch<'_>) -> Result<u64, FetchProblem> {
        let link = self.snapshot.join(&file.name);
        if let Some(n_bytes) = whole(&link, file.size) {
            return Ok(n_bytes);
        }
        let promise = self.client.ask(&self.commit, &file.name)?;
        let size = file.size.or(promise.size);
        let blob = self.cache.join("blobs").join(&promise.etag);
        // What is there is a link to nowhere, or to something else.
        self.written(remove(&link))?;
        // Another version of the model may have brought the same file.
        let n_bytes = match whole(&blob, size) {
            Some(n_bytes) => n_bytes,
            None => self.download(file, &blob, size, watch)?,
        };
        if whole(&link, size).is_none() {
            self.written(link_to_blob(&promise.etag, &link, &file.name))?;
        }
        Ok(n_bytes)
    }

    /// Brings a file's bytes into `blob`. A connection that breaks is taken up at once as long
    /// as each try brings something.
    fn download(
        &self,
        file: &RemoteFile,
        blob: &Path,
        size: Option<u64>,
        watch: &mut Watch<'_>,
    ) -> Result<u64, FetchProblem> {
        let part = blob.with_extension("part");
        loop {
            if let Some(n_bytes) = self.written(mend_part(blob, size))? {
                return Ok(n_bytes);
            }
            let n_before = length(&part).unwrap_or(0);
            watch.state.file_total_bytes = size;
            let ended = self.repo.download_with_progress(&file.name, &mut *watch);
            if let Err(error) = ended {
                let n_bytes = length(&part).unwrap_or(0);
                let problem = self.problem(file, size, n_bytes, error);
                let is_cut = matches!(problem, FetchProblem::CutOff { .. });
                if is_cut && n_bytes > n_before {
                    continue;
                }
                return Err(problem);
            }
            // A file must be on the disk before anything says that the model is here.
            let n_bytes = self.written(File::open(blob).and_then(|blob| {
                blob.sync_all()?;
                Ok(blob.metadata()?.len())
            }))?;
            let Some(total) = size.filter(|size| *size != n_bytes) else {
                return Ok(n_bytes);
            };
            // hf-hub took what came for the whole file, and linked to it.
            self.written(remove(&self.snapshot.join(&file.name)))?;
            if n_bytes < total {
                self.written(fs::rename(blob, &part))?;
                if n_bytes > n_before {
                    continue;
                }
                return Err(cut_off(file, n_bytes, size));
            }
            self.written(remove(blob))?;
            // Asked for the rest, some servers give everything; the next try asks for that.
            if n_before == 0 {
                let problem = format!("{n_bytes} bytes instead of {total}");
                return Err(self.client.nonsense(&format!("`{}`", file.name), problem));
            }
        }
    }

    fn problem(
        &self,
        file: &RemoteFile,
        size: Option<u64>,
        n_bytes: u64,
        error: ApiError,
    ) -> FetchProblem {
        match error {
            ApiError::LockAcquisition(_) => FetchProblem::Busy {
                file: file.name.clone(),
            },
            ApiError::RequestError(error) => self.client.unreachable(error),
            // What the connection says carries a text of its own; what the disk says does not.
            ApiError::IoError(error) if error.get_ref().is_some() || is_network(&error) => {
                cut_off(file, n_bytes, size)
            }
            ApiError::IoError(error) => FetchProblem::write(&self.cache, error),
            error => {
                let what = format!("`{}`", file.name);
                self.client.nonsense(&what, error.to_string())
            }
        }
    }

    /// Says that the model is here, at once or not at all.
    fn publish(&self, revision: &str) -> Result<(), FetchProblem> {
        if revision == self.commit {
            return Ok(()); // A commit is found by itself.
        }
        let path = self.cache.join("refs").join(revision);
        let scratch = self.cache.join(format!(".ref-{}", process::id()));
        let written = || {
            fs::create_dir_all(path.parent().unwrap_or(&path))?;
            fs::write(&scratch, &self.commit)?;
            fs::rename(&scratch, &path)
        };
        self.written(written())
    }

    fn written<T>(&self, result: io::Result<T>) -> Result<T, FetchProblem> {
        result.map_err(|error| FetchProblem::write(&self.cache, error))
    }
}

/// Reports what hf-hub reads.
struct Watch<'a> {
    /// Size of the model's files before this one.
    n_bytes_before: u64,
    state: &'a mut FetchProgress,
    report: &'a mut dyn FnMut(&FetchProgress),
}

impl Watch<'_> {
    fn set(&mut self, file_bytes: u64) {
        self.state.file_bytes = file_bytes;
        self.state.model_bytes = self.n_bytes_before + file_bytes;
        (self.report)(self.state);
    }
}

/// hf-hub begins anew with each try, and counts what was here as the first update.
impl Progress for &mut Watch<'_> {
    fn init(&mut self, size: usize, _file: &str) {
        self.state.file_total_bytes = Some(size as u64);
        self.state.file_bytes = 0;
    }

    fn update(&mut self, n_bytes: usize) {
        self.set(self.state.file_bytes + n_bytes as u64);
    }

    fn finish(&mut self) {}
}

fn cut_off(file: &RemoteFile, n_bytes: u64, total_bytes: Option<u64>) -> FetchProblem {
    FetchProblem::CutOff {
        file: file.name.clone(),
        n_bytes,
        total_bytes,
    }
}

/// Whether a system's error is a connection's, not a disk's.
fn is_network(error: &io::Error) -> bool {
    use io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::BrokenPipe
            | ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkDown
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NotConnected
            | ErrorKind::TimedOut
            | ErrorKind::UnexpectedEof
    )
}

fn length(path: &Path) -> Option<u64> {
    let data = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some(data.len())
}

/// The length of a file that has all its bytes.
fn whole(path: &Path, size: Option<u64>) -> Option<u64> {
    length(path).filter(|n_bytes| size.is_none_or(|size| size == *n_bytes))
}

/// Removes a file that may not be there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A run may have died between a file's last byte and its name. Gives the length of the blob
/// if that is what is mended here. A part with too many bytes is of no use.
fn mend_part(blob: &Path, size: Option<u64>) -> io::Result<Option<u64>> {
    let part = blob.with_extension("part");
    let Some((n_bytes, size)) = length(&part).zip(size).filter(|(n, size)| n >= size) else {
        return Ok(None);
    };
    // hf-hub holds this lock while it writes. If it is taken, another process does.
    let lock = File::create(blob.with_extension("lock"))?;
    if lock.try_lock().is_err() {
        return Ok(None);
    }
    if n_bytes > size {
        remove(&part)?;
        return Ok(None);
    }
    File::open(&part)?.sync_all()?;
    fs::rename(&part, blob)?;
    Ok(Some(n_bytes))
}

/// Links a snapshot's file to its content, by a relative path, so that the cache can be moved.
fn link_to_blob(etag: &str, link: &Path, file: &str) -> io::Result<()> {
    fs::create_dir_all(link.parent().unwrap_or(link))?;
    let up = "../".repeat(2 + file.matches('/').count());
    symlink(format!("{up}blobs/{etag}"), link)
}
