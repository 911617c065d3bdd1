//! Pipelines wired in Rust: as sound as those from TOML, and as strict.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde::Deserialize;

use super::*;
use crate::{
    ConfigFile, EdgeLimits, Field, FieldError, FieldType, Fields, Item, ItemError, OnError, Outlet,
    Registry, Report, Retry, RunControl, RunError, Sink, SinkConfig, Source, SourceConfig, Stage,
    StageConfig, StageError, Unmatched, from_iter,
};

/// What a sink saw: labels with the names of the fields.
type Seen = Arc<Mutex<Vec<String>>>;

fn seen(seen: &Seen) -> Vec<String> {
    let mut seen = seen.lock().expect("no panic").clone();
    seen.sort();
    seen
}

fn texts(n: usize) -> SourceFn {
    let items = (0..n).map(|number| Item::of_text(format!("{number}.txt"), &number.to_string()));
    from_iter(items).provides([Field::TEXT])
}

fn remember(seen: &Seen) -> SinkFn {
    let seen = Arc::clone(seen);
    sink_fn(move |batch: Vec<Item>| {
        let lines = batch.iter().map(|item| {
            let names: BTreeSet<&str> = item.fields().map(|(name, _)| name).collect();
            format!("{} {names:?}", item.label())
        });
        seen.lock().expect("no panic").extend(lines);
        async { Ok(()) }
    })
}

fn run(pipeline: Pipeline) -> Result<Report, RunError> {
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    runtime.block_on(pipeline.run(&RunControl::default()))
}

fn build(builder: PipelineBuilder) -> Pipeline {
    match builder.build(&Resources::default()) {
        Ok(pipeline) => pipeline,
        Err(error) => panic!("{error}"),
    }
}

fn complaint(builder: PipelineBuilder) -> String {
    let built = builder.build(&Resources::default());
    built.err().expect("it is wrong").to_string()
}

/// Adds a field whose name is in its settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct TagConfig {
    tag: String,
}

impl StageConfig for TagConfig {
    const KIND: &'static str = "tag";
    const ABOUT: &'static str = "adds a flag";
    const EXAMPLE: &'static str = "tag = 'x'";
    fn fields(&self) -> Fields {
        let tag = self.tag.clone().into();
        let ty = FieldType::Bool;
        Fields::reads([Field::TEXT]).adds([Field { name: tag, ty }])
    }
    fn build(&self, _: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        if self.tag.is_empty() {
            return Err(FieldError::new("tag", "is empty", "give it a name"));
        }
        Ok(Box::new(self.clone()))
    }
}

impl Stage for TagConfig {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        outlet.each(batch, |item| {
            item.set(self.tag.clone(), true);
            Ok(())
        })
    }
}

fn tag(name: &str) -> TagConfig {
    TagConfig { tag: name.into() }
}

#[derive(Deserialize)]
struct TextsConfig {}

impl SourceConfig for TextsConfig {
    const KIND: &'static str = "texts";
    const ABOUT: &'static str = "sends texts";
    const EXAMPLE: &'static str = "";
    fn fields(&self) -> Fields {
        Fields::provides([Field::TEXT])
    }
    fn build(&self, resources: &Resources) -> Result<Box<dyn Source>, FieldError> {
        crate::registry::AnySource::build(&texts(20), resources)
    }
}

#[derive(Deserialize)]
struct RememberConfig {}

impl SinkConfig for RememberConfig {
    const KIND: &'static str = "remember";
    const ABOUT: &'static str = "remembers";
    const EXAMPLE: &'static str = "";
    fn build(&self, resources: &Resources) -> Result<Box<dyn Sink>, FieldError> {
        let seen = resources.get::<Seen>("").expect("the test sets it");
        crate::registry::AnySink::build(&remember(&seen), resources)
    }
}

