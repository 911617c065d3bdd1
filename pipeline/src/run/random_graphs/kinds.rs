//! The kinds that random pipelines are made of.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;
use serde::Deserialize;

use super::cut::CutConfig;
use super::work::{Does, Facts, changed, is_struck, n_parts};
use crate::{
    Delivery, Ended, Field, FieldError, FieldType, Fields, Item, ItemError, Key, Outlet, Registry,
    Resources, Sink, SinkConfig, SinkInput, Source, SourceConfig, SourceOutlet, Stage, StageConfig,
    StageError, Value,
};

const V: Field = Field::new("v", FieldType::Integer);

/// A stored item: the sink, the item's label, its fields.
pub(super) type Row = (String, String, BTreeMap<String, String>);

/// What the kinds of one run share.
#[derive(Default)]
pub(super) struct World {
    /// What reached the sinks.
    rows: Mutex<Vec<Row>>,
    /// Sink and document, for each end of one.
    ended: Mutex<Vec<(String, String)>>,
    /// What a sink saw that it must not see.
    problems: Mutex<Vec<String>>,
    /// How often a stage that fails at first has tried an item.
    attempts: Mutex<HashMap<(String, Key, i64), u32>>,
}

fn lock<T>(values: &Mutex<T>) -> MutexGuard<'_, T> {
    values.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub(super) fn rows(&self) -> Vec<Row> {
        sorted(lock(&self.rows).clone())
    }

    pub(super) fn ended(&self) -> Vec<(String, String)> {
        sorted(lock(&self.ended).clone())
    }

    pub(super) fn problems(&self) -> Vec<String> {
        lock(&self.problems).clone()
    }

    /// Whether this is the first attempt of `stage` at the item.
    fn is_first_attempt(&self, stage: &str, item: &Item) -> bool {
        let mut attempts = lock(&self.attempts);
        let of_item = (stage.to_owned(), item.key(), v_of(item));
        let n_attempts = attempts.entry(of_item).or_default();
        *n_attempts += 1;
        *n_attempts == 1
    }
}

fn sorted<T: Ord>(mut values: Vec<T>) -> Vec<T> {
    values.sort();
    values
}

pub(super) fn registry() -> Registry {
    Registry::new()
        .source::<TextsConfig>()
        .stage::<WorkConfig>()
        .stage::<CutConfig>()
        .sink::<KeepConfig>()
}

fn world(resources: &Resources) -> Arc<World> {
    let world = resources.get::<Arc<World>>("");
    Arc::clone(&world.expect("every test sets it"))
}

fn v_of(item: &Item) -> i64 {
    match item.get("v") {
        Some(Value::Integer(v)) => *v,
        other => unreachable!("every item has a `v`, not {other:?}"),
    }
}

fn facts(item: &Item) -> Facts<'_> {
    Facts {
        uri: &item.origin().uri,
        page: item.key().page,
        part: item.key().part,
        v: v_of(item),
    }
}

/// Sends `n` documents of text.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextsConfig {
    prefix: String,
    n: u32,
}

/// The document that stands `number`-th: its URI, its text, its value.
pub(super) fn text(prefix: &str, number: u32) -> (String, String, i64) {
    let text = "word ".repeat(number as usize % 4);
    (
        format!("{prefix}-{number}"),
        text,
        changed(number.into(), 3),
    )
}

impl SourceConfig for TextsConfig {
    const KIND: &'static str = "texts";
    const ABOUT: &'static str = "sends documents";
    const EXAMPLE: &'static str = "prefix = 'a'\nn = 3";
    fn fields(&self) -> Fields {
        Fields::provides([Field::TEXT, V])
    }
    fn build(&self, _: &Resources) -> Result<Box<dyn Source>, FieldError> {
        Ok(Box::new(Texts {
            prefix: self.prefix.clone(),
            n: self.n,
        }))
    }
}

struct Texts {
    prefix: String,
    n: u32,
}

impl Source for Texts {
    fn run(self: Box<Self>, outlet: SourceOutlet) -> BoxFuture<'static, Result<(), StageError>> {
        Box::pin(async move {
            for number in 0..self.n {
                let (uri, text, v) = text(&self.prefix, number);
                outlet.send(Item::of_text(uri, &text).with("v", v)).await?;
            }
            Ok(())
        })
    }
}

