//! A source and stages with a step before and after all that they do.

use std::panic::resume_unwind;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde::Deserialize;

use super::{World, lock};
use crate::{
    Field, FieldError, FieldType, Fields, Item, ItemError, Outlet, PageCount, Provenance,
    Resources, Source, SourceConfig, SourceOutlet, Stage, StageConfig, StageError,
};

/// What a [`Hook`](super::Hook) has a stage do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Pass,
    SetAside,
    Break,
    Panic,
}

pub(super) fn world(resources: &Resources) -> Arc<World> {
    let world = resources.get::<Arc<World>>("");
    Arc::clone(&world.expect("every test sets it"))
}

/// The URI of the document that stands `number`-th.
pub(crate) fn uri(number: u32) -> String {
    format!("d{number:03}")
}

/// How many pages it has.
pub(crate) fn n_pages(number: u32) -> u32 {
    1 + number % 4
}

/// Its rows in an undisturbed table, with the marks that the stages leave.
pub(crate) fn expected_rows(number: u32, version: u32, n_parts: u32, marks: &str) -> Vec<String> {
    let pages = 1..=n_pages(number);
    let parts = pages.flat_map(|page| (1..=n_parts).map(move |part| (page, part)));
    let label = |(page, part)| match n_parts {
        1 => format!("{}#{page}", uri(number)),
        _ => format!("{}#{page}.{part}", uri(number)),
    };
    parts
        .map(|place| format!("{} version {version} {marks}", label(place)))
        .collect()
}

/// Sends documents `from..to`, all of one version.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PapersConfig {
    #[serde(default)]
    from: u32,
    to: u32,
    #[serde(default)]
    version: u32,
    /// Sends this version right after that one.
    #[serde(default)]
    then_version: Option<u32>,
    /// Tells versions by their state, without reading them.
    #[serde(default)]
    has_states: bool,
    /// Removes these.
    #[serde(default)]
    removes: Vec<u32>,
    /// Is not what the next run sends: a pipe, say.
    #[serde(default)]
    is_once_only: bool,
    /// Sends until an edge is full, and gives that document up.
    #[serde(default)]
    is_hasty: bool,
}

impl SourceConfig for PapersConfig {
    const KIND: &'static str = "papers";
    const ABOUT: &'static str = "sends documents";
    const EXAMPLE: &'static str = "to = 3";
    fn fields(&self) -> Fields {
        Fields::provides([Field::TEXT, Field::new("number", FieldType::Integer)])
    }
    fn place(&self) -> Option<String> {
        Some("papers".into())
    }
    fn build(&self, resources: &Resources) -> Result<Box<dyn Source>, FieldError> {
        Ok(Box::new(Papers {
            config: self.clone(),
            world: world(resources),
        }))
    }
}

struct Papers {
    config: PapersConfig,
    world: Arc<World>,
}

impl Papers {
    async fn send(
        &self,
        number: u32,
        version: u32,
        outlet: &SourceOutlet,
    ) -> Result<(), StageError> {
        let state = self.config.has_states.then(|| format!("state {version}"));
        if let Some(state) = &state
            && outlet.is_done(&uri(number), state)?
        {
            return Ok(());
        }
        self.world.faults.cross("source: before a send")?;
        let item = Item::of_text(uri(number), &format!("version {version}")).with("number", number);
        let provenance = Provenance {
            state,
            input: Some(format!("input {number}")),
        };
        outlet.send_from(item, provenance).await?;
        self.world.faults.cross("source: after a send")
    }
}

impl Source for Papers {
    fn sends_again(&self) -> bool {
        !self.config.is_once_only
    }

    fn run(self: Box<Self>, outlet: SourceOutlet) -> BoxFuture<'static, Result<(), StageError>> {
        Box::pin(async move {
            let known = outlet.known()?.into_iter().map(|known| known.uri);
            lock(&self.world.known).extend(known);
            let config = &self.config;
            for number in (config.from..).take_while(|_| config.is_hasty) {
                let item = Item::of_text(uri(number), "version 0").with("number", number);
                let Some(sent) = outlet.send(item).now_or_never() else {
                    lock(&self.world.known).push(uri(number));
                    return Ok(());
                };
                sent?;
            }
            for number in config.from..config.to {
                if outlet.is_draining() {
                    break;
                }
                self.send(number, config.version, &outlet).await?;
                if let Some(version) = config.then_version {
                    self.send(number, version, &outlet).await?;
                }
            }
            for number in &config.removes {
                outlet.remove(&uri(*number)).await?;
            }
            Ok(())
        })
    }
}

