//! For tests: writes GGUF files.

use candle_core::quantized::GgmlDType;

/// A value of the metadata.
pub(crate) enum Value<'a> {
    Number(u32),
    Float(f32),
    Bool(bool),
    Text(&'a str),
    Texts(Vec<&'a str>),
    Numbers(Vec<i32>),
}

/// A tensor: name, type, shape with the slowest dimension first, bytes.
pub(crate) type Tensor = (String, GgmlDType, Vec<usize>, Vec<u8>);

/// ggml's number of a type.
pub(crate) fn number(format: GgmlDType) -> u32 {
    match format {
        GgmlDType::F32 => 0,
        GgmlDType::F16 => 1,
        GgmlDType::Q4_0 => 2,
        GgmlDType::Q4_1 => 3,
        GgmlDType::Q5_0 => 6,
        GgmlDType::Q5_1 => 7,
        GgmlDType::Q8_0 => 8,
        GgmlDType::Q2K => 10,
        GgmlDType::Q3K => 11,
        GgmlDType::Q4K => 12,
        GgmlDType::Q5K => 13,
        GgmlDType::Q6K => 14,
        other => panic!("{other:?} is not written"),
    }
}

/// A whole file.
pub(crate) fn file(values: &[(&str, Value<'_>)], tensors: &[Tensor]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((values.len() as u64).to_le_bytes());
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    };
    for (key, value) in values {
        text(&mut bytes, key);
        let (kind, rest) = match value {
            Value::Number(number) => (4_u32, number.to_le_bytes().to_vec()),
            Value::Float(number) => (6, number.to_le_bytes().to_vec()),
            Value::Bool(value) => (7, vec![u8::from(*value)]),
            Value::Text(value) => {
                let mut rest = Vec::new();
                text(&mut rest, value);
                (8, rest)
            }
            Value::Texts(values) => {
                let mut rest = 8_u32.to_le_bytes().to_vec();
                rest.extend((values.len() as u64).to_le_bytes());
                for value in values {
                    text(&mut rest, value);
                }
                (9, rest)
            }
            Value::Numbers(numbers) => {
                let mut rest = 5_u32.to_le_bytes().to_vec();
                rest.extend((numbers.len() as u64).to_le_bytes());
                rest.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
                (9, rest)
            }
        };
        bytes.extend(kind.to_le_bytes());
        bytes.extend(rest);
    }
    let mut start = 0_u64;
    for (name, format, shape, data) in tensors {
        text(&mut bytes, name);
        bytes.extend((shape.len() as u32).to_le_bytes());
        for side in shape.iter().rev() {
            bytes.extend((*side as u64).to_le_bytes());
        }
        bytes.extend(number(*format).to_le_bytes());
        bytes.extend(start.to_le_bytes());
        start += (data.len() as u64).next_multiple_of(32);
    }
    for (.., data) in tensors {
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(data);
    }
    bytes
}

/// Values as a tensor's bytes.
pub(crate) fn f32s(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}
