//! Closures as stages: [`map`], [`flat_map`], [`filter`], [`batch_map`], [`gather`].

use std::fmt;
use std::sync::Arc;

use crate::batch::BatchPolicy;
use crate::error::{FieldError, ItemError, StageError};
use crate::fields::{Field, Fields};
use crate::item::Item;
use crate::registry::AnyStage;
use crate::resources::Resources;
use crate::stage::{Outlet, Stage};

/// How many items [`batch_map`] gets at once where the builder does not say.
const BATCH: BatchPolicy = BatchPolicy {
    max_items: 32,
    max_pixels: None,
    max_tokens: None,
    max_wait_ms: 20,
};

/// A stage without settings: a closure, or what [`from_stage`] makes.
///
/// Say what it reads and adds, and the graph check sees to it that the items
/// have those fields; fields that are added and not declared do not travel on.
/// A closure that declares neither [`reads`](Self::reads) nor
/// [`uses`](Self::uses) gets every field that reaches it, pixels too.
///
/// A closure runs on as many threads as its node has workers, so it is `Fn`;
/// what it panics at is set aside.
#[derive(Clone)]
#[must_use = "give it to `PipelineBuilder::stage`"]
pub struct StageFn {
    pub(super) kind: &'static str,
    fields: Fields,
    batch: BatchPolicy,
    pub(super) version: Option<String>,
    make: Arc<dyn Fn() -> Box<dyn Stage> + Send + Sync>,
}

/// A stage that makes one item of one.
///
/// ```
/// use pagemill_pipeline::{Field, Item, ItemError, map};
///
/// let shout = map(|item: Item| {
///     let text = item.text().ok_or_else(|| ItemError::missing("shout", "text"))?;
///     let loud = text.to_uppercase();
///     Ok(item.with("text", loud))
/// });
/// let shout = shout.reads([Field::TEXT]).replaces([Field::TEXT]);
/// # let _ = shout;
/// ```
pub fn map<F>(change: F) -> StageFn
where
    F: Fn(Item) -> Result<Item, ItemError> + Send + Sync + 'static,
{
    let work = move |batch: Vec<Item>, outlet: &mut Outlet<'_>| {
        outlet.each(batch, |item| {
            *item = change(item.clone())?;
            Ok(())
        })
    };
    StageFn::of("map", Fields::takes_all(), work)
}

/// A stage that makes any number of items of one. Give them keys of their own
/// with [`Item::with_page`] or [`Item::with_part`], and begin with a clone or
/// with [`Item::child`], so that they stay with their document.
pub fn flat_map<F, I>(split: F) -> StageFn
where
    F: Fn(Item) -> Result<I, ItemError> + Send + Sync + 'static,
    I: IntoIterator<Item = Item>,
{
    let work = move |batch: Vec<Item>, outlet: &mut Outlet<'_>| {
        for item in batch {
            match split(item.clone()) {
                Ok(items) => items.into_iter().try_for_each(|item| outlet.send(item))?,
                Err(error) => outlet.dead_letter(item, error),
            }
        }
        Ok(())
    };
    StageFn::of("flat_map", Fields::takes_all().one_to_many(), work)
}

/// A stage that lets an item pass if `keep` holds of it.
pub fn filter<F>(keep: F) -> StageFn
where
    F: Fn(&Item) -> bool + Send + Sync + 'static,
{
    let work = move |batch: Vec<Item>, outlet: &mut Outlet<'_>| {
        let mut kept = batch.into_iter().filter(|item| keep(item));
        kept.try_for_each(|item| outlet.send(item))
    };
    StageFn::of("filter", Fields::takes_all().one_to_many(), work)
}

/// A stage that works on a whole batch at once, such as a call of a model. It
/// gives the items back in any order, told by their keys; one that it does not
/// give back is set aside, and an error sets the whole batch aside.
///
/// A batch holds up to 32 items, unless the node's
/// [`batch`](crate::NodeBuilder::batch) says otherwise.
pub fn batch_map<F>(change: F) -> StageFn
where
    F: Fn(Vec<Item>) -> Result<Vec<Item>, ItemError> + Send + Sync + 'static,
{
    let work = move |mut batch: Vec<Item>, outlet: &mut Outlet<'_>| {
        let made = match change(batch.clone()) {
            Ok(made) => made,
            Err(error) => return set_all_aside(batch, &error, outlet),
        };
        for item in made {
            let of_key = batch.iter().position(|known| known.key() == item.key());
            if let Some(place) = of_key {
                batch.swap_remove(place);
                outlet.send(item)?;
            } else {
                let error = ItemError::new("map", "no item of the batch has its key")
                    .hint("make the items of those of the batch, one of each");
                outlet.dead_letter(item, error);
            }
        }
        let error = ItemError::new("map", "the closure did not give it back")
            .hint("give back an item of the same key for each of the batch");
        set_all_aside(batch, &error, outlet)
    };
    let stage = StageFn::of("batch_map", Fields::takes_all(), work);
    StageFn {
        batch: BATCH,
        ..stage
    }
}

