//! `kind = "pool_vectors"`: fewer vectors for a page, or one.

mod ward;

use std::sync::Arc;

use half::f16;
use pagemill_pipeline::{
    Field, FieldError, Fields, Item, ItemError, Outlet, Resources, Stage, StageConfig, StageError,
    VectorData, Vectors,
};
use serde::Deserialize;

use crate::names;
use crate::vectors::{PATCH_GRID, finite};

const ACTION: &str = "pool the vectors of";

/// More vectors than this are not clustered: the distances between them would
/// take more than 256 MiB.
const MAX_CLUSTERED: usize = 8192;

/// What colpali-engine divides the lengths of shorter vectors by.
const MIN_LENGTH: f64 = 1e-12;

/// Settings of `kind = "pool_vectors"`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolVectorsConfig {
    /// How it is done.
    pub method: PoolMethod,
    /// By how much clustering makes the vectors fewer: of `n` it leaves
    /// `n / factor`, rounded down, and at least 1; 3 if it is not given.
    pub factor: Option<usize>,
    /// The field that the result is written to; if it is not given, `vectors` for
    /// clusters, whose place it takes, and `vector` for the mean.
    pub into: Option<String>,
}

/// How vectors are pooled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolMethod {
    /// By clustering those that are alike, and the mean of each cluster, of length
    /// 1: what colpali-engine's `HierarchicalTokenPooler` gives.
    #[default]
    Hierarchical,
    /// One vector: the mean of all, of length 1.
    Mean,
}

impl PoolMethod {
    /// The field that is written unless another is named.
    fn field(self) -> Field {
        match self {
            Self::Hierarchical => Field::VECTORS,
            Self::Mean => Field::VECTOR,
        }
    }
}

impl PoolVectorsConfig {
    const FACTOR: usize = 3;

    fn factor(&self) -> usize {
        self.factor.unwrap_or(Self::FACTOR)
    }

    /// The field that is written.
    fn target(&self) -> Field {
        let own = self.method.field();
        match &self.into {
            Some(name) => Field {
                name: name.clone().into(),
                ty: own.ty,
            },
            None => own,
        }
    }

    /// Whether what follows finds other vectors than those of the encoder.
    fn moves_patches(&self) -> bool {
        self.factor() > 1 && self.target() == Field::VECTORS
    }
}

impl StageConfig for PoolVectorsConfig {
    const KIND: &'static str = "pool_vectors";
    const ABOUT: &'static str = "fewer vectors for a page, by clustering, or their mean";
    const EXAMPLE: &'static str = "method = \"hierarchical\"\nfactor = 3\n";

    fn fields(&self) -> Fields {
        let fields = Fields::reads([Field::VECTORS]).adds([self.target()]);
        if self.moves_patches() {
            return fields.drops(PATCH_GRID);
        }
        fields
    }

    fn build(&self, _resources: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        Ok(Box::new(PoolVectors::new(self)?))
    }
}

/// Makes the vectors of a page fewer, or one.
pub struct PoolVectors {
    method: PoolMethod,
    factor: usize, // Invariant: at least 1.
    target: Field,
    moves_patches: bool,
}

impl PoolVectors {
    /// Checks the settings.
    ///
    /// # Errors
    /// A factor of 0, one where there are no clusters, or a name that is none or
    /// that has a meaning already.
    pub fn new(config: &PoolVectorsConfig) -> Result<Self, FieldError> {
        if config.factor == Some(0) {
            return Err(FieldError::new(
                "factor",
                "must be at least 1",
                "leave it out for 3: a third of the vectors",
            ));
        }
        if config.factor.is_some() && config.method == PoolMethod::Mean {
            return Err(FieldError::new(
                "factor",
                "has a meaning only where `method` is `hierarchical`",
                "remove it: the mean is one vector",
            ));
        }
        let (own, target) = (config.method.field(), config.target());
        if target != own {
            names::check("into", &target.name)?;
        }
        Ok(Self {
            method: config.method,
            factor: config.factor(),
            target,
            moves_patches: config.moves_patches(),
        })
    }