#[test]
fn a_join_that_is_wired_in_rust_does_what_one_in_toml_does() {
    let toml = "[p]\nledger = false\n[p.source.a]\nkind = 'texts'\n\
                [p.stage.b]\nkind = 'tag'\ntag = 'left'\ninput = 'a'\n\
                [p.stage.c]\nkind = 'tag'\ntag = 'right'\ninput = 'a'\n\
                when = \"text != '7'\"\nelse = 'drop'\n\
                [p.sink.d]\nkind = 'remember'\njoin = ['b', 'c']\nunmatched = 'pass'\n";
    let folder = tempfile::tempdir().expect("a temporary folder");
    let place = format!("[p]\ndead_letters = '{}'\n", folder.path().display());
    let toml = toml.replacen("[p]\n", &place, 1);
    let registry = Registry::new()
        .source::<TextsConfig>()
        .stage::<TagConfig>()
        .sink::<RememberConfig>();
    let file = ConfigFile::parse(Path::new("p.toml"), &toml, &[], &registry, &|_| None);
    let file = file.expect("a sound configuration");
    let (resources, from_toml) = (Resources::default(), Seen::default());
    resources.insert("", Arc::clone(&from_toml));
    let graph = file.pipeline(None).expect("the first");
    run(file.build(graph, &resources).expect("it builds")).expect("it runs");

    let from_rust = Seen::default();
    let builder = Pipeline::builder("p")
        .source("a", texts(20))
        .stage("b", tag("left"))
        .node(
            stage("c", tag("right"))
                .input("a")
                .when("text != '7'")
                .or_else_drop(),
        )
        .node(
            sink("d", remember(&from_rust))
                .join(["b", "c"])
                .unmatched(Unmatched::Pass),
        );
    run(build(builder)).expect("it runs");

    // The closure takes `text` too, as it does not say what it reads.
    let expected = seen(&from_toml);
    assert_eq!(seen(&from_rust), expected);
    assert_eq!(expected.len(), 20);
    assert_eq!(expected[0], r#"0.txt {"left", "right", "text"}"#);
    let alone = r#"7.txt {"left", "text"}"#;
    assert!(expected.iter().any(|line| line == alone), "{expected:?}");
}

#[test]
fn a_node_takes_from_the_last_source_or_stage_before_it() {
    let (first, second) = (Seen::default(), Seen::default());
    let builder = Pipeline::builder("p")
        .source("a", texts(3))
        .sink("all", remember(&first))
        .stage("odd", filter(|item| item.text() == Some("1")))
        .sink("some", remember(&second));
    run(build(builder)).expect("it runs");
    assert_eq!((seen(&first).len(), seen(&second).len()), (3, 1));
}

#[test]
fn all_that_is_wrong_is_reported_at_once_with_the_names_of_nodes() {
    let builder = Pipeline::builder("p")
        .source("files", texts(1))
        .node(stage("shout", map(Ok)).input("flies").workers(0))
        .stage("tagged", tag(""))
        .node(sink("rows", remember(&Seen::default())).on_error(OnError::DeadLetter));
    let expected = "\
error: no node takes from source `files`
--> source `files` of pipeline `p`
 |
hint: name it in the `input` of another node, or remove `files`

error: `workers` must be between 1 and 256
--> stage `shout` of pipeline `p`
 |
hint: leave it out for what suits the kind

error: there is no node `flies`
--> stage `shout` of pipeline `p`
 |
hint: did you mean `files`?

error: `tag` is empty
--> stage `tagged` of pipeline `p`
 |
hint: give it a name

error: a sink cannot set items aside
--> sink `rows` of pipeline `p`
 |
hint: a sink that cannot store stops the run; choose `retry` or `stop`";
    assert_eq!(complaint(builder), expected);
}

#[test]
fn a_field_that_is_missing_names_the_node_that_has_it() {
    let builder = Pipeline::builder("p")
        .source("a", texts(1))
        .stage("b", map(Ok).reads([Field::TEXT]).adds([Field::VECTOR]))
        .stage("c", map(Ok).drops([Field::VECTOR]))
        .stage("d", map(Ok).reads([Field::VECTOR]))
        .sink("e", remember(&Seen::default()));
    let text = complaint(builder);
    assert!(
        text.contains("error: stage `d` reads `vector`, which `c` does not provide"),
        "{text}"
    );
    assert!(text.contains("--> stage `d` of pipeline `p`"), "{text}");
    assert!(text.contains("hint: `b` does: take from it"), "{text}");
}

#[test]
fn a_circle_and_a_pipeline_without_ends_are_refused() {
    let circle = Pipeline::builder("p")
        .source("a", texts(1))
        .node(stage("b", map(Ok)).input("a").input("c"))
        .stage("c", map(Ok))
        .sink("d", remember(&Seen::default()));
    let text = complaint(circle);
    assert!(
        text.contains("goes round in a circle: `b` -> `c` -> `b`"),
        "{text}"
    );
    let text = complaint(Pipeline::builder("p").stage("b", map(Ok)));
    for part in [
        "stage `b` has no `input`",
        "pipeline `p` has no source",
        "hint: add `.source(\"NAME\", ..)`",
        "pipeline `p` has no sink",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let nameless = Pipeline::builder("my pipeline").node(output("x"));
    let text = complaint(nameless);
    assert!(
        text.contains("`my pipeline` cannot name a pipeline"),
        "{text}"
    );
    assert!(
        text.contains("`x` is an output that nobody reads"),
        "{text}"
    );
}

#[test]
fn a_mistake_in_when_is_shown_within_it() {
    let routed = |when: &str| {
        let builder = Pipeline::builder("p").source("a", texts(1));
        let node = stage("b", map(Ok)).input("a").when(when);
        complaint(builder.node(node).sink("c", remember(&Seen::default())))
    };
    let text = routed("txt == 'x'");
    assert!(
        text.contains("--> `when` of stage `b` of pipeline `p`:1:2"),
        "{text}"
    );
    assert!(text.contains("1 | \"txt == 'x'\""), "{text}");
    let text = routed("text == 'x'");
    assert!(
        text.contains("hint: add `.or_else_drop()`, or `.or_else(\"NODE\")`"),
        "{text}"
    );
}

#[test]
fn what_a_closure_panics_at_is_set_aside_and_told_of() {
    let (stored, letters) = (Seen::default(), Seen::default());
    let told = Arc::clone(&letters);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let brittle = batch_map(|items| {
        assert!(items.iter().all(|item| item.text() != Some("3")), "odd");
        Ok(items)
    });
    let picky = map(|item: Item| match item.text() {
        Some("5") => Err(ItemError::new("like", "it is five")),
        _ => Ok(item),
    });
    let builder = Pipeline::builder("p")
        .source("a", texts(10))
        .stage("brittle", brittle)
        .node(stage("picky", picky).input("brittle").workers(2))
        .sink("rows", remember(&stored))
        .dead_letters(folder.path())
        .on_dead_letter(move |letter| {
            told.lock().expect("no panic").push(letter.error.clone());
        });
    let report = run(build(builder)).expect("it goes on");
    assert_eq!((seen(&stored).len(), report.totals.dead_letters), (8, 2));
    let expected = [
        "cannot handle `3.txt`: the stage panicked: odd",
        "cannot like `5.txt`: it is five",
    ];
    assert_eq!(seen(&letters), expected);
    let filed = crate::read_dead_letters(folder.path()).expect("readable");
    assert_eq!(filed.len(), 2);
}

#[test]
fn what_a_sink_could_not_store_comes_again_until_it_can() {
    let (stored, attempts) = (Seen::default(), Arc::new(AtomicUsize::new(0)));
    let (rows, counted) = (Arc::clone(&stored), Arc::clone(&attempts));
    let flaky = sink_fn(move |batch: Vec<Item>| {
        let is_well = counted.fetch_add(1, Ordering::Relaxed) > 1;
        if is_well {
            let labels = batch.iter().map(|item| item.label().to_string());
            rows.lock().expect("no panic").extend(labels);
        }
        async move {
            is_well
                .then_some(())
                .ok_or_else(|| StageError::fatal("the line is down", "mend it"))
        }
    });
    let retry = OnError::Retry(Retry {
        attempts: 3,
        base_ms: 1,
    });
    let builder = Pipeline::builder("p")
        .source("a", texts(5))
        .node(sink("rows", flaky).input("a").on_error(retry));
    let report = run(build(builder)).expect("the third attempt is well");
    assert_eq!((seen(&stored).len(), report.totals.items_stored), (5, 5));
    assert!(attempts.load(Ordering::Relaxed) >= 3);
}

#[test]
fn a_ledger_asks_closures_for_a_version_and_goes_by_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let stored = Seen::default();
    let versioned = |version: Option<&str>| {
        let stage = map(Ok).reads([Field::TEXT]);
        let stage = match version {
            Some(version) => stage.version(version),
            None => stage,
        };
        Pipeline::builder("p")
            .source("a", texts(4))
            .stage("b", stage)
            .sink("c", remember(&stored))
            .ledger(folder.path())
    };
    let text = complaint(versioned(None));
    assert!(
        text.contains("stage `b` has no version, which the ledger goes by"),
        "{text}"
    );
    let done = |version| {
        let report = run(build(versioned(Some(version)))).expect("it runs");
        (
            report.totals.documents_done,
            report.totals.documents_skipped,
        )
    };
    assert_eq!(done("1"), (4, 0));
    assert_eq!(done("1"), (0, 4));
    assert_eq!(done("2"), (4, 0));
}

#[test]
fn the_fingerprint_tells_settings_and_versions_apart() {
    let fingerprint = |node: NodeBuilder| {
        let builder = Pipeline::builder("p")
            .source("a", texts(1))
            .node(node.input("a"));
        let pipeline = build(builder.sink("c", remember(&Seen::default())));
        pipeline.sinks[0].fingerprint.clone()
    };
    let all = [
        fingerprint(stage("b", tag("x"))),
        fingerprint(stage("b", tag("y"))),
        fingerprint(stage("b", tag("x")).version("2")),
        fingerprint(stage("b", map(Ok).version("2"))),
        fingerprint(stage("b", filter(|_| true).version("2"))),
    ];
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    assert_eq!(all[0], fingerprint(stage("b", tag("x")).workers(3)));
}

#[test]
fn a_group_that_fails_is_tried_again_as_a_whole() {
    let (stored, attempts) = (Seen::default(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&attempts);
    let split = flat_map(|item: Item| {
        let parts = 1..=3;
        Ok(parts.map(move |part| item.clone().with_part(part)))
    });
    let add = gather(move |items| {
        assert_eq!(items.len(), 3);
        if items[0].text() == Some("1") || counted.fetch_add(1, Ordering::Relaxed) == 0 {
            return Err(ItemError::new("add", "the line is down"));
        }
        Ok(Item::new(Arc::clone(items[0].origin())))
    });
    let retry = OnError::Retry(Retry {
        attempts: 2,
        base_ms: 1,
    });
    let builder = Pipeline::builder("p")
        .source("a", texts(3))
        .stage("split", split)
        .node(stage("add", add).input("split").on_error(retry))
        .sink("c", remember(&stored));
    let report = run(build(builder)).expect("it goes on");
    assert_eq!(seen(&stored), ["0.txt {}", "2.txt {}"]);
    assert_eq!(report.totals.dead_letters, 1);
}

#[test]
fn all_items_of_a_document_or_a_page_are_gathered() {
    let split = || {
        flat_map(|item: Item| {
            let pages = (1..=2).flat_map(|page| (1..=3).map(move |part| (page, part)));
            let pages: Vec<(u32, u32)> = pages.collect();
            let parts = pages.into_iter();
            Ok(parts.map(move |(page, part)| item.clone().with_page(page).with_part(part)))
        })
    };
    let add = |items: Vec<Item>| {
        let n = i64::try_from(items.len()).expect("few");
        let whole = Item::new(Arc::clone(items[0].origin()));
        let whole = match items[0].key().page {
            Some(page) if n == 3 => whole.with_page(page),
            _ => whole,
        };
        Ok(whole.with("n", n))
    };
    let n = Field::new("n", FieldType::Integer);
    for (gathers, n_items) in [(gather(add), 4), (gather_pages(add), 8)] {
        let stored = Seen::default();
        let tight = EdgeLimits {
            max_items: 1,
            max_bytes: 1,
        };
        let builder = Pipeline::builder("p")
            .source("a", texts(4))
            .stage("split", split())
            .node(
                stage("add", gathers.adds([n.clone()]))
                    .input("split")
                    .edge(tight),
            )
            .sink("c", remember(&stored));
        run(build(builder)).expect("it runs");
        assert_eq!(seen(&stored).len(), n_items, "{:?}", seen(&stored));
    }
}
