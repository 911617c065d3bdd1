//! `kind = "binarize"`: vectors to bits, a thirty-second of their size.

use std::borrow::Cow;

use bytes::Bytes;
use pagemill_pipeline::{
    Field, FieldError, FieldType, Fields, Item, ItemError, Outlet, Resources, Stage, StageConfig,
    StageError, Value, VectorData, Vectors,
};
use serde::Deserialize;

use crate::names;
use crate::vectors::finite;

const ACTION: &str = "binarize the vectors of";

/// Settings of `kind = "binarize"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BinarizeConfig {
    /// The field that is read: `vector` has one vector an item, any other has
    /// several.
    pub from: String,
    /// The field that the bits are written to; `from` with `_bits` behind it, if it
    /// is not given. How many vectors they are of is written to one with `_rows`
    /// behind it, except for `vector`.
    pub into: Option<String>,
    /// Whether the vectors stay beside the bits.
    pub keep_floats: bool,
}

impl Default for BinarizeConfig {
    fn default() -> Self {
        Self {
            from: Field::VECTORS.name.into_owned(),
            into: None,
            keep_floats: true,
        }
    }
}

impl BinarizeConfig {
    fn source(&self) -> Field {
        if self.from == Field::VECTOR.name {
            return Field::VECTOR;
        }
        Field {
            name: self.from.clone().into(),
            ty: FieldType::MultiVector,
        }
    }

    fn bits(&self) -> Field {
        let name = match &self.into {
            Some(name) => name.clone(),
            None => format!("{}_bits", self.from),
        };
        Field {
            name: name.into(),
            ty: FieldType::Bytes,
        }
    }

    /// Where the number of vectors goes; one vector needs no counting.
    fn rows(&self) -> Option<Field> {
        (self.source() != Field::VECTOR).then(|| Field {
            name: format!("{}_rows", self.bits().name).into(),
            ty: FieldType::Integer,
        })
    }
}

impl StageConfig for BinarizeConfig {
    const KIND: &'static str = "binarize";
    const ABOUT: &'static str = "vectors to bits, one for each number";
    const EXAMPLE: &'static str = "from = \"vectors\"\nkeep_floats = true\n";

    fn fields(&self) -> Fields {
        let fields = Fields::reads([self.source()])
            .adds([self.bits()])
            .adds(self.rows());
        if self.keep_floats {
            return fields;
        }
        fields.drops([self.source()])
    }

    fn build(&self, _resources: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        Ok(Box::new(Binarize::new(self)?))
    }
}

/// Adds the signs of an item's vectors as bits.
///
/// Each vector takes `dim / 8` bytes, rounded up; vectors lie end to end. A bit is
/// 1 where the number is greater than 0. The first number is the highest bit of
/// the first byte, and the last byte is filled up with zeroes: what
/// `numpy.packbits(vectors > 0, axis=-1)` gives. The bits that two vectors differ
/// in are counted alike with the filling and without it.
pub struct Binarize {
    from: String,
    bits: Cow<'static, str>,
    rows: Option<Cow<'static, str>>,
    keeps_floats: bool,
}

impl Binarize {
    /// Checks the settings.
    ///
    /// # Errors
    /// When a name is none, or the bits would be written to a field that has a
    /// meaning already.
    pub fn new(config: &BinarizeConfig) -> Result<Self, FieldError> {
        let source = config.source();
        if source != Field::VECTOR && source != Field::VECTORS {
            names::check("from", &source.name)?;
        }
        let bits = config.bits().name;
        names::check("into", &bits)?;
        if bits == source.name {
            return Err(FieldError::new(
                "into",
                format_args!("names the field that is read: `{bits}`"),
                format_args!("leave it out for `{bits}_bits`"),
            ));
        }
        Ok(Self {
            from: config.from.clone(),
            bits,
            rows: config.rows().map(|field| field.name),
            keeps_floats: config.keep_floats,
        })
    }

    fn binarize(&self, item: &mut Item) -> Result<(), ItemError> {
        let vectors = finite(ACTION, item, &self.from)?;
        let (bits, n) = (signs(vectors), vectors.n());
        item.set(self.bits.clone(), Value::Bytes(Bytes::from(bits)));
        if let Some(rows) = &self.rows {
            item.set(rows.clone(), n as i64);
        }
        if !self.keeps_floats {
            item.remove(&self.from);
        }
        Ok(())
    }
}

impl Stage for Binarize {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        outlet.each(batch, |item| self.binarize(item))
    }
}

/// `[n, dim / 8]` bytes, `dim / 8` rounded up.
fn signs(vectors: &Vectors) -> Vec<u8> {
    let zero = half::f16::ZERO;
    match vectors.data() {
        VectorData::F32(numbers) => packed(numbers, vectors.dim(), |number| *number > 0.0),
        VectorData::F16(numbers) => packed(numbers, vectors.dim(), |number| *number > zero),
    }
}

fn packed<T>(numbers: &[T], dim: usize, is_set: impl Fn(&T) -> bool) -> Vec<u8> {
    let rows = numbers.chunks_exact(dim);
    let eights = rows.flat_map(|row| row.chunks(8));
    let bytes = eights.map(|numbers| {
        let bits = numbers.iter().zip((0..8).rev());
        bits.fold(0, |byte, (number, place)| {
            byte | u8::from(is_set(number)) << place
        })
    });
    bytes.collect()
}

#[cfg(test)]
mod tests {
    use half::f16;
    use pagemill_pipeline::testing::run_stage;
    use proptest::prelude::*;

    use super::*;

    fn binarize(config: &BinarizeConfig) -> Binarize {
        Binarize::new(config).unwrap()
    }