/// Makes pages of documents, each of so many parts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PagesConfig {
    #[serde(default = "one")]
    parts: u32,
    /// Of each document; by its number where this is left out.
    #[serde(default)]
    n_pages: Option<u32>,
    /// Makes pages that are durable already, too.
    #[serde(default)]
    is_stubborn: bool,
}

fn one() -> u32 {
    1
}

impl StageConfig for PagesConfig {
    const KIND: &'static str = "pages";
    const ABOUT: &'static str = "makes pages";
    const EXAMPLE: &'static str = "parts = 1";
    fn fields(&self) -> Fields {
        let number = Field::new("number", FieldType::Integer);
        Fields::reads([Field::TEXT, number]).one_to_many()
    }
    fn build(&self, resources: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        Ok(Box::new(Pages {
            config: self.clone(),
            world: world(resources),
        }))
    }
}

struct Pages {
    config: PagesConfig,
    world: Arc<World>,
}

impl Pages {
    fn make(&self, item: &Item, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        let uri = &item.origin().uri;
        let number: u32 = uri[1..].parse().expect("its number");
        let stored = outlet.stored_pages(item);
        let n_pages = self.config.n_pages.unwrap_or(n_pages(number));
        outlet.expect_pages(item, n_pages);
        for page in 1..=n_pages {
            if !self.config.is_stubborn && stored.contains(&page) {
                continue;
            }
            if outlet.leaves_unfinished(item) {
                return Ok(());
            }
            lock(&self.world.made).push((uri.to_string(), page));
            for part in 1..=self.config.parts {
                self.world.faults.cross("pages: before a send")?;
                let made = item.clone().with_page(page);
                let made = match self.config.parts {
                    1 => made,
                    _ => made.with_part(part),
                };
                if (self.world.hook)("pages", &made.label().to_string()) == Act::Panic {
                    resume_unwind(Box::new("poison"));
                }
                outlet.send(made)?;
            }
        }
        self.world.faults.cross("pages: after the last send")
    }
}

impl Stage for Pages {
    fn start(&mut self) -> Result<(), StageError> {
        self.world.faults.cross("pages: start")
    }

    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        self.world.faults.cross("pages: before a batch")?;
        batch.iter().try_for_each(|item| self.make(item, outlet))
    }

    fn finish(&mut self, _: &mut Outlet<'_>) -> Result<(), StageError> {
        self.world.faults.cross("pages: finish")
    }

    fn count_pages(&mut self, document: &Item) -> Result<PageCount, StageError> {
        let uri = &document.origin().uri;
        Ok(match (self.world.hook)("count", uri) {
            Act::Pass => PageCount::Pages(n_pages(uri[1..].parse().expect("its number"))),
            Act::SetAside => PageCount::Unreadable(ItemError::new("open", "it is odd")),
            Act::Break => return Err(StageError::fatal("the pen broke", "take another")),
            Act::Panic => resume_unwind(Box::new("poison")),
        })
    }
}

/// Leaves its mark on each item, unless the test's hook says otherwise.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MarkConfig {
    tag: String,
}

impl StageConfig for MarkConfig {
    const KIND: &'static str = "mark";
    const ABOUT: &'static str = "leaves a mark";
    const EXAMPLE: &'static str = "tag = 'a'";
    fn fields(&self) -> Fields {
        let mark = Field {
            name: format!("m_{}", self.tag).into(),
            ty: FieldType::Integer,
        };
        Fields::default().adds([mark])
    }
    fn build(&self, resources: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        Ok(Box::new(Mark {
            tag: self.tag.clone(),
            world: world(resources),
        }))
    }
}

struct Mark {
    tag: String,
    world: Arc<World>,
}

impl Stage for Mark {
    fn start(&mut self) -> Result<(), StageError> {
        self.world.faults.cross("mark: start")
    }

    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        self.world.faults.cross("mark: before a batch")?;
        for mut item in batch {
            match (self.world.hook)(&self.tag, &item.label().to_string()) {
                Act::Pass => {
                    item.set(format!("m_{}", self.tag), 1_u32);
                    outlet.send(item)?;
                }
                Act::SetAside => outlet.dead_letter(item, ItemError::new("mark", "it is odd")),
                Act::Break => return Err(StageError::fatal("the pen broke", "take another")),
                Act::Panic => resume_unwind(Box::new("poison")),
            }
            self.world.faults.cross("mark: after an item")?;
        }
        Ok(())
    }

    fn finish(&mut self, _: &mut Outlet<'_>) -> Result<(), StageError> {
        self.world.faults.cross("mark: finish")
    }
}

