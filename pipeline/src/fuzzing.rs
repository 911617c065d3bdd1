//! Readers of what comes from outside, as `fuzz/` calls them: each takes any
//! bytes and has to come back. The tests run them over the same corpus.

use std::fs;
use std::path::Path;

use futures::future::BoxFuture;
use serde::Deserialize;

use crate::expression::Expression;
use crate::{
    ConfigFile, Field, FieldError, FieldSet, FieldType, Fields, Item, Outlet, Registry, Resources,
    Source, SourceConfig, SourceOutlet, Stage, StageConfig, StageError,
};

/// The value of `${API_TOKEN}`, which must come out nowhere.
const TOKEN: &str = "tk-5b1f9e0c";

/// A configuration, and after each zero byte an argument of `--set`.
///
/// # Panics
/// The reader panics, or tells what is secret.
pub fn toml(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut texts = text.split('\0').map(str::to_owned);
    let file = texts.next().unwrap_or_default();
    let overrides: Vec<String> = texts.collect();
    let registry = Registry::new().source::<AnySource>().stage::<AnyStage>();
    let variable = |name: &str| (name == "API_TOKEN").then(|| TOKEN.to_owned());
    let path = Path::new("p.toml");
    let read = ConfigFile::parse(path, &file, &overrides, &registry, &variable);
    let told = match &read {
        Err(error) => error.render(true),
        Ok(file) => {
            let mut told = String::new();
            for graph in file.pipelines() {
                told += graph.description().unwrap_or_default();
                told += &graph.fingerprint(&Resources::default());
                for node in graph.nodes() {
                    for number in 0..node.inputs().len() {
                        told += node.route(number).unwrap_or_default();
                    }
                }
                let built = file.build(graph, &Resources::default());
                told += &built
                    .err()
                    .map(|error| error.to_string())
                    .unwrap_or_default();
            }
            told
        }
    };
    let is_secret = |part: &str| !text.contains(part) && told.contains(part);
    assert!(!is_secret(&TOKEN[3..]), "{told}");
}

/// An expression of `when`, which is then put to some items.
///
/// # Panics
/// The reader panics.
pub fn expression(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let fields = FieldSet::from_iter([
        Field::TEXT,
        Field::new("is_scan", FieldType::Bool),
        Field::new("n_columns", FieldType::Integer),
        Field::new("score", FieldType::Float),
    ]);
    let Ok(expression) = Expression::new(&text, &fields) else {
        return;
    };
    let whole = Item::of_text("reports/mill.txt", "Die Mühle dreht sich")
        .with_page(2)
        .with("is_scan", true)
        .with("n_columns", i64::MIN)
        .with("score", f64::NAN);
    for item in [whole, Item::of_text("", "").with("n_columns", i64::MAX)] {
        if let Err(error) = expression.takes(&item) {
            let _ = error.message(&item.label());
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnySource {}

impl SourceConfig for AnySource {
    const KIND: &'static str = "read";
    const ABOUT: &'static str = "sends nothing";
    const EXAMPLE: &'static str = "";
    fn fields(&self) -> Fields {
        Fields::provides([Field::TEXT])
    }
    fn build(&self, _: &Resources) -> Result<Box<dyn Source>, FieldError> {
        Ok(Box::new(Nothing))
    }
}

/// A setting of each type.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct AnyStage {
    number: u32,
    share: f32,
    flag: bool,
    text: Option<String>,
    choice: Choice,
    path: std::path::PathBuf,
    list: Vec<String>,
    table: std::collections::BTreeMap<String, i64>,
}

#[derive(Deserialize, Default, Debug)]
#[serde(rename_all = "snake_case")]
enum Choice {
    #[default]
    One,
    Another,
}

impl StageConfig for AnyStage {
    const KIND: &'static str = "change";
    const ABOUT: &'static str = "changes nothing";
    const EXAMPLE: &'static str = "number = 1";
    fn fields(&self) -> Fields {
        Fields::reads([Field::TEXT])
    }
    fn build(&self, _: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        if self.flag {
            let Self {
                number,
                share,
                text,
                choice,
                path,
                list,
                table,
                ..
            } = self;
            let path = path.display();
            let problem = format!("{number} {share} {text:?} {choice:?} {path} {list:?} {table:?}");
            return Err(FieldError::new("flag", problem, path));
        }
        Ok(Box::new(Nothing))
    }
}

struct Nothing;

impl Source for Nothing {
    fn run(self: Box<Self>, _: SourceOutlet) -> BoxFuture<'static, Result<(), StageError>> {
        Box::pin(async { Ok(()) })
    }
}

impl Stage for Nothing {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        outlet.each(batch, |_| Ok(()))
    }
}

