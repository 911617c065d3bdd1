//! The vector index over the column `vectors`: its settings, and when it is made.
//!
//! The index takes every vector of every page for itself (inverted lists, with a few bits
//! a number: IVF and `RaBitQ`), so it finds pages for one token of a question at a time. A
//! search takes from it which pages are worth scoring, and scores those exactly.

use std::fmt;
use std::time::Instant;

use arrow::array::{Array as _, AsArray as _};
use lance::Dataset;
use lance::index::DatasetIndexExt as _;
use lance::index::vector::VectorIndexParams;
use lance_index::IndexType;
use lance_index::vector::bq::RQBuildParams;
use lance_index::vector::ivf::IvfBuildParams;
use lancedb::DistanceType;
use pagemill_pipeline::FieldError;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::search::{VECTORS, vectors_dim};

pub(super) const VECTOR_INDEX: &str = "vectors_idx";
/// Bits that the index keeps of each number.
const BITS: u8 = 5;
/// The index packs numbers eight at a time.
const DIM_STEP: usize = 8;
/// How many vectors a part has, where the settings do not say.
const VECTORS_PER_PARTITION: f64 = 4096.0;
/// More parts than so many take hours to make.
const MAX_PARTITIONS_BY_DEFAULT: usize = 4096;

/// Whether the column `vectors` gets an index: `"auto"`, `"none"`, or a table of settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexConfig {
    /// Every search scores every page.
    None,
    /// Once the table is large.
    Auto(VectorIndexConfig),
}

/// When the index is made, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VectorIndexConfig {
    /// It is made once the table has so many rows.
    pub min_rows: usize,
    /// Into how many parts the vectors are divided; by default as many as suits their number.
    pub partitions: Option<usize>,
    /// How many pages are scored exactly for each hit that is wanted.
    pub refine: usize,
}

impl Default for VectorIndexConfig {
    fn default() -> Self {
        Self {
            min_rows: 50_000,
            partitions: None,
            refine: IndexConfig::REFINE,
        }
    }
}

impl Default for IndexConfig {
    fn default() -> Self {
        Self::Auto(VectorIndexConfig::default())
    }
}

impl IndexConfig {
    /// How many pages are scored exactly for each hit, where nothing is said.
    pub const REFINE: usize = 10;

    /// Checks the settings.
    ///
    /// # Errors
    /// One that cannot be used.
    pub(super) fn check(&self) -> Result<(), FieldError> {
        let Self::Auto(config) = self else {
            return Ok(());
        };
        let wrong = |problem: &str, hint: &str| Err(FieldError::new("index", problem, hint));
        if config
            .partitions
            .is_some_and(|n| n == 0 || n > MAX_PARTITIONS)
        {
            return wrong(
                "must have from 1 to 65536 `partitions`",
                "leave `partitions` out: as many are made as suits the table",
            );
        }
        if config.refine == 0 || config.refine > MAX_REFINE {
            return wrong(
                "must `refine` by 1 to 1000 pages for each hit",
                "leave `refine` out, or raise it to miss fewer pages",
            );
        }
        Ok(())
    }
}

const MAX_PARTITIONS: usize = 1 << 16;
const MAX_REFINE: usize = 1000;

impl<'de> Deserialize<'de> for IndexConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Choice;

        impl<'de> Visitor<'de> for Choice {
            type Value = IndexConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"auto\", \"none\", or a table in `{` and `}`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<IndexConfig, E> {
                match text {
                    "auto" => Ok(IndexConfig::default()),
                    "none" => Ok(IndexConfig::None),
                    _ => Err(E::unknown_variant(text, &["auto", "none"])),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<IndexConfig, A::Error> {
                let settings = MapAccessDeserializer::new(map);
                VectorIndexConfig::deserialize(settings).map(IndexConfig::Auto)
            }
        }

        deserializer.deserialize_any(Choice)
    }
}

/// Makes the index if the table is large enough and has none; whether it did.
///
/// # Errors
/// The table cannot be read or written.
pub(super) async fn make(dataset: &mut Dataset, config: &VectorIndexConfig) -> lance::Result<bool> {
    let Some(field) = dataset.schema().field(VECTORS) else {
        return Ok(false);
    };
    let (id, dim) = (field.id, vectors_dim(&field.data_type()));
    let Some(_) = dim.filter(|dim| dim % DIM_STEP == 0) else {
        return Ok(false);
    };
    let indices = dataset.load_indices().await?;
    if indices.iter().any(|index| index.fields == [id]) {
        return Ok(false);
    }
    let n_rows = dataset.count_rows(None).await?;
    if n_rows < config.min_rows {
        return Ok(false);
    }
    let n_vectors = n_rows as f64 * vectors_a_row(dataset).await?;
    let n_partitions = config.partitions.unwrap_or_else(|| {
        let partitions = n_vectors / VECTORS_PER_PARTITION;
        (partitions as usize).clamp(1, MAX_PARTITIONS_BY_DEFAULT)
    });
    let params = VectorIndexParams::with_ivf_rq_params(
        DistanceType::Cosine.into(),
        IvfBuildParams::new(n_partitions),
        RQBuildParams::new(BITS),
    );
    let since = Instant::now();
    tracing::info!(
        n_rows,
        n_partitions,
        "an index of the vectors is being made"
    );
    let name = Some(VECTOR_INDEX.to_owned());
    dataset
        .create_index(&[VECTORS], IndexType::Vector, name, &params, false)
        .await?;
    let seconds = since.elapsed().as_secs();
    tracing::info!(seconds, "the index of the vectors is made");
    Ok(true)
}

/// How many vectors a row has, from the first ones that have any.
async fn vectors_a_row(dataset: &Dataset) -> lance::Result<f64> {
    const N_ROWS: i64 = 64;
    let mut scan = dataset.scan();
    scan.project(&[VECTORS])?
        .filter(&format!("{VECTORS} IS NOT NULL"))?
        .limit(Some(N_ROWS), None)?;
    let batch = scan.try_into_batch().await?;
    let lists = batch.column(0).as_list_opt::<i32>();
    let n_vectors: usize = lists.map_or(0, |lists| {
        lists.iter().flatten().map(|list| list.len()).sum()
    });
    Ok(n_vectors as f64 / batch.num_rows().max(1) as f64)
}
