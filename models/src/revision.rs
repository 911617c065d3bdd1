//! Identifies the version of a model's files.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::gguf;

/// Weights are read at so many places, evenly spread, of so many bytes each:
/// training changes all of them, and reading 8 GB would take longer than loading.
const N_SAMPLES: u64 = 64;
const SAMPLE_BYTES: u64 = 16 << 10;

/// A larger file is sampled.
const MAX_WHOLE_BYTES: u64 = 16 << 20;

/// Hash of the files of the model in `folder`, or of the GGUF file that it is: 16 hexadecimal digits. Small
/// files count whole; of weights, their size and samples. Empty if the folder
/// cannot be read.
pub fn revision(folder: &Path) -> String {
    try_revision(folder).unwrap_or_default()
}

fn try_revision(folder: &Path) -> io::Result<String> {
    let files = if gguf::is_one(folder) {
        gguf::files(folder)
    } else {
        let mut files: Vec<PathBuf> = std::fs::read_dir(folder)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.is_file() && matters(path))
            .collect();
        files.sort();
        files
    };
    let mut hasher = blake3::Hasher::new();
    for path in files {
        hasher.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hash_file(&path, &mut hasher)?;
    }
    Ok(hasher.finalize().to_hex()[..16].to_owned())
}

/// Whether a file decides what the model computes: not its card or its licence.
fn matters(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(
        extension,
        Some("json" | "safetensors" | "gguf" | "jinja" | "model")
    )
}

fn hash_file(path: &Path, hasher: &mut blake3::Hasher) -> io::Result<()> {
    let mut file = File::open(path)?;
    let n_bytes = file.metadata()?.len();
    hasher.update(&n_bytes.to_le_bytes());
    let mut buffer = Vec::new();
    if n_bytes <= MAX_WHOLE_BYTES {
        file.read_to_end(&mut buffer)?;
        hasher.update(&buffer);
        return Ok(());
    }
    for sample in 0..N_SAMPLES {
        let last = n_bytes - SAMPLE_BYTES;
        file.seek(SeekFrom::Start(last / (N_SAMPLES - 1) * sample))?;
        buffer.clear();
        file.by_ref().take(SAMPLE_BYTES).read_to_end(&mut buffer)?;
        hasher.update(&buffer);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_weights_or_settings_are_another_revision_and_a_new_readme_is_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, bytes: &[u8]| {
            std::fs::write(folder.path().join(name), bytes).expect("written");
            revision(folder.path())
        };
        let first = write("config.json", b"{}");
        let large = vec![1; (MAX_WHOLE_BYTES + 1) as usize];
        let with_weights = write("model.safetensors", &large);
        assert_ne!(first, with_weights);
        assert_eq!(write("README.md", b"hello"), with_weights);
        let trained = write("model.safetensors", &vec![2; large.len()]);
        assert_ne!(trained, with_weights);
        assert_ne!(write("config.json", b"{ }"), trained);
        assert_eq!(revision(Path::new("/no/such/folder")), "");
    }
}
