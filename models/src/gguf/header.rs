//! Reads the header of a GGUF file: everything before its tensors' bytes.
//!
//! Every count and length is held against the bytes that are left before anything is allocated
//! for it, so that a header of a few bytes cannot claim more than the file has.

use std::collections::HashMap;

use candle_core::quantized::GgmlDType;

/// What a file starts with.
const MAGIC: &[u8; 4] = b"GGUF";

/// Alignment of tensors where the file names none.
const ALIGNMENT: u64 = 32;

/// No tensor of ggml has more dimensions.
const MAX_DIMS: u32 = 4;

/// The metadata and the places of all tensors.
#[derive(Debug)]
pub(crate) struct Header {
    values: HashMap<String, Value>,
    tensors: HashMap<String, Info>,
}

/// One value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Whole(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    Numbers(Vec<f64>),
    Texts(Vec<String>),
}

/// One tensor.
#[derive(Debug, Clone)]
pub(crate) struct Info {
    /// The slowest dimension first, as elsewhere; the file has them the other way round.
    pub(crate) shape: Vec<usize>,
    /// `None`: a type that we do not know, by its number.
    pub(crate) format: Result<GgmlDType, u32>,
    /// Its first byte in the file.
    pub(crate) start: usize,
}

impl Info {
    /// Its size; `None` of an unknown type, or where it has no whole blocks.
    pub(crate) fn n_bytes(&self) -> Option<usize> {
        let format = self.format.ok()?;
        let width = *self.shape.last()?;
        let n_values = self
            .shape
            .iter()
            .try_fold(1_usize, |product, side| product.checked_mul(*side))?;
        if !width.is_multiple_of(format.block_size()) {
            return None;
        }
        (n_values / format.block_size()).checked_mul(format.type_size())
    }
}

/// What is wrong with a file.
type Problem = String;

impl Header {
    /// Reads the header of a whole file.
    ///
    /// # Errors
    /// What is wrong, as a sentence.
    pub(crate) fn read(file: &[u8]) -> Result<Self, Problem> {
        let mut cursor = Cursor { file, place: 0 };
        if cursor.take(4, "the magic number")? != MAGIC {
            return Err("it does not start with `GGUF`".into());
        }
        let version = cursor.u32("the version")?;
        if !(2..=3).contains(&version) {
            return Err(format!("version {version} is none of 2 and 3"));
        }
        // A name's length, a type and a byte; a name's length, a count, a type and an offset.
        let n_tensors = cursor.count(24, "tensors")?;
        let n_values = cursor.count(13, "metadata values")?;
        let mut values = HashMap::new();
        for _ in 0..n_values {
            let key = cursor.text("a key")?;
            let kind = cursor.u32("a value's type")?;
            let value = cursor.value(kind, &key)?;
            if values.insert(key.clone(), value).is_some() {
                return Err(format!("`{key}` is there twice"));
            }
        }
        let mut tensors = HashMap::new();
        for _ in 0..n_tensors {
            let (name, info) = cursor.tensor()?;
            if tensors.insert(name.clone(), info).is_some() {
                return Err(format!("tensor `{name}` is there twice"));
            }
        }
        let alignment = match values.get("general.alignment") {
            None => ALIGNMENT,
            Some(Value::Whole(number)) => u64::try_from(*number)
                .ok()
                .filter(|alignment| alignment.is_power_of_two() && *alignment <= 1 << 20)
                .ok_or_else(|| format!("`general.alignment` is {number}"))?,
            Some(other) => return Err(format!("`general.alignment` is {other:?}")),
        };
        let start = (cursor.place as u64).next_multiple_of(alignment);
        for (name, info) in &mut tensors {
            info.place(name, start, file.len())?;
        }
        Ok(Self { values, tensors })
    }

