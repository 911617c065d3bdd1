//! Readers of model files, as `fuzz/` calls them: each takes any bytes and has to come back.
//! The tests run them over the same corpus.

use crate::gguf::header::Header;
use crate::weights::read_header;

/// A file of the format safetensors.
///
/// # Panics
/// The reader panics, or lets a tensor pass that is not in the file.
pub fn safetensors(file: &[u8]) {
    let Ok((n_header_bytes, metadata)) = read_header(file) else {
        return;
    };
    for (name, info) in metadata.tensors() {
        let (start, end) = info.data_offsets;
        let first = 8 + n_header_bytes;
        assert!(file.get(first + start..first + end).is_some(), "{name}");
        let n_values: usize = info.shape.iter().product();
        assert_eq!(n_values * info.dtype.bitsize() / 8, end - start, "{name}");
    }
}

/// A file of the format GGUF.
///
/// # Panics
/// The reader panics, or lets a tensor pass that is not in the file.
pub fn gguf(file: &[u8]) {
    let Ok(header) = Header::read(file) else {
        return;
    };
    for (name, info) in header.tensors() {
        let n_bytes = info.n_bytes().unwrap_or(0);
        let end = info.start.checked_add(n_bytes);
        assert!(end.is_some_and(|end| end <= file.len()), "{name}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::quantized::stored::tests::Numbers;

    /// Runs a reader over the corpus, and over what comes of it when it is damaged.
    fn try_damage(corpus: &str, read: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        let mut paths: Vec<_> = fs::read_dir(folder.join(corpus))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        let whole: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
        assert!(!whole.is_empty());
        for file in &whole {
            read(file);
        }
        let mut numbers = Numbers(7);
        for round in 0..20_000 {
            let mut file = whole[round % whole.len()].clone();
            for _ in 0..=numbers.below(3) {
                let place = numbers.below(file.len() as u32) as usize;
                match numbers.below(5) {
                    0 => file[place] = [0, 1, 0x7f, 0x80, 0xff][numbers.below(5) as usize],
                    1 => file[place] ^= 1 << numbers.below(8),
                    // Digits make other shapes and offsets.
                    2 => file[place] = b'0' + numbers.below(10) as u8,
                    3 => file.insert(place, b"0123456789[]{},\"\xff"[numbers.below(17) as usize]),
                    _ => file.truncate(place.max(1)),
                }
            }
            // Half of them with the length of a header that is as long as it says.
            if corpus == "safetensors" && round % 2 == 0 && file.len() > 16 {
                let n = file
                    .iter()
                    .rposition(|byte| *byte == b'}')
                    .map_or(1, |end| end.saturating_sub(7));
                file[..8].copy_from_slice(&(n.max(1) as u64).to_le_bytes());
            }
            read(&file);
        }
    }

    #[test]
    fn no_damage_to_safetensors_is_worse_than_an_error() {
        try_damage("safetensors", safetensors);
    }

    #[test]
    fn no_damage_to_gguf_is_worse_than_an_error() {
        try_damage("gguf", gguf);
    }
}
