//! Questions about the sample documents, each with its one right page.

use std::fs;
use std::path::Path;

use pagemill::models::ModelPlaces;
use pagemill::sinks::lancedb::{Hit, SearchMode};
use pagemill::{ConfigFile, Searcher};
use serde::Deserialize;

use crate::support;

#[derive(Deserialize)]
struct Questions {
    question: Vec<Question>,
}

#[derive(Deserialize)]
struct Question {
    ask: String,
    document: String,
    page: u32,
    #[serde(default)]
    demo: bool,
}

impl Question {
    fn is_answered_by(&self, hit: &Hit) -> bool {
        hit.document.ends_with(&self.document) && hit.page == Some(self.page)
    }
}

fn questions() -> Vec<Question> {
    let text = fs::read_to_string(support::project().join("tests/questions.toml")).unwrap();
    toml::from_str::<Questions>(&text).unwrap().question
}

#[test]
fn the_right_page_comes_first() {
    let Some(folder) = support::indexed() else {
        return;
    };
    let data = folder.path().join("data");
    let variable = move |name: &str| match name {
        "PAGEMILL_DATA" => Some(data.display().to_string()),
        "PAGEMILL_DOCUMENTS" => None,
        _ => std::env::var(name).ok(),
    };
    let path = support::project().join("pipelines.toml");
    let file = ConfigFile::read(Path::new(&path), &[], &pagemill::registry(), &variable).unwrap();
    let graph = file.pipeline(Some("documents")).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let places = ModelPlaces::from_environment();
    let searcher = runtime
        .block_on(Searcher::open(graph, &places, None))
        .unwrap();

    let questions = questions();
    assert!(questions.len() >= 20);
    let mut missed = [Vec::new(), Vec::new(), Vec::new()];
    for question in &questions {
        for (mode, missed) in [SearchMode::Hybrid, SearchMode::Text, SearchMode::Vector]
            .iter()
            .zip(&mut missed)
        {
            let hits = searcher.search(&question.ask, Some(*mode), 5);
            let hits = runtime.block_on(hits).unwrap();
            let found = hits.first().is_some_and(|hit| question.is_answered_by(hit));
            if !found {
                let first = hits.first().map(|hit| (hit.document.clone(), hit.page));
                missed.push((question.demo, format!("`{}` found {first:?}", question.ask)));
            }
        }
    }
    let [hybrid, text, vector] = missed;
    eprintln!(
        "right page first, of {}: hybrid {}, text {}, vector {}",
        questions.len(),
        questions.len() - hybrid.len(),
        questions.len() - text.len(),
        questions.len() - vector.len(),
    );
    // At least 18 of 20.
    assert!(
        hybrid.len() * 10 <= questions.len(),
        "hybrid search missed: {hybrid:#?}"
    );
}
