use pagemill_pipeline::testing::run_stage;
use pagemill_pipeline::{FieldType, Value};
use proptest::prelude::*;

use super::*;

fn pool(config: &PoolVectorsConfig) -> PoolVectors {
    PoolVectors::new(config).unwrap()
}

/// Clusters, a `factor`-th of the vectors.
fn by(factor: usize) -> PoolVectorsConfig {
    PoolVectorsConfig {
        factor: Some(factor),
        ..PoolVectorsConfig::default()
    }
}

fn to_mean() -> PoolVectorsConfig {
    PoolVectorsConfig {
        method: PoolMethod::Mean,
        ..PoolVectorsConfig::default()
    }
}

fn vectors(numbers: Vec<f32>, dim: usize) -> Vectors {
    Vectors::new(VectorData::F32(numbers), dim).unwrap()
}

/// A page with these vectors and the place of its patches among them.
fn page(vectors: Vectors) -> Item {
    let mut page = Item::of_text("a.pdf", "").with_page(1);
    page.set("vectors", vectors);
    for field in PATCH_GRID {
        page.set(field.name, 2_i64);
    }
    page
}

fn numbers(vectors: &Vectors) -> Vec<f32> {
    match vectors.data() {
        VectorData::F32(numbers) => numbers.clone(),
        VectorData::F16(numbers) => numbers.iter().copied().map(f16::to_f32).collect(),
    }
}

fn has_grid(item: &Item) -> bool {
    let found = PATCH_GRID.map(|field| item.get(&field.name).is_some());
    assert!(found == [true; 3] || found == [false; 3]);
    found[0]
}

/// A page that `scripts/fixtures/pool_vectors.py` made.
#[derive(Deserialize)]
struct Reference {
    vectors: Vec<Vec<f32>>,
    made: Vec<Made>,
}

/// What colpali-engine makes of it.
#[derive(Deserialize)]
struct Made {
    factor: usize,
    clusters: Vec<Vec<usize>>,
    pooled: Vec<Vec<f32>>,
}

#[test]
fn clusters_and_their_order_are_those_of_colpali_engine() {
    let file = include_str!("testdata/colpali_engine.json");
    let pages: Vec<Reference> = serde_json::from_str(file).unwrap();
    for Reference {
        vectors: rows,
        made,
    } in pages
    {
        let dim = rows[0].len();
        let exact: Vec<f64> = rows.concat().into_iter().map(f64::from).collect();
        let whole = VectorData::F32(rows.concat());
        let half = VectorData::F16(rows.concat().into_iter().map(f16::from_f32).collect());
        for Made {
            factor,
            clusters,
            pooled,
        } in made
        {
            let found = ward::clusters(&exact, dim, clusters.len());
            for (number, rows) in clusters.iter().enumerate() {
                assert!(rows.iter().all(|row| found.of_row[*row] == number));
            }
            assert_eq!(found.n, clusters.len());
            let pages = [&whole, &half].map(|data| page(Vectors::new(data.clone(), dim).unwrap()));
            let out = run_stage(&mut pool(&by(factor)), pages);
            for (item, tolerance) in out.sent.iter().zip([1e-6, 5e-4]) {
                let found = item.vectors().unwrap();
                assert_eq!((found.n(), found.dim()), (pooled.len(), dim));
                for (found, expected) in numbers(found).iter().zip(pooled.concat()) {
                    assert!((found - expected).abs() < tolerance, "{found} {expected}");
                }
            }
            assert!(matches!(
                out.sent[0].vectors().unwrap().data(),
                VectorData::F32(_)
            ));
            assert!(matches!(
                out.sent[1].vectors().unwrap().data(),
                VectorData::F16(_)
            ));
        }
    }
}

#[test]
fn the_grid_of_patches_goes_with_the_vectors_that_it_was_of() {
    let two_each = || page(vectors(vec![1.0, 0.0, 0.0, 1.0, 1.0, 0.1, 0.1, 1.0], 2));
    let out = run_stage(&mut pool(&by(2)), [two_each()]);
    assert_eq!(out.sent[0].vectors().unwrap().n(), 2);
    assert!(!has_grid(&out.sent[0]));
    assert_eq!(
        by(2).fields(),
        Fields::reads([Field::VECTORS])
            .adds([Field::VECTORS])
            .drops(PATCH_GRID)
    );

    let beside = PoolVectorsConfig {
        into: Some("pooled".into()),
        ..by(2)
    };
    let out = run_stage(&mut pool(&beside), [two_each()]);
    assert_eq!(out.sent[0].vectors().unwrap().n(), 4);
    assert!(matches!(out.sent[0].get("pooled"), Some(Value::Vectors(pooled)) if pooled.n() == 2));
    assert!(has_grid(&out.sent[0]));
    let pooled = Field::new("pooled", FieldType::MultiVector);
    assert_eq!(
        beside.fields(),
        Fields::reads([Field::VECTORS]).adds([pooled])
    );

    let out = run_stage(&mut pool(&by(1)), [two_each()]);
    assert_eq!(out.sent[0].vectors().unwrap().n(), 4);
    assert!(has_grid(&out.sent[0]));
    let out = run_stage(&mut pool(&to_mean()), [two_each()]);
    assert!(has_grid(&out.sent[0]));
}