    /// A tensor by its name in the file.
    pub(crate) fn tensor(&self, name: &str) -> Option<&Info> {
        self.tensors.get(name)
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&str, &Info)> {
        self.tensors
            .iter()
            .map(|(name, info)| (name.as_str(), info))
    }

    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// A whole number that is not negative.
    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        match self.value(key)? {
            Value::Whole(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    pub(crate) fn float(&self, key: &str) -> Option<f64> {
        match self.value(key)? {
            Value::Float(number) => Some(*number),
            Value::Whole(number) => Some(*number as f64),
            _ => None,
        }
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.value(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn numbers(&self, key: &str) -> Option<&[f64]> {
        match self.value(key)? {
            Value::Numbers(numbers) => Some(numbers),
            _ => None,
        }
    }

    pub(crate) fn texts(&self, key: &str) -> Option<&[String]> {
        match self.value(key)? {
            Value::Texts(texts) => Some(texts),
            _ => None,
        }
    }
}

impl Info {
    /// Makes the offset one in the file, and checks that the tensor ends in it.
    fn place(&mut self, name: &str, start: u64, n_file_bytes: usize) -> Result<(), Problem> {
        let is_known = self.format.is_ok();
        let n_bytes = self.n_bytes();
        if is_known && n_bytes.is_none() {
            return Err(format!(
                "tensor `{name}` has shape {:?}, which is no whole blocks",
                self.shape
            ));
        }
        let first = start.checked_add(self.start as u64);
        let end = first.and_then(|first| first.checked_add(n_bytes.unwrap_or(0) as u64));
        match (first, end) {
            (Some(first), Some(end)) if end <= n_file_bytes as u64 => {
                self.start = first as usize;
                Ok(())
            }
            _ => Err(format!(
                "tensor `{name}` goes beyond the file's {n_file_bytes} bytes"
            )),
        }
    }
}

/// A place in a file.
struct Cursor<'a> {
    file: &'a [u8],
    place: usize,
}

impl<'a> Cursor<'a> {
    fn n_left(&self) -> usize {
        self.file.len() - self.place
    }

    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], Problem> {
        let rest = &self.file[self.place..];
        let taken = rest
            .get(..n)
            .ok_or_else(|| format!("it ends within {what}, at byte {}", self.file.len()))?;
        self.place += n;
        Ok(taken)
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Problem> {
        let taken = self.take(N, what)?;
        Ok(*taken.first_chunk().expect("as many were taken"))
    }

    fn u32(&mut self, what: &str) -> Result<u32, Problem> {
        Ok(u32::from_le_bytes(self.bytes(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, Problem> {
        Ok(u64::from_le_bytes(self.bytes(what)?))
    }

    /// A number of things of at least `n_bytes` each.
    fn count(&mut self, n_bytes: usize, what: &str) -> Result<usize, Problem> {
        let n = self.u64(what)?;
        let most = self.n_left() / n_bytes;
        match usize::try_from(n).ok().filter(|n| *n <= most) {
            Some(n) => Ok(n),
            None => Err(format!(
                "it claims {n} {what} at byte {}, and has room for {most}",
                self.place - 8
            )),
        }
    }

    fn text(&mut self, what: &str) -> Result<String, Problem> {
        let n = self.count(1, "bytes of text")?;
        let bytes = self.take(n, what)?;
        // Tokens may be cut within a letter.
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    fn value(&mut self, kind: u32, key: &str) -> Result<Value, Problem> {
        Ok(match kind {
            7 => match self.bytes::<1>(key)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(format!("`{key}` is neither true nor false but {other}")),
            },
            6 => Value::Float(f32::from_le_bytes(self.bytes(key)?).into()),
            12 => Value::Float(f64::from_le_bytes(self.bytes(key)?)),
            8 => Value::Text(self.text(key)?),
            9 => self.list(key)?,
            _ => Value::Whole(self.whole(kind, key)?),
        })
    }

    fn whole(&mut self, kind: u32, key: &str) -> Result<i128, Problem> {
        Ok(match kind {
            0 => u8::from_le_bytes(self.bytes(key)?).into(),
            1 => i8::from_le_bytes(self.bytes(key)?).into(),
            2 => u16::from_le_bytes(self.bytes(key)?).into(),
            3 => i16::from_le_bytes(self.bytes(key)?).into(),
            4 => u32::from_le_bytes(self.bytes(key)?).into(),
            5 => i32::from_le_bytes(self.bytes(key)?).into(),
            10 => u64::from_le_bytes(self.bytes(key)?).into(),
            11 => i64::from_le_bytes(self.bytes(key)?).into(),
            _ => return Err(format!("`{key}` has the unknown type {kind}")),
        })
    }

    fn list(&mut self, key: &str) -> Result<Value, Problem> {
        let kind = self.u32("a list's type")?;
        if kind == 8 {
            let n = self.count(8, "texts")?;
            // Each gets its room when it is there.
            let mut texts = Vec::new();
            for _ in 0..n {
                texts.push(self.text(key)?);
            }
            return Ok(Value::Texts(texts));
        }
        let n_bytes = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            _ => return Err(format!("`{key}` is a list of the type {kind}")),
        };
        let n = self.count(n_bytes, "numbers")?;
        let mut numbers = Vec::with_capacity(n);
        for _ in 0..n {
            numbers.push(match self.value(kind, key)? {
                Value::Whole(number) => number as f64,
                Value::Float(number) => number,
                other => f64::from(u8::from(other == Value::Bool(true))),
            });
        }
        Ok(Value::Numbers(numbers))
    }

    /// A tensor's name and what it is, its start still relative.
    fn tensor(&mut self) -> Result<(String, Info), Problem> {
        let name = self.text("a tensor's name")?;
        let n_dims = self.u32("a tensor's dimensions")?;
        if !(1..=MAX_DIMS).contains(&n_dims) {
            return Err(format!("tensor `{name}` has {n_dims} dimensions"));
        }
        let mut shape = Vec::new();
        for _ in 0..n_dims {
            let side = self.u64("a tensor's shape")?;
            let side = usize::try_from(side).ok().filter(|side| *side > 0);
            shape.push(side.ok_or_else(|| format!("tensor `{name}` has an impossible shape"))?);
        }
        shape.reverse();
        let kind = self.u32("a tensor's type")?;
        let start = self.u64("a tensor's offset")?;
        let start = usize::try_from(start)
            .map_err(|_| format!("tensor `{name}` starts beyond all memory"))?;
        let format = format(kind).ok_or(kind);
        Ok((
            name,
            Info {
                shape,
                format,
                start,
            },
        ))
    }
}

/// The types that candle knows, by ggml's numbers.
fn format(kind: u32) -> Option<GgmlDType> {
    Some(match kind {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}