/// Does what its name says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkConfig {
    does: String,
    by_page: bool,
    tag: String,
    salt: u64,
}

impl StageConfig for WorkConfig {
    const KIND: &'static str = "work";
    const ABOUT: &'static str = "does something to items";
    const EXAMPLE: &'static str = "does = 'Step'\nby_page = false\ntag = 'a'\nsalt = 0";

    fn fields(&self) -> Fields {
        let made = Field {
            name: Cow::Owned(format!("m_{}", self.tag)),
            ty: FieldType::Integer,
        };
        let fields = Fields::reads([V]).replaces([V]).adds([made]);
        match Does::of_name(&self.does) {
            Some(does) if does.gathers() && self.by_page => fields.many_to_one_page(),
            Some(does) if does.gathers() => fields.many_to_one(),
            Some(does) if does.splits() => fields.one_to_many(),
            _ => fields,
        }
    }

    fn build(&self, resources: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        let Some(does) = Does::of_name(&self.does) else {
            return Err(FieldError::new("does", "is unknown", "use `Step`"));
        };
        Ok(Box::new(Work {
            does,
            by_page: self.by_page,
            tag: self.tag.clone(),
            salt: self.salt,
            held: Vec::new(),
            world: world(resources),
        }))
    }
}

struct Work {
    does: Does,
    by_page: bool,
    tag: String,
    salt: u64,
    held: Vec<Item>,
    world: Arc<World>,
}

impl Work {
    /// The item with another value, by `by` of several.
    fn change(&self, mut item: Item, by: u64) -> Item {
        let v = changed(v_of(&item), self.salt + by);
        item.set("v", v);
        item.set(format!("m_{}", self.tag), v);
        item
    }

    fn is_struck(&self, item: &Item, one_in: u64) -> bool {
        is_struck(self.salt, &facts(item), one_in)
    }

    fn odd() -> ItemError {
        ItemError::new("work on", "it is odd")
    }

    fn step(&mut self, item: Item, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        let world = Arc::clone(&self.world);
        match self.does {
            Does::Filter if self.is_struck(&item, 3) => return Ok(()),
            Does::SetAside if self.is_struck(&item, 3) => {
                outlet.dead_letter(item, Self::odd());
                return Ok(());
            }
            // It does not call the hook that prints it.
            Does::PanicBefore if self.is_struck(&item, 4) => resume_unwind(Box::new("poison")),
            Does::Flaky
                if self.is_struck(&item, 8)
                    || (self.is_struck(&item, 2) && world.is_first_attempt(&self.tag, &item)) =>
            {
                outlet.dead_letter(item, Self::odd());
                return Ok(());
            }
            Does::Breaking
                if self.is_struck(&item, 3) && world.is_first_attempt(&self.tag, &item) =>
            {
                return Err(StageError::fatal("it broke", "try again"));
            }
            Does::Late => {
                self.held.push(item);
                return Ok(());
            }
            _ => {}
        }
        let panics = self.does == Does::PanicAfter && self.is_struck(&item, 4);
        outlet.send(self.change(item, 0))?;
        if panics {
            resume_unwind(Box::new("poison"));
        }
        Ok(())
    }

    fn split(&mut self, item: &Item, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        let key = item.key();
        if key.part.is_some() {
            return outlet.send(self.change(item.clone(), 0));
        }
        for number in 1..=n_parts(self.salt, v_of(item)) {
            let part = self.change(item.clone(), number.into());
            let part = match key.page {
                None => part.with_page(number),
                Some(_) => part.with_part(number),
            };
            if self.does == Does::SplitSetAside && self.is_struck(&part, 4) {
                outlet.dead_letter(part, Self::odd());
                continue;
            }
            outlet.send(part)?;
            if self.does == Does::SplitPanic && self.is_struck(item, 4) {
                resume_unwind(Box::new("poison"));
            }
        }
        Ok(())
    }