#[test]
fn the_mean_stands_beside_the_vectors_and_has_length_one() {
    let out = run_stage(
        &mut pool(&to_mean()),
        [page(vectors(vec![3.0, 0.0, 0.0, 4.0], 2))],
    );
    let vector = out.sent[0].vector().unwrap();
    assert_eq!(numbers(vector), [0.6, 0.8]);
    assert_eq!(out.sent[0].vectors().unwrap().n(), 2);
    assert_eq!(
        to_mean().fields(),
        Fields::reads([Field::VECTORS]).adds([Field::VECTOR])
    );
    let halves = VectorData::F16(vec![f16::ONE; 2]);
    let into = PoolVectorsConfig {
        into: Some("gist".into()),
        ..to_mean()
    };
    let out = run_stage(&mut pool(&into), [page(Vectors::new(halves, 1).unwrap())]);
    let Some(Value::Vectors(gist)) = out.sent[0].get("gist") else {
        panic!("{out:?}")
    };
    assert_eq!(*gist.data(), VectorData::F32(vec![1.0]));
    assert_eq!(
        into.fields(),
        Fields::reads([Field::VECTORS]).adds([Field::new("gist", FieldType::Vector)])
    );
}

#[test]
fn one_vector_passes_as_it_is_and_fewer_than_the_factor_become_one() {
    let one = run_stage(&mut pool(&by(3)), [page(vectors(vec![2.0, 0.0], 2))]);
    assert_eq!(numbers(one.sent[0].vectors().unwrap()), [2.0, 0.0]);
    let two = vec![2.0, 0.0, 0.0, 2.0];
    let two = run_stage(&mut pool(&by(3)), [page(vectors(two, 2))]);
    let half = 0.5_f32.sqrt();
    assert_eq!(numbers(two.sent[0].vectors().unwrap()), [half, half]);
}

#[test]
fn vectors_that_are_the_same_are_never_parted() {
    // Whatever the factor, there are two kinds of vectors.
    let rows: Vec<f32> = (0..100)
        .flat_map(|row| if row % 3 == 0 { [0.6, 0.8] } else { [1.0, 0.0] })
        .collect();
    for factor in [2, 10, 40] {
        let out = run_stage(&mut pool(&by(factor)), [page(vectors(rows.clone(), 2))]);
        let mut pooled = numbers(out.sent[0].vectors().unwrap());
        pooled.sort_by(f32::total_cmp);
        assert_eq!(pooled, [0.0, 0.6, 0.8, 1.0], "{factor}");
    }
    let zeroes = run_stage(&mut pool(&by(2)), [page(vectors(vec![0.0; 30], 3))]);
    assert_eq!(numbers(zeroes.sent[0].vectors().unwrap()), [0.0; 3]);
}

#[test]
fn the_largest_numbers_do_not_overflow() {
    let huge = vec![f32::MAX, f32::MAX, -f32::MAX, f32::MAX, f32::MAX, f32::MIN];
    for config in [by(2), by(3), to_mean()] {
        let out = run_stage(&mut pool(&config), [page(vectors(huge.clone(), 2))]);
        let field = config.target().name;
        let Some(Value::Vectors(pooled)) = out.sent[0].get(&field) else {
            panic!("{out:?}")
        };
        assert!(numbers(pooled).iter().all(|number| number.abs() <= 1.0));
    }
}

#[test]
fn sets_aside_what_cannot_be_pooled_and_goes_on() {
    let pages = || {
        [
            Item::of_text("a.pdf", "").with_page(1),
            page(vectors(vec![1.0, f32::NAN], 1)),
            page(vectors(vec![0.5; MAX_CLUSTERED + 1], 1)),
            page(vectors(vec![1.0, -1.0], 1)),
            page(vectors(vec![1.0, 0.5], 1)),
        ]
    };
    let reasons = |config: &PoolVectorsConfig| {
        let out = run_stage(&mut pool(config), pages());
        assert_eq!(out.sent.len() + out.dead.len(), 5);
        let said = out.dead.into_iter().map(|(_, reason)| reason);
        let said = said.map(|reason| reason.split_once(": ").unwrap().1.to_owned());
        said.collect::<Vec<_>>()
    };
    let missing = "it has no `vectors`";
    let nan = "row 2 of 2 in its `vectors` is not finite";
    let many = "it has 8193, and no more than 8192 can be clustered";
    let zero = "their mean is zero and has no direction";
    assert_eq!(reasons(&by(2)), [missing, nan, many]);
    assert_eq!(reasons(&by(1)), [missing, nan]);
    assert_eq!(reasons(&to_mean()), [missing, nan, zero]);
}

