//! Tests of what edges carry and of whose pages a join waits for.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::*;
use crate::builder::{PipelineBuilder, sink, sink_fn, stage};
use crate::{Field, FieldType, Item, Outlet, StageError, StageFn, from_iter, from_stage};

struct Pass;

impl Stage for Pass {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        batch.into_iter().try_for_each(|item| outlet.send(item))
    }
}

fn pass(fields: Fields) -> StageFn {
    from_stage(fields, || Pass)
}

fn build(builder: PipelineBuilder) -> Pipeline {
    let built = builder.build(&Resources::default());
    built.unwrap_or_else(|error| panic!("{error}"))
}

fn store(fields: impl IntoIterator<Item = Field>) -> crate::SinkFn {
    sink_fn(|_: Vec<Item>| async { Ok(()) }).reads(fields)
}

/// The fields on the edges that lead to the node called `name`.
fn carried(pipeline: &Pipeline, name: &str) -> BTreeSet<Cow<'static, str>> {
    let mut nodes = pipeline.nodes.iter();
    let node = nodes.find(|node| &*node.name == name).expect("it is there");
    match node.carries.as_ref() {
        Carries::All => panic!("the check has worked out what is carried"),
        Carries::Only(names) => names.clone(),
    }
}

fn sources_of(fields: impl IntoIterator<Item = Field>) -> PipelineBuilder {
    let items = std::iter::empty::<Item>();
    Pipeline::builder("p").source("s", from_iter(items).provides(fields))
}

/// Makes pages of documents; items of another kind pass.
fn render() -> Fields {
    Fields::reads([Field::DOCUMENT]).adds([Field::TEXT, Field::IMAGE])
}

#[test]
fn a_field_that_a_passing_item_brings_is_carried_to_a_node_that_adds_it() {
    let builder = sources_of([Field::DOCUMENT, Field::TEXT])
        .stage("render", pass(render()))
        .sink("k", store([Field::TEXT, Field::IMAGE]));
    let pipeline = build(builder);
    assert_eq!(
        carried(&pipeline, "render"),
        BTreeSet::from(["document".into(), "text".into()])
    );
}

#[test]
fn pixels_are_not_carried_to_a_node_that_makes_them_of_every_item() {
    let pages = [Field::DOCUMENT, Field::IMAGE];
    for (fields, is_carried) in [(render(), true), (render().to_every_item(), false)] {
        let builder = sources_of(pages.clone())
            .stage("render", pass(fields))
            .sink("k", store([Field::IMAGE]));
        let pipeline = build(builder);
        assert_eq!(carried(&pipeline, "render").contains("image"), is_carried);
    }
}

#[test]
fn pixels_that_nobody_looks_at_are_not_carried_for_items_that_pass() {
    let builder = sources_of([Field::DOCUMENT, Field::IMAGE])
        .stage("render", pass(render()))
        .sink("k", store([Field::TEXT]));
    assert!(!carried(&build(builder), "render").contains("image"));
}

#[test]
fn a_field_that_items_bring_with_another_type_than_the_node_adds_is_refused() {
    let title = |ty| Field {
        name: "title".into(),
        ty,
    };
    let builder = sources_of([Field::DOCUMENT, title(FieldType::Integer)])
        .stage("render", pass(render().adds([title(FieldType::Text)])))
        .sink("k", store([Field::TEXT]));
    let built = builder.build(&Resources::default());
    let error = built.err().expect("it is wrong").to_string();
    let expected = "stage `render` adds `title` as text, and items bring it as integer";
    assert!(error.contains(expected), "{error}");
}

/// The nodes by whose pages the node called `name` waits.
fn makers(pipeline: &Pipeline, name: &str, rule: &Rule) -> Vec<String> {
    let mut nodes = pipeline.nodes.iter();
    let place = nodes.position(|node| &*node.name == name);
    let upstream = pipeline.upstream(place.expect("it is there"), rule);
    let nodes = pipeline.nodes.iter();
    let makers = nodes.filter(|node| upstream.page_makers.contains(&node.key));
    makers.map(|node| node.name.to_string()).collect()
}

fn join() -> Rule {
    Rule::Join {
        inputs: Vec::new(),
        unmatched: Unmatched::default(),
    }
}

#[test]
fn a_join_waits_for_the_pages_of_nodes_that_all_its_branches_start_from() {
    let plain = || pass(Fields::reads([Field::TEXT]));
    let builder = sources_of([Field::TEXT])
        .stage("p", plain())
        .node(stage("a", plain()).input("p"))
        .node(stage("b", plain()).input("p"))
        .node(stage("beside", plain()).input("s"))
        .node(sink("k", store([Field::TEXT])).join(["a", "b"]))
        .node(sink("l", store([Field::TEXT])).join(["a", "beside"]));
    let pipeline = build(builder);
    assert_eq!(makers(&pipeline, "k", &join()), ["p"]);
    assert_eq!(makers(&pipeline, "l", &join()), [""; 0]);
    assert_eq!(makers(&pipeline, "k", &Rule::Document), [""; 0]);
}

#[test]
fn a_group_waits_for_the_pages_of_a_node_that_gets_each_document_once() {
    let plain = || pass(Fields::reads([Field::TEXT]));
    let builder = sources_of([Field::TEXT])
        .stage("a", plain())
        .node(stage("p", plain()).input("s").input("a"))
        .sink("k", store([Field::TEXT]));
    let pipeline = build(builder);
    assert_eq!(makers(&pipeline, "k", &join()), ["p"]);
    assert_eq!(makers(&pipeline, "k", &Rule::Page), [""; 0]);
}
