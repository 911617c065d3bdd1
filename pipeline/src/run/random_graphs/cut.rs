//! The kind of stage that the diamonds by hand are made of.

use std::borrow::Cow;
use std::panic::resume_unwind;

use serde::Deserialize;

use crate::{
    Field, FieldError, FieldType, Fields, Item, ItemError, Outlet, Resources, Stage, StageConfig,
    StageError,
};

/// Cuts documents into so many pages, or pages into so many parts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CutConfig {
    tag: String,
    #[serde(default)]
    pages: u32,
    #[serde(default)]
    parts: u32,
    /// Makes one item of a page's parts.
    #[serde(default)]
    gathers: bool,
    /// The page that goes nowhere.
    #[serde(default)]
    drops: u32,
    /// Of so many pages only the last one goes on.
    #[serde(default)]
    keeps_one_in: u32,
    /// Of so many pages the last one is set aside.
    #[serde(default)]
    sets_aside_one_in: u32,
    #[serde(default)]
    sets_aside: u32,
    /// Holds items back to the end.
    #[serde(default)]
    is_late: bool,
    /// The node whose items it panics at.
    #[serde(default)]
    panics: Option<String>,
}

impl StageConfig for CutConfig {
    const KIND: &'static str = "cut";
    const ABOUT: &'static str = "cuts items into parts";
    const EXAMPLE: &'static str = "tag = 'a'";

    fn fields(&self) -> Fields {
        let made = Field {
            name: Cow::Owned(format!("m_{}", self.tag)),
            ty: FieldType::Integer,
        };
        let fields = Fields::default().adds([made]);
        if self.gathers {
            fields.many_to_one_page()
        } else {
            fields.one_to_many()
        }
    }

    fn build(&self, _: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        Ok(Box::new(Cut {
            config: self.clone(),
            held: Vec::new(),
        }))
    }
}

struct Cut {
    config: CutConfig,
    held: Vec<Item>,
}

impl Cut {
    fn cut(&self, item: &Item, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        let config = &self.config;
        for page in 1..=config.pages {
            outlet.send(item.clone().with_page(page))?;
        }
        for part in 1..=config.parts {
            outlet.send(item.clone().with_part(part))?;
        }
        if config.pages + config.parts == 0 {
            outlet.send(item.clone())?;
        }
        Ok(())
    }
}

impl Stage for Cut {
    fn process(&mut self, mut batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        if self.config.gathers {
            assert!(batch.len() > 1, "a group comes as one batch");
            let page = batch[0].key().page.expect("it is of a page");
            batch = vec![batch[0].clone().with_page(page)];
        }
        for mut item in batch {
            let page = item.key().page.unwrap_or(0);
            let is_last_of = |n: u32| page > 0 && n > 0 && page.is_multiple_of(n);
            let keeps_one_in = self.config.keeps_one_in;
            if page > 0 && page == self.config.drops
                || keeps_one_in > 0 && !is_last_of(keeps_one_in)
            {
                continue;
            }
            if page > 0 && page == self.config.sets_aside
                || is_last_of(self.config.sets_aside_one_in)
            {
                outlet.dead_letter(item, ItemError::new("cut", "it is odd"));
                continue;
            }
            let panics = self.config.panics.as_ref();
            if panics.is_some_and(|node| item.get(&format!("m_{node}")).is_some()) {
                resume_unwind(Box::new("poison"));
            }
            item.set(format!("m_{}", self.config.tag), 1_u32);
            if self.config.is_late {
                self.held.push(item);
            } else {
                self.cut(&item, outlet)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        std::mem::take(&mut self.held)
            .iter()
            .try_for_each(|item| self.cut(item, outlet))
    }
}
