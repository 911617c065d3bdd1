//! GGUF files: quantized weights, and all else that a model's folder says, in one file.
//!
//! [`header`] reads what a file claims, against its length before anything else, [`names`] says
//! which of a network's tensors its tensors are, and [`json`] and [`tokenizer`] put what it says
//! into the words of the JSON files that other models have beside their weights.
//!
//! The format is that of ggml's `docs/gguf.md`, versions 2 and 3.

pub(crate) mod header;

pub(crate) mod json;

mod names;

mod tokenizer;

pub(crate) mod weights;

#[cfg(test)]
pub(crate) mod writer;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use self::header::{Header, Info};
use crate::error::ModelError;
use crate::weights::release;

/// The architecture of a file that holds a vision tower.
const VISION: &str = "clip";

/// One file, mapped into memory.
pub(crate) struct Gguf {
    pub(crate) path: PathBuf,
    map: Mmap,
    pub(crate) header: Header,
}

impl Gguf {
    /// Maps a file and reads its header.
    ///
    /// # Errors
    /// The file is unreadable, or shorter than its header says.
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let read = |source| ModelError::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(read)?;
        // SAFETY: the mapping is private to us and only read. As for every reader of mapped
        // weights, a process that truncates the file meanwhile kills us; model files are
        // replaced by renaming, never cut.
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        let header = Header::read(&map).map_err(|problem| ModelError::Weights {
            path: path.to_owned(),
            source: problem.into(),
        })?;
        Ok(Self {
            path: path.to_owned(),
            map,
            header,
        })
    }

    /// The bytes of a tensor; `None` if its type is one that we do not know.
    pub(crate) fn bytes(&self, info: &Info) -> Option<&[u8]> {
        let n_bytes = info.n_bytes()?;
        self.map[info.start..].get(..n_bytes)
    }

    /// Gives the memory of a tensor's pages back.
    fn forget(&self, info: &Info) {
        if let Some(n_bytes) = info.n_bytes() {
            release(&self.map, info.start, n_bytes);
        }
    }

    pub(crate) fn n_file_bytes(&self) -> u64 {
        self.map.len() as u64
    }

    fn is_vision(&self) -> bool {
        self.header.text("general.architecture") == Some(VISION)
    }
}

/// The files of one model.
pub(crate) struct GgufModel {
    /// The language model: one file, or its parts in order.
    pub(crate) text: Vec<Gguf>,
    /// The vision tower, `mmproj`.
    pub(crate) vision: Option<Gguf>,
    pub(crate) folder: PathBuf,
}

/// Whether the folder has files of this format, or is one.
pub(crate) fn is_in(folder: &Path) -> bool {
    !files(folder).is_empty()
}

/// Whether a path is that of a file of this format.
pub(crate) fn is_one(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default();
    extension.eq_ignore_ascii_case("gguf") && path.is_file()
}

/// The files of this format in a folder. Of a file, that file, its other parts, and the one
/// beside it that llama.cpp's conversion calls `mmproj`.
pub(crate) fn files(place: &Path) -> Vec<PathBuf> {
    let named = is_one(place).then(|| stem(place));
    let folder = match &named {
        None => place,
        // The folder of a bare name is this one.
        Some(_) => match place.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        },
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| is_one(path))
        .collect();
    files.sort();
    if let Some(named) = named {
        let vision = best_mmproj(files.iter().map(|path| name_of(path))).map(str::to_owned);
        files.retain(|path| stem(path) == named || Some(name_of(path)) == vision.as_deref());
    }
    files
}

fn name_of(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

/// Whether llama.cpp's conversion calls files with the vision part so.
pub(crate) fn is_mmproj(name: &str) -> bool {
    name.to_ascii_lowercase().contains("mmproj")
}

/// Of several files with the vision part the one in f16, which loses nothing that matters.
pub(crate) fn best_mmproj<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let rank = |name: &str| {
        let name = name.to_ascii_lowercase();
        match () {
            () if name.contains("bf16") => 1,
            () if name.contains("f16") => 0,
            () => 2,
        }
    };
    names
        .filter(|name| is_mmproj(name))
        .min_by_key(|name| (rank(name), *name))
}

/// A file's name without what tells parts apart, such as `-00001-of-00003`.
pub(crate) fn stem(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let part = stem.len().checked_sub("-00001-of-00003".len());
    let part = part.and_then(|at| stem.is_char_boundary(at).then(|| stem.split_at(at)));
    let is_part = |part: &str| {
        part.bytes().enumerate().all(|(place, byte)| match place {
            0 | 6 | 9 => byte == b'-',
            7 => byte == b'o',
            8 => byte == b'f',
            _ => byte.is_ascii_digit(),
        })
    };
    match part {
        Some((whole, part)) if is_part(part) => whole.to_owned(),
        _ => stem.into_owned(),
    }
}

impl GgufModel {
    /// The model in a folder; `None` if no file of it has this format.
    ///
    /// # Errors
    /// A file is damaged, or there are several models.
    pub(crate) fn find(folder: &Path) -> Result<Option<Self>, ModelError> {
        let files = files(folder);
        if files.is_empty() {
            return Ok(None);
        }
        let mut text = Vec::new();
        let mut vision = Vec::new();
        for path in files {
            let file = Gguf::open(&path)?;
            if file.is_vision() {
                vision.push(file);
            } else {
                text.push(file);
            }
        }
        let parts = |file: &Gguf| file.header.number("split.count").unwrap_or(1);
        let n = text.len() as u64;
        if n > 1 && text.iter().any(|file| parts(file) != n) {
            return Err(several(&text, folder));
        }
        if vision.len() > 1 {
            return Err(several(&vision, folder));
        }
        text.sort_by_key(|file| file.header.number("split.no"));
        if let Some(first) = text.first()
            && parts(first) != n
        {
            return Err(ModelError::InvalidSetting {
                field: "split.count",
                problem: format!("is {}, but {n} parts are here", parts(first)),
                path: first.path.clone(),
            });
        }
        Ok(Some(Self {
            text,
            vision: vision.pop(),
            folder: folder.to_owned(),
        }))
    }

    /// The files, the language model's first.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Gguf> {
        self.text.iter().chain(&self.vision)
    }

    /// What describes the language model.
    ///
    /// # Errors
    /// Only a vision tower is here.
    pub(crate) fn main(&self) -> Result<&Gguf, ModelError> {
        self.text.first().ok_or_else(|| ModelError::MissingFile {
            file: "*.gguf (the language model's)".into(),
            folder: self.folder.clone(),
        })
    }
}

fn several(files: &[Gguf], folder: &Path) -> ModelError {
    let name = |file: &Gguf| {
        let name = file.path.file_name().unwrap_or_default();
        format!("`{}`", name.display())
    };
    let names: Vec<String> = files.iter().map(name).collect();
    ModelError::InvalidSetting {
        field: "*.gguf",
        problem: format!("are {} models: {}", files.len(), names.join(", ")),
        path: folder.to_owned(),
    }
}

#[cfg(test)]
mod tests;
