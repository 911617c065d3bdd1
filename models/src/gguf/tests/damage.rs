//! Headers that claim what is not there.

use super::*;
use crate::quantized::stored::tests::Numbers;

fn read(bytes: &[u8]) -> Result<Header, String> {
    Header::read(bytes)
}

#[test]
fn headers_that_claim_too_much_are_errors_that_say_what() {
    let whole = language_model("qwen3");
    read(&whole).unwrap();
    for n_bytes in 0..whole.len() {
        assert!(read(&whole[..n_bytes]).is_err(), "cut to {n_bytes} bytes");
    }
    let with = |place: usize, bytes: &[u8]| {
        let mut file = whole.clone();
        file[place..place + bytes.len()].copy_from_slice(bytes);
        read(&file).unwrap_err()
    };
    let huge = u64::MAX.to_le_bytes();
    let cases = [
        (with(0, b"GGML"), "it does not start with `GGUF`"),
        (with(4, &[9]), "version 9 is none of 2 and 3"),
        (with(8, &huge), "it claims 18446744073709551615 tensors"),
        (
            with(16, &huge),
            "it claims 18446744073709551615 metadata values",
        ),
        (
            with(24, &huge),
            "it claims 18446744073709551615 bytes of text",
        ),
        (
            with(24 + 8 + 20, &99_u32.to_le_bytes()),
            "has the unknown type 99",
        ),
    ];
    for (error, expected) in cases {
        assert!(error.contains(expected), "{error} lacks {expected}");
    }
    let one = |shape: &[usize], values: &[(&str, Value<'_>)]| {
        let tensor = ("t".to_owned(), GgmlDType::Q8_0, shape.to_vec(), vec![0; 34]);
        read(&file(values, &[tensor]))
    };
    one(&[1, 32], &[]).unwrap();
    let cases = [
        (one(&[1, 31], &[]), "no whole blocks"),
        (one(&[0, 32], &[]), "impossible shape"),
        (one(&[2, 32], &[]), "goes beyond the file"),
        (one(&[1 << 62, 1 << 62], &[]), "no whole blocks"),
        (one(&[1, 1, 1, 1, 32], &[]), "has 5 dimensions"),
        (one(&[], &[]), "has 0 dimensions"),
        (
            one(&[1, 32], &[("general.alignment", Value::Number(0))]),
            "`general.alignment` is 0",
        ),
        (
            one(&[1, 32], &[("general.alignment", Value::Text("a"))]),
            "`general.alignment` is",
        ),
        (
            one(
                &[1, 32],
                &[("a", Value::Number(0)), ("a", Value::Number(0))],
            ),
            "`a` is there twice",
        ),
    ];
    for (result, expected) in cases {
        let error = result.map(|_| ()).unwrap_err();
        assert!(error.contains(expected), "{error} lacks {expected}");
    }
    let folder = folder(&[("m.gguf", whole[..40].to_vec())]);
    let error = Gguf::open(&folder.path().join("m.gguf"))
        .map(|_| ())
        .unwrap_err();
    assert!(
        error.to_string().starts_with("damaged weights ("),
        "{error}"
    );
    assert!(error.to_string().ends_with("m.gguf"), "{error}");
}

#[test]
fn no_damage_to_a_header_is_worse_than_an_error() {
    let whole = language_model("qwen3");
    let vision = vision_tower(true);
    let mut numbers = Numbers(11);
    let interesting = [0, 1, 0x7f, 0x80, 0xff, 8, 9, 32];
    for round in 0..20_000 {
        let mut bytes = if round % 2 == 0 {
            whole.clone()
        } else {
            vision.clone()
        };
        // Most of it is header.
        for _ in 0..=numbers.below(4) {
            let place = numbers.below(bytes.len() as u32) as usize;
            bytes[place] = match numbers.below(3) {
                0 => interesting[numbers.below(8) as usize],
                1 => bytes[place] ^ 1 << numbers.below(8),
                _ => numbers.next() as u8,
            };
        }
        if numbers.below(8) == 0 {
            bytes.truncate(numbers.below(bytes.len() as u32) as usize);
        }
        let Ok(header) = read(&bytes) else { continue };
        for (name, info) in header.tensors() {
            let n_bytes = info.n_bytes().unwrap_or(0);
            assert!(
                info.start + n_bytes <= bytes.len(),
                "{name} in round {round}"
            );
        }
        if round % 16 == 0 {
            let folder = folder(&[("m.gguf", bytes)]);
            for name in [
                "config.json",
                "tokenizer_config.json",
                "generation_config.json",
            ] {
                let path = folder.path().join(name);
                let _: Result<Option<serde_json::Value>, _> = files::read_optional_json(&path);
            }
            let _ = TextTokenizer::load(folder.path(), usize::MAX);
            let Ok(checkpoint) = Checkpoint::open(folder.path(), canonical_qwen_name) else {
                continue;
            };
            for name in ["lm_head.weight", "visual.patch_embed.proj.weight"] {
                let _ = checkpoint.matrix(name, &Device::Cpu);
                let _ = checkpoint.tensor(name, DType::F32, &Device::Cpu);
            }
        }
    }
}