/// Runs `target` over the files of a corpus, and `n` times over what comes of
/// them when they are damaged: the same each time.
///
/// # Panics
/// The target does, after its input was printed; or there is no corpus.
pub fn try_mutations(corpus: &Path, n: usize, target: fn(&[u8])) {
    let mut paths: Vec<_> = fs::read_dir(corpus)
        .expect("a folder of files to begin with")
        .map(|entry| entry.expect("a folder that can be read").path())
        .collect();
    paths.sort();
    let seeds: Vec<Vec<u8>> = paths
        .iter()
        .map(|path| fs::read(path).expect("a file that can be read"))
        .collect();
    assert!(!seeds.is_empty(), "{} is empty", corpus.display());
    let mut mutator = Mutator(seeds.len() as u64);
    for seed in &seeds {
        attempt(seed, target);
    }
    for round in 0..n {
        let mut bytes = seeds[round % seeds.len()].clone();
        for _ in 0..=mutator.below(4) {
            mutator.change(&mut bytes, &seeds);
        }
        attempt(&bytes, target);
    }
}

fn attempt(bytes: &[u8], target: fn(&[u8])) {
    let tried = std::panic::catch_unwind(|| target(bytes));
    if let Err(panic) = tried {
        std::panic::resume_unwind(Box::new(format!(
            "{}\nwith the input b\"{}\"",
            panic
                .downcast_ref::<String>()
                .map_or("a panic", String::as_str),
            bytes.escape_ascii()
        )));
    }
}

/// Changes bytes at random, the same way each time.
struct Mutator(u64);

impl Mutator {
    fn below(&mut self, end: usize) -> usize {
        // Knuth's generator; its high bits are the good ones.
        let next = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = next.wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize).checked_rem(end).unwrap_or(0)
    }

    fn change(&mut self, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        const TELLING: [u8; 16] = *b"\0\x01\x7f\x80\xff\"'.=[]{}$,\n";
        let place = self.below(bytes.len());
        let end = place + self.below((bytes.len() - place).min(32) + 1);
        match self.below(7) {
            0 if !bytes.is_empty() => bytes[place] ^= 1 << self.below(8),
            1 if !bytes.is_empty() => bytes[place] = TELLING[self.below(TELLING.len())],
            2 => bytes.insert(place, TELLING[self.below(TELLING.len())]),
            3 => drop(bytes.drain(place..end)),
            4 => {
                let part = bytes[place..end].repeat(1 + self.below(40));
                bytes.splice(place..place, part);
            }
            5 => {
                let other = &seeds[self.below(seeds.len())];
                let from = self.below(other.len());
                let to = from + self.below((other.len() - from).min(64) + 1);
                bytes.splice(place..end, other[from..to].iter().copied());
            }
            _ => bytes.truncate(place.max(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../fuzz/corpus")
            .join(name)
    }

    #[test]
    fn no_configuration_is_worse_than_an_error() {
        try_mutations(&corpus("toml"), 6_000, toml);
    }

    #[test]
    fn no_expression_is_worse_than_an_error() {
        try_mutations(&corpus("expression"), 10_000, expression);
    }
}