/// A stage that makes one item of all those of a document, which come in order
/// of their keys and are held in memory until the last has come. Begin with
/// `Item::new(Arc::clone(items[0].origin()))` for an item of the whole document.
/// An error sets the whole of them aside, with one dead letter.
pub fn gather<F>(make: F) -> StageFn
where
    F: Fn(Vec<Item>) -> Result<Item, ItemError> + Send + Sync + 'static,
{
    let fields = Fields::takes_all().many_to_one();
    StageFn::of("gather", fields, of_many(make, |whole, _| whole))
}

/// The same with all items of each page.
pub fn gather_pages<F>(make: F) -> StageFn
where
    F: Fn(Vec<Item>) -> Result<Item, ItemError> + Send + Sync + 'static,
{
    let fields = Fields::takes_all().many_to_one_page();
    let place = |whole: Item, page: Option<u32>| match page {
        Some(page) => whole.with_page(page),
        None => whole,
    };
    StageFn::of("gather_pages", fields, of_many(make, place))
}

/// A stage of your own, without settings in TOML: `make` is called once for
/// each worker, and again after a panic.
pub fn from_stage<S, F>(fields: Fields, make: F) -> StageFn
where
    S: Stage + 'static,
    F: Fn() -> S + Send + Sync + 'static,
{
    StageFn::made_by("own", fields, move || Box::new(make()))
}