    fn pool(&self, item: &Item) -> Result<Arc<Vectors>, ItemError> {
        let vectors = finite(ACTION, item, &Field::VECTORS.name)?;
        match self.method {
            PoolMethod::Mean => mean(vectors).map(Arc::new),
            // As they are, with whatever length: there is nothing to bring together.
            PoolMethod::Hierarchical if self.factor == 1 || vectors.n() == 1 => {
                Ok(Arc::clone(vectors))
            }
            PoolMethod::Hierarchical => clustered(vectors, self.factor).map(Arc::new),
        }
    }
}

impl Stage for PoolVectors {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        outlet.each(batch, |item| {
            let pooled = self.pool(item)?;
            item.set(self.target.name.clone(), pooled);
            if self.moves_patches {
                for field in &PATCH_GRID {
                    item.remove(&field.name);
                }
            }
            Ok(())
        })
    }
}

/// The mean of all vectors, of length 1 and in 32 bits, which databases compare
/// fastest where there is one vector a row.
fn mean(vectors: &Vectors) -> Result<Vectors, ItemError> {
    let (n, dim) = (vectors.n(), vectors.dim());
    let mut mean = means(&in_64_bits(vectors), dim, &vec![0; n], 1);
    if length(&mean) < MIN_LENGTH {
        let hint = "look at the stage that made them, or route such items past this stage";
        return Err(ItemError::new(ACTION, "their mean is zero and has no direction").hint(hint));
    }
    set_lengths(&mut mean, dim);
    let mean = mean.into_iter().map(|number| number as f32);
    Ok(Vectors::single(mean.collect()).expect("vectors have numbers"))
}

/// One vector for each `factor` of them, of the type that they have.
fn clustered(vectors: &Vectors, factor: usize) -> Result<Vectors, ItemError> {
    let (n, dim) = (vectors.n(), vectors.dim());
    if n > MAX_CLUSTERED {
        let reason = format!("it has {n}, and no more than {MAX_CLUSTERED} can be clustered");
        let hint = "make smaller parts of the page, or set `method = \"mean\"`";
        return Err(ItemError::new(ACTION, reason).hint(hint));
    }
    let rows = in_64_bits(vectors);
    let clusters = ward::clusters(&rows, dim, (n / factor).max(1));
    let mut means = means(&rows, dim, &clusters.of_row, clusters.n);
    set_lengths(&mut means, dim);
    let means = means.into_iter();
    let pooled = match vectors.data() {
        VectorData::F32(_) => VectorData::F32(means.map(|number| number as f32).collect()),
        VectorData::F16(_) => VectorData::F16(means.map(f16::from_f64).collect()),
    };
    Ok(Vectors::new(pooled, dim).expect("there is a cluster, and its mean is whole"))
}

fn in_64_bits(vectors: &Vectors) -> Vec<f64> {
    match vectors.data() {
        VectorData::F32(numbers) => numbers.iter().copied().map(f64::from).collect(),
        VectorData::F16(numbers) => numbers.iter().copied().map(f64::from).collect(),
    }
}

/// The mean of each cluster's rows, `[n_clusters, dim]`; no cluster is empty.
fn means(rows: &[f64], dim: usize, of_row: &[usize], n_clusters: usize) -> Vec<f64> {
    let mut means = vec![0.0; n_clusters * dim];
    let mut counts = vec![0_usize; n_clusters];
    for (row, cluster) in rows.chunks_exact(dim).zip(of_row) {
        counts[*cluster] += 1;
        for (sum, number) in means[cluster * dim..][..dim].iter_mut().zip(row) {
            *sum += number;
        }
    }
    for (mean, count) in means.chunks_exact_mut(dim).zip(counts) {
        for number in mean {
            *number /= count as f64;
        }
    }
    means
}

/// Makes each row one of length 1; one of zeroes stays so.
fn set_lengths(rows: &mut [f64], dim: usize) {
    for row in rows.chunks_exact_mut(dim) {
        let length = length(row).max(MIN_LENGTH);
        for number in row {
            *number /= length;
        }
    }
}

fn length(row: &[f64]) -> f64 {
    row.iter().map(|number| number * number).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests;