    fn gather(&mut self, mut group: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        let whole = Item::new(Arc::clone(group[0].origin()));
        let whole = match group[0].key().page {
            Some(page) if self.by_page => whole.with_page(page),
            _ => whole,
        };
        if self.does == Does::GatherSetAside {
            let (struck, rest) = group
                .into_iter()
                .partition::<Vec<Item>, _>(|item| self.is_struck(item, 4));
            for item in struck {
                outlet.dead_letter(item, Self::odd());
            }
            group = rest;
        }
        if group.is_empty() {
            return Ok(());
        }
        let v: i64 = group.iter().map(v_of).sum();
        let whole = whole.with("v", v);
        if self.does == Does::GatherPanic && self.is_struck(&whole, 3) {
            resume_unwind(Box::new("poison"));
        }
        if self.does == Does::GatherBreaking
            && self.is_struck(&whole, 2)
            && self.world.is_first_attempt(&self.tag, &whole)
        {
            return Err(StageError::fatal("it broke", "try again"));
        }
        outlet.send(self.change(whole, 0))
    }
}

impl Stage for Work {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        if self.does.gathers() {
            return self.gather(batch, outlet);
        }
        for item in batch {
            if self.does.splits() {
                self.split(&item, outlet)?;
            } else {
                self.step(item, outlet)?;
            }
        }
        std::thread::yield_now();
        Ok(())
    }

    fn finish(&mut self, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        for item in std::mem::take(&mut self.held) {
            outlet.send(self.change(item, 0))?;
        }
        Ok(())
    }
}

/// Keeps what it is given, and acks it when its settings say.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeepConfig {
    acks: Acks,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Acks {
    Now,
    End,
    Finish,
}

impl SinkConfig for KeepConfig {
    const KIND: &'static str = "keep";
    const ABOUT: &'static str = "keeps items";
    const EXAMPLE: &'static str = "acks = 'now'";
    fn build(&self, resources: &Resources) -> Result<Box<dyn Sink>, FieldError> {
        Ok(Box::new(Keep {
            acks: self.acks,
            name: String::new(),
            deliveries: Vec::new(),
            ends: Vec::new(),
            world: world(resources),
        }))
    }
}

struct Keep {
    acks: Acks,
    name: String,
    deliveries: Vec<Delivery>,
    ends: Vec<Ended>,
    world: Arc<World>,
}

impl Keep {
    fn is_over(&self, uri: &str) -> bool {
        let ended = lock(&self.world.ended);
        ended
            .iter()
            .any(|(sink, known)| *sink == self.name && known == uri)
    }

    fn release(&mut self) {
        for delivery in self.deliveries.drain(..) {
            delivery.ack.durable();
        }
        for ended in self.ends.drain(..) {
            ended.ack.durable();
        }
    }
}

pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Integer(number) => number.to_string(),
        Value::Text(text) => text.to_string(),
        other => format!("{other:?}"),
    }
}

impl Sink for Keep {
    fn open<'a>(&'a mut self, input: &'a SinkInput) -> BoxFuture<'a, Result<(), StageError>> {
        self.name.clone_from(&input.node);
        Box::pin(async { Ok(()) })
    }

    fn store(&mut self, batch: Vec<Delivery>) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async move {
            for delivery in batch {
                let item = &delivery.item;
                if self.is_over(&item.origin().uri) {
                    let problem = format!("{} after its end in {}", item.label(), self.name);
                    lock(&self.world.problems).push(problem);
                }
                let fields = item.fields();
                let fields = fields.map(|(name, value)| (name.to_owned(), shown(value)));
                let row = (
                    self.name.clone(),
                    item.label().to_string(),
                    fields.collect(),
                );
                lock(&self.world.rows).push(row);
                if self.acks == Acks::Now {
                    delivery.ack.durable();
                } else {
                    self.deliveries.push(delivery);
                }
            }
            tokio::task::yield_now().await;
            Ok(())
        })
    }

    fn end_document(&mut self, ended: Ended) -> BoxFuture<'_, Result<(), StageError>> {
        let uri = ended.document.origin().uri.to_string();
        if ended.document.has_failed() {
            lock(&self.world.problems).push(format!("{uri} failed"));
        }
        lock(&self.world.ended).push((self.name.clone(), uri));
        self.ends.push(ended);
        if self.acks != Acks::Finish {
            self.release();
        }
        Box::pin(async { Ok(()) })
    }

    fn idle(&mut self) -> BoxFuture<'_, Result<(), StageError>> {
        self.release();
        Box::pin(async { Ok(()) })
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<(), StageError>> {
        self.release();
        Box::pin(async { Ok(()) })
    }
}