#[test]
fn settings_that_cannot_be_used_are_refused_by_name() {
    let complaint = |config: PoolVectorsConfig| {
        let built = config.build(&Resources::default());
        built.err().unwrap().to_string()
    };
    assert_eq!(complaint(by(0)), "`factor` must be at least 1");
    assert_eq!(
        complaint(PoolVectorsConfig {
            factor: Some(2),
            ..to_mean()
        }),
        "`factor` has a meaning only where `method` is `hierarchical`"
    );
    let into = |name: &str| PoolVectorsConfig {
        into: Some(name.into()),
        ..by(2)
    };
    assert_eq!(complaint(into("3 d")), "`into` is no name: `3 d`");
    assert_eq!(
        complaint(into("vector")),
        "`into` is a name that means something else: `vector`"
    );
    assert!(into("vectors").build(&Resources::default()).is_ok());
}

/// Ward's method as its definition says: merges, one after the other, the two
/// clusters whose union adds least to the sum of squares within clusters. The
/// points are the rows of `1 - E Eᵀ`.
fn by_definition(rows: &[Vec<f64>], max_clusters: usize) -> Vec<Vec<usize>> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let point = |a: &Vec<f64>| rows.iter().map(|b| 1.0 - dot(a, b)).collect::<Vec<f64>>();
    let points: Vec<Vec<f64>> = rows.iter().map(point).collect();
    let centre = |cluster: &[usize]| {
        let sum = |column: usize| cluster.iter().map(|row| points[*row][column]).sum::<f64>();
        (0..rows.len())
            .map(|column| sum(column) / cluster.len() as f64)
            .collect::<Vec<f64>>()
    };
    let added = |a: &[usize], b: &[usize]| {
        let apart: Vec<f64> = centre(a)
            .iter()
            .zip(centre(b))
            .map(|(a, b)| a - b)
            .collect();
        (a.len() * b.len()) as f64 / (a.len() + b.len()) as f64 * dot(&apart, &apart)
    };
    let mut clusters: Vec<Vec<usize>> = (0..rows.len()).map(|row| vec![row]).collect();
    while clusters.len() > max_clusters {
        let pairs = (1..clusters.len()).flat_map(|b| (0..b).map(move |a| (a, b)));
        let cost = |pair: &(usize, usize)| added(&clusters[pair.0], &clusters[pair.1]);
        let (a, b) = pairs.min_by(|p, q| cost(p).total_cmp(&cost(q))).unwrap();
        let merged = clusters.remove(b);
        clusters[a].extend(merged);
        clusters[a].sort_unstable();
    }
    clusters.sort();
    clusters
}

fn rows_of_each(clusters: &ward::Clusters) -> Vec<Vec<usize>> {
    let mut rows = vec![Vec::new(); clusters.n];
    for (row, cluster) in clusters.of_row.iter().enumerate() {
        rows[*cluster].push(row);
    }
    rows.sort();
    rows
}

fn some_rows(max_n: usize) -> impl Strategy<Value = Vec<Vec<f64>>> {
    (1_usize..12).prop_flat_map(move |dim| {
        proptest::collection::vec(proptest::collection::vec(-1.0_f64..1.0, dim), 1..max_n)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn clusters_are_those_of_the_definition(rows in some_rows(16), factor in 1_usize..6) {
        let max_clusters = (rows.len() / factor).max(1);
        let found = ward::clusters(&rows.concat(), rows[0].len(), max_clusters);
        prop_assert_eq!(rows_of_each(&found), by_definition(&rows, max_clusters));
    }

    #[test]
    fn the_order_of_the_vectors_changes_no_cluster(rows in some_rows(80), turn in 0_usize..80, factor in 1_usize..6) {
        let (n, dim) = (rows.len(), rows[0].len());
        let max_clusters = (n / factor).max(1);
        let found = ward::clusters(&rows.concat(), dim, max_clusters);
        let mut turned = rows;
        turned.rotate_left(turn % n);
        let mut after = ward::clusters(&turned.concat(), dim, max_clusters);
        after.of_row.rotate_right(turn % n);
        prop_assert_eq!(rows_of_each(&found), rows_of_each(&after));
    }

    #[test]
    fn as_many_vectors_of_length_one_come_out_as_the_factor_says(
        rows in some_rows(300),
        factor in 2_usize..8,
    ) {
        let (n, dim) = (rows.len(), rows[0].len());
        let rows = rows.concat().into_iter().map(|number| number as f32).collect();
        let pooled = clustered(&vectors(rows, dim), factor).unwrap();
        prop_assert_eq!((pooled.n(), pooled.dim()), ((n / factor).max(1), dim));
        for row in numbers(&pooled).chunks_exact(dim) {
            let length: f32 = row.iter().map(|number| number * number).sum();
            prop_assert!((length - 1.0).abs() < 1e-5, "{length}");
        }
    }
}