/// Makes one item of a group; `place` gives what stands for a group that could
/// not be made its page.
fn of_many(
    make: impl Fn(Vec<Item>) -> Result<Item, ItemError>,
    place: impl Fn(Item, Option<u32>) -> Item,
) -> impl Fn(Vec<Item>, &mut Outlet<'_>) -> Result<(), StageError> {
    move |group, outlet| {
        let Some(first) = group.first() else {
            return Ok(());
        };
        let mut whole = Item::new(Arc::clone(first.origin()));
        whole.token.clone_from(&first.token);
        let whole = place(whole, first.key().page);
        match make(group) {
            Ok(item) => outlet.send(item)?,
            Err(error) => outlet.dead_letter(whole, error),
        }
        Ok(())
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it ends a batch as a send does")]
fn set_all_aside(
    items: Vec<Item>,
    error: &ItemError,
    outlet: &mut Outlet<'_>,
) -> Result<(), StageError> {
    for item in items {
        outlet.dead_letter(item, error.clone());
    }
    Ok(())
}

impl StageFn {
    fn of<F>(kind: &'static str, fields: Fields, work: F) -> Self
    where
        F: Fn(Vec<Item>, &mut Outlet<'_>) -> Result<(), StageError> + Send + Sync + 'static,
    {
        let work = Arc::new(work);
        Self::made_by(kind, fields, move || Box::new(Closure(Arc::clone(&work))))
    }

    fn made_by(
        kind: &'static str,
        fields: Fields,
        make: impl Fn() -> Box<dyn Stage> + Send + Sync + 'static,
    ) -> Self {
        Self {
            kind,
            fields,
            batch: BatchPolicy::default(),
            version: None,
            make: Arc::new(make),
        }
    }

    /// Reads these; an input without one of them is an error when the pipeline is built.
    pub fn reads(mut self, fields: impl IntoIterator<Item = Field>) -> Self {
        self.fields.reads.extend(fields);
        self.fields.takes_all = false;
        self
    }

    /// Reads these where they are present.
    pub fn uses(mut self, fields: impl IntoIterator<Item = Field>) -> Self {
        self.fields = self.fields.uses(fields);
        self.fields.takes_all = false;
        self
    }

    /// Adds these, or gives them new values.
    pub fn adds(mut self, fields: impl IntoIterator<Item = Field>) -> Self {
        self.fields = self.fields.adds(fields);
        self
    }

    /// Gives fields that it reads new values; the same as [`adds`](Self::adds), said more clearly.
    pub fn replaces(self, fields: impl IntoIterator<Item = Field>) -> Self {
        self.adds(fields)
    }

    /// Takes these away.
    pub fn drops(mut self, fields: impl IntoIterator<Item = Field>) -> Self {
        self.fields = self.fields.drops(fields);
        self
    }

    /// Names what the closure does, for the fingerprint: change it whenever the
    /// closure comes to make other rows. A pipeline with a ledger asks for it,
    /// as it could not tell otherwise which documents to do again.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// What the fingerprint depends on, if the closure has a version.
    pub(super) fn row_settings(&self) -> Option<String> {
        let version = self.version.as_ref()?;
        Some(format!("version={version:?};{:?}", self.fields))
    }
}

impl fmt::Debug for StageFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut stage = f.debug_struct("StageFn");
        stage
            .field("kind", &self.kind)
            .field("fields", &self.fields);
        stage
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

impl AnyStage for StageFn {
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
    fn fields(&self) -> Fields {
        self.fields.clone()
    }
    fn batch(&self) -> BatchPolicy {
        self.batch
    }
    fn workers(&self) -> usize {
        1
    }
    fn is_closure(&self) -> bool {
        true
    }
    fn row_settings(&self) -> String {
        String::new() // A closure is identified by its version, which it may lack.
    }
    fn revision(&self, _: &Resources) -> String {
        String::new() // The version is a part of the settings' text.
    }
    fn build(&self, _: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        Ok((self.make)())
    }
}

/// What a closure of this module does with a batch.
struct Closure<F>(Arc<F>);

impl<F> Stage for Closure<F>
where
    F: Fn(Vec<Item>, &mut Outlet<'_>) -> Result<(), StageError> + Send + Sync,
{
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        (self.0)(batch, outlet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{StageOutput, run_stage};

    fn run(stage: &StageFn, texts: &[&str]) -> StageOutput {
        let mut built = stage
            .build(&Resources::default())
            .expect("it has no settings");
        let items = texts
            .iter()
            .enumerate()
            .map(|(number, text)| Item::of_text("a.txt", text).with_page(number as u32 + 1));
        run_stage(&mut *built, items)
    }

    fn texts(items: &[Item]) -> Vec<&str> {
        items.iter().filter_map(Item::text).collect()
    }

    fn odd(item: &Item) -> Result<&str, ItemError> {
        let text = item.text().filter(|text| *text != "odd");
        text.ok_or_else(|| ItemError::new("read", "it is odd"))
    }

    #[test]
    fn map_changes_each_item_or_sets_it_aside() {
        let shout = map(|item| {
            let loud = odd(&item)?.to_uppercase();
            Ok(item.with("text", loud))
        });
        let out = run(&shout, &["one", "odd", "two"]);
        assert_eq!(texts(&out.sent), ["ONE", "TWO"]);
        assert_eq!(out.dead[0].1, "cannot read `a.txt#2`: it is odd");
        assert_eq!(out.dead[0].0.text(), Some("odd"));
    }

    #[test]
    fn flat_map_makes_many_of_one() {
        let words = flat_map(|item: Item| {
            let words: Vec<String> = odd(&item)?.split(' ').map(str::to_owned).collect();
            let parts = (1..).zip(words);
            Ok(parts.map(move |(part, word)| item.child().with_part(part).with("text", word)))
        });
        let out = run(&words, &["the mill", "odd", "turns"]);
        assert_eq!(texts(&out.sent), ["the", "mill", "turns"]);
        assert_eq!(out.dead.len(), 1);
        assert_eq!(words.fields().cardinality().to_string(), "1:n");
    }

    #[test]
    fn filter_keeps_what_it_is_told() {
        let out = run(&filter(|item| odd(item).is_ok()), &["one", "odd"]);
        assert_eq!(texts(&out.sent), ["one"]);
        assert!(out.dead.is_empty());
    }

    #[test]
    fn a_batch_may_come_back_in_any_order_and_what_does_not_is_set_aside() {
        let turn = batch_map(|items| {
            let mut items: Vec<Item> = items.into_iter().filter(|i| odd(i).is_ok()).collect();
            items.reverse();
            items.push(Item::of_text("b.txt", "of nowhere"));
            Ok(items)
        });
        let out = run(&turn, &["one", "odd", "two"]);
        assert_eq!(texts(&out.sent), ["two", "one"]);
        let dead: Vec<&str> = out.dead.iter().map(|(_, error)| error.as_str()).collect();
        let expected = [
            "cannot map `b.txt`: no item of the batch has its key",
            "cannot map `a.txt#2`: the closure did not give it back",
        ];
        assert_eq!(dead, expected);
    }

    #[test]
    fn an_error_of_a_batch_sets_all_of_it_aside_and_one_of_a_group_the_whole() {
        let refuse = |_: Vec<Item>| Err(ItemError::new("embed", "the model is gone"));
        let out = run(&batch_map(refuse), &["one", "two"]);
        assert_eq!((out.sent.len(), out.dead.len()), (0, 2));
        let add = |_: Vec<Item>| Err(ItemError::new("add", "no"));
        let out = run(&gather(add), &["one", "two"]);
        assert_eq!(out.dead[0].1, "cannot add `a.txt`: no");
        assert_eq!(out.dead.len(), 1);
        let out = run(&gather_pages(add), &["one"]);
        assert_eq!(out.dead[0].1, "cannot add `a.txt#1`: no");
    }

    #[test]
    fn gather_makes_one_item_of_many() {
        let join = gather(|items| {
            let text = texts(&items).join(" ");
            Ok(Item::new(Arc::clone(items[0].origin())).with("text", text))
        });
        let out = run(&join, &["the", "mill"]);
        assert_eq!(texts(&out.sent), ["the mill"]);
        assert_eq!(out.sent[0].key().page, None);
    }

    #[test]
    fn a_closure_takes_all_fields_unless_it_says_which() {
        let pixels = |stage: &StageFn| stage.fields().looks_at("image", Field::IMAGE.ty);
        assert!(pixels(&map(Ok)));
        assert!(pixels(&map(Ok).adds([Field::TEXT])));
        assert!(!pixels(&map(Ok).reads([Field::TEXT])));
        assert!(!pixels(&map(Ok).uses([Field::TEXT])));
    }
}