    fn page(field: &'static str, vectors: Vectors) -> Item {
        Item::of_text("a.pdf", "").with_page(1).with(field, vectors)
    }

    fn vectors(numbers: Vec<f32>, dim: usize) -> Vectors {
        Vectors::new(VectorData::F32(numbers), dim).unwrap()
    }

    fn bytes<'a>(item: &'a Item, field: &str) -> &'a [u8] {
        match item.get(field) {
            Some(Value::Bytes(bytes)) => bytes,
            other => panic!("no bits but {other:?}"),
        }
    }

    #[test]
    fn bits_are_those_of_numpy() {
        // numpy.packbits(vectors > 0, axis=-1) of two vectors of ten numbers.
        let numbers = vec![
            0.5, -0.5, 0.0, -0.0, 1e-30, 3.0, -3.0, 7.0, -1.0, 1.0, //
            -1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0, 2.0, -2.0,
        ];
        let expected = [0b1000_1101, 0b0100_0000, 0b0111_0000, 0b1000_0000];
        let halves = numbers.iter().copied().map(f16::from_f32);
        // The number 1e-30 is 0 in 16 bits.
        let of_halves = [0b1000_0101, 0b0100_0000, 0b0111_0000, 0b1000_0000];
        let halves = Vectors::new(VectorData::F16(halves.collect()), 10).unwrap();
        let pages = [
            page("vectors", vectors(numbers, 10)),
            page("vectors", halves),
        ];
        let out = run_stage(&mut binarize(&BinarizeConfig::default()), pages);
        assert_eq!(bytes(&out.sent[0], "vectors_bits"), expected);
        assert_eq!(bytes(&out.sent[1], "vectors_bits"), of_halves);
        let rows = out.sent[0].get("vectors_bits_rows");
        assert!(matches!(rows, Some(Value::Integer(2))));
        assert!(out.sent[0].vectors().is_some());
    }

    #[test]
    fn one_vector_is_binarized_without_a_count_and_floats_go_where_they_are_not_kept() {
        let config = BinarizeConfig {
            from: "vector".into(),
            keep_floats: false,
            ..BinarizeConfig::default()
        };
        assert_eq!(
            config.fields(),
            Fields::reads([Field::VECTOR])
                .adds([Field::new("vector_bits", FieldType::Bytes)])
                .drops([Field::VECTOR])
        );
        let one = page("vector", vectors(vec![1.0; 8], 8));
        let out = run_stage(&mut binarize(&config), [one]);
        assert_eq!(bytes(&out.sent[0], "vector_bits"), [255]);
        let names: Vec<&str> = out.sent[0].fields().map(|(name, _)| name).collect();
        assert!(!names.contains(&"vector") && !names.contains(&"vector_bits_rows"));
    }

    #[test]
    fn bits_of_another_field_go_where_the_setting_says() {
        let config = BinarizeConfig {
            from: "pooled".into(),
            into: Some("codes".into()),
            keep_floats: true,
        };
        let out = run_stage(
            &mut binarize(&config),
            [page("pooled", vectors(vec![-1.0; 3], 1))],
        );
        assert_eq!(bytes(&out.sent[0], "codes"), [0, 0, 0]);
        assert!(matches!(
            out.sent[0].get("codes_rows"),
            Some(Value::Integer(3))
        ));
    }

    #[test]
    fn sets_aside_what_has_no_vectors_or_no_numbers_and_goes_on() {
        let pages = [
            Item::of_text("a.pdf", "").with_page(1),
            page("vectors", vectors(vec![1.0, f32::NAN], 1)),
            page("vectors", vectors(vec![1.0], 1)),
        ];
        let out = run_stage(&mut binarize(&BinarizeConfig::default()), pages);
        let reasons: Vec<&str> = out.dead.iter().map(|(_, reason)| reason.as_str()).collect();
        assert_eq!(
            reasons,
            [
                "cannot binarize the vectors of `a.pdf#1`: it has no `vectors`",
                "cannot binarize the vectors of `a.pdf#1`: row 2 of 2 in its `vectors` is not finite",
            ]
        );
        assert_eq!(out.sent.len(), 1);
    }

    #[test]
    fn names_that_cannot_be_used_are_refused() {
        let complaint = |from: &str, into: &str| {
            let config = BinarizeConfig {
                from: from.into(),
                into: Some(into.into()),
                keep_floats: true,
            };
            config
                .build(&Resources::default())
                .err()
                .unwrap()
                .to_string()
        };
        assert_eq!(complaint("a b", "bits"), "`from` is no name: `a b`");
        assert_eq!(
            complaint("words", "bits"),
            "`from` is a name that means something else: `words`"
        );
        assert_eq!(
            complaint("vectors", "vectors"),
            "`into` is a name that means something else: `vectors`"
        );
        assert_eq!(
            complaint("pooled", "pooled"),
            "`into` names the field that is read: `pooled`"
        );
    }

    proptest! {
        #[test]
        fn each_bit_is_the_sign_of_its_number_and_the_filling_is_zero(
            dim in 1_usize..40,
            numbers in proptest::collection::vec(-1.0_f32..1.0, 40..400),
        ) {
            let n = numbers.len() / dim;
            let numbers = &numbers[..n * dim];
            let bits = signs(&vectors(numbers.to_vec(), dim));
            let width = dim.div_ceil(8);
            prop_assert_eq!(bits.len(), n * width);
            for (row, bits) in bits.chunks_exact(width).enumerate() {
                for place in 0..width * 8 {
                    let bit = bits[place / 8] >> (7 - place % 8) & 1 == 1;
                    prop_assert_eq!(bit, place < dim && numbers[row * dim + place] > 0.0);
                }
            }
        }
    }
}