/// Cuts each item into parts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SplitConfig {
    parts: u32,
}

impl StageConfig for SplitConfig {
    const KIND: &'static str = "split";
    const ABOUT: &'static str = "cuts items into parts";
    const EXAMPLE: &'static str = "parts = 2";
    fn fields(&self) -> Fields {
        Fields::reads([Field::TEXT])
            .replaces([Field::TEXT])
            .one_to_many()
    }
    fn build(&self, _: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        Ok(Box::new(Split { parts: self.parts }))
    }
}

struct Split {
    parts: u32,
}

impl Stage for Split {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        for item in batch {
            let text = item.text().unwrap_or_default().to_owned();
            for part in 1..=self.parts {
                let text = format!("{text} part {part} of {}", self.parts);
                outlet.send(item.clone().with_part(part).with("text", text))?;
            }
        }
        Ok(())
    }
}

/// Sends each item on, and a document of its own with it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AttachConfig {}

impl StageConfig for AttachConfig {
    const KIND: &'static str = "attach";
    const ABOUT: &'static str = "sends documents of its own";
    const EXAMPLE: &'static str = "";
    fn fields(&self) -> Fields {
        Fields::reads([Field::TEXT]).one_to_many()
    }
    fn build(&self, _: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        Ok(Box::new(Attach {}))
    }
}

struct Attach {}

impl Stage for Attach {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        for item in batch {
            let attached = format!("{}-attached", item.origin().uri);
            outlet.send(Item::of_text(attached, "version 0"))?;
            outlet.send(item)?;
        }
        Ok(())
    }
}

/// Changes the fields of each item.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EditConfig {
    /// Comes after the text.
    #[serde(default)]
    suffix: String,
    /// A field that is taken away.
    #[serde(default)]
    drops: Option<String>,
    /// Lets later pages get lost, and does not say so.
    #[serde(default)]
    last_page: Option<u32>,
}

impl StageConfig for EditConfig {
    const KIND: &'static str = "edit";
    const ABOUT: &'static str = "changes fields";
    const EXAMPLE: &'static str = "suffix = '!'";
    fn fields(&self) -> Fields {
        let drops = self.drops.iter().map(|name| Field {
            name: name.clone().into(),
            ty: FieldType::Text,
        });
        let fields = Fields::default().drops(drops);
        if self.suffix.is_empty() {
            return fields;
        }
        fields.also_reads([Field::TEXT]).replaces([Field::TEXT])
    }
    fn build(&self, _: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        Ok(Box::new(Edit(self.clone())))
    }
}

struct Edit(EditConfig);

impl Stage for Edit {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        for mut item in batch {
            if item.key().page > self.0.last_page.or(item.key().page) {
                continue;
            }
            if !self.0.suffix.is_empty() {
                let text = item.text().unwrap_or_default().to_owned() + &self.0.suffix;
                item.set("text", text);
            }
            if let Some(name) = &self.0.drops {
                item.remove(name);
            }
            outlet.send(item)?;
        }
        Ok(())
    }
}

/// Binds all pages of a document into one item.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BookConfig {}

impl StageConfig for BookConfig {
    const KIND: &'static str = "book";
    const ABOUT: &'static str = "binds pages";
    const EXAMPLE: &'static str = "";
    fn fields(&self) -> Fields {
        let n_bound = Field::new("n_bound", FieldType::Integer);
        Fields::default().adds([n_bound]).many_to_one()
    }
    fn build(&self, resources: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        Ok(Box::new(Book {
            world: world(resources),
        }))
    }
}

struct Book {
    world: Arc<World>,
}

impl Stage for Book {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        let book = Item::new(Arc::clone(batch[0].origin()));
        let n_bound = u32::try_from(batch.len()).expect("few pages");
        match (self.world.hook)("book", &book.label().to_string()) {
            Act::Pass => outlet.send(book.with("n_bound", n_bound)),
            Act::SetAside => {
                let odd = || ItemError::new("bind", "it is odd");
                for item in batch {
                    outlet.dead_letter(item, odd());
                }
                Ok(())
            }
            Act::Break => Err(StageError::fatal("the thread broke", "take another")),
            Act::Panic => resume_unwind(Box::new("poison")),
        }
    }
}
