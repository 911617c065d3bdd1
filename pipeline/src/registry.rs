//! The kinds that a configuration may name.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::IntoDeserializer;
use toml::Spanned;
use toml::de::DeTable;

use crate::batch::BatchPolicy;
use crate::error::FieldError;
use crate::fields::Fields;
use crate::metrics::Role;
use crate::resources::Resources;
use crate::sink::{Sink, SinkConfig, SinkPlace};
use crate::source::{Source, SourceConfig};
use crate::stage::{Stage, StageConfig};

/// Every kind of source, stage and sink, by the name that TOML gives it.
///
/// Each crate registers its kinds with one line each; a program adds its own
/// the same way.
#[derive(Clone, Default)]
pub struct Registry {
    kinds: BTreeMap<&'static str, Kind>,
}

/// What the registry knows of one kind.
#[derive(Clone)]
pub struct Kind {
    /// Source, stage or sink.
    pub role: Role,
    /// One line on what it does.
    pub about: &'static str,
    /// Settings that build, as TOML.
    pub example: &'static str,
    /// Settings that hold a path: `~` at the start of one is the home folder.
    pub paths: &'static [&'static str],
    parse: fn(Spanned<DeTable<'_>>) -> Result<Settings, toml::de::Error>,
}

impl Registry {
    /// A registry without kinds.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a kind of source.
    #[must_use]
    pub fn source<C: SourceConfig>(self) -> Self {
        let kind = Kind {
            role: Role::Source,
            about: C::ABOUT,
            example: C::EXAMPLE,
            paths: C::PATHS,
            parse: |table| {
                Ok(Settings::Source(Arc::new(C::deserialize(
                    table.into_deserializer(),
                )?)))
            },
        };
        self.with(C::KIND, kind)
    }

    /// Adds a kind of stage.
    #[must_use]
    pub fn stage<C: StageConfig>(self) -> Self {
        let kind = Kind {
            role: Role::Stage,
            about: C::ABOUT,
            example: C::EXAMPLE,
            paths: C::PATHS,
            parse: |table| {
                Ok(Settings::Stage(Arc::new(C::deserialize(
                    table.into_deserializer(),
                )?)))
            },
        };
        self.with(C::KIND, kind)
    }

    /// Adds a kind of sink.
    #[must_use]
    pub fn sink<C: SinkConfig>(self) -> Self {
        let kind = Kind {
            role: Role::Sink,
            about: C::ABOUT,
            example: C::EXAMPLE,
            paths: C::PATHS,
            parse: |table| {
                Ok(Settings::Sink(Arc::new(C::deserialize(
                    table.into_deserializer(),
                )?)))
            },
        };
        self.with(C::KIND, kind)
    }

    fn with(mut self, name: &'static str, kind: Kind) -> Self {
        self.kinds.insert(name, kind);
        self
    }

    /// The kinds, in order of name.
    pub fn kinds(&self) -> impl Iterator<Item = (&'static str, &Kind)> {
        self.kinds.iter().map(|(name, kind)| (*name, kind))
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Kind> {
        self.kinds.get(name)
    }
}

impl Kind {
    pub(crate) fn parse(&self, table: Spanned<DeTable<'_>>) -> Result<Settings, toml::de::Error> {
        (self.parse)(table)
    }
}

/// The settings of a node, whatever its kind.
#[derive(Clone)]
pub(crate) enum Settings {
    Source(Arc<dyn AnySource>),
    Stage(Arc<dyn AnyStage>),
    Sink(Arc<dyn AnySink>),
}

impl Settings {
    pub(crate) fn fields(&self) -> Fields {
        match self {
            Self::Source(config) => config.fields(),
            Self::Stage(config) => config.fields(),
            Self::Sink(config) => config.fields(),
        }
    }

    pub(crate) fn downcast<C: 'static>(&self) -> Option<&C> {
        let any: &dyn std::any::Any = match self {
            Self::Source(config) => config.as_any(),
            Self::Stage(config) => config.as_any(),
            Self::Sink(config) => config.as_any(),
        };
        any.downcast_ref()
    }

    /// Whether it can be built.
    pub(crate) fn try_build(&self, resources: &Resources) -> Result<(), FieldError> {
        match self {
            Self::Source(config) => config.build(resources).map(drop),
            Self::Stage(config) => config.build(resources).map(drop),
            Self::Sink(config) => config.build(resources).map(drop),
        }
    }

    /// What else than the settings the rows depend on.
    pub(crate) fn revision(&self, resources: &Resources) -> String {
        match self {
            Self::Stage(config) => config.revision(resources),
            Self::Source(_) | Self::Sink(_) => String::new(),
        }
    }

    /// Whether it is a closure, of which the declared fields do not say all.
    pub(crate) fn is_closure(&self) -> bool {
        matches!(self, Self::Stage(config) if config.is_closure())
    }

    /// The settings that rows depend on, as text.
    pub(crate) fn row_settings(&self) -> String {
        match self {
            Self::Source(_) => String::new(),
            Self::Stage(config) => config.row_settings(),
            Self::Sink(config) => config.row_settings(),
        }
    }

    /// Where a sink's rows are.
    pub(crate) fn sink_place(&self, pipeline: &str) -> Option<SinkPlace> {
        match self {
            Self::Sink(config) => config.place(pipeline),
            Self::Source(_) | Self::Stage(_) => None,
        }
    }

    /// Where a source's documents come from.
    pub(crate) fn source_place(&self) -> Option<String> {
        match self {
            Self::Source(config) => config.place(),
            Self::Stage(_) | Self::Sink(_) => None,
        }
    }

    pub(crate) fn is_continuous(&self) -> bool {
        matches!(self, Self::Source(config) if config.is_continuous())
    }

    /// How the kind wants its items batched where the file does not say.
    pub(crate) fn batch(&self) -> BatchPolicy {
        match self {
            Self::Source(_) => BatchPolicy::default(),
            Self::Stage(config) => config.batch(),
            Self::Sink(_) => BatchPolicy::of_items(256, 0),
        }
    }

    /// On how many threads the kind works where the file does not say.
    pub(crate) fn workers(&self) -> usize {
        match self {
            Self::Stage(config) => config.workers(),
            Self::Source(_) | Self::Sink(_) => 1,
        }
    }
}

pub(crate) trait AnySource: Send + Sync {
    fn as_any(&self) -> &dyn std::any::Any;
    fn fields(&self) -> Fields;
    fn is_continuous(&self) -> bool;
    fn place(&self) -> Option<String> {
        None
    }
    fn build(&self, resources: &Resources) -> Result<Box<dyn Source>, FieldError>;
}

impl<C: SourceConfig> AnySource for C {
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
    fn fields(&self) -> Fields {
        SourceConfig::fields(self)
    }
    fn is_continuous(&self) -> bool {
        SourceConfig::is_continuous(self)
    }
    fn place(&self) -> Option<String> {
        SourceConfig::place(self)
    }
    fn build(&self, resources: &Resources) -> Result<Box<dyn Source>, FieldError> {
        SourceConfig::build(self, resources)
    }
}

pub(crate) trait AnyStage: Send + Sync {
    fn as_any(&self) -> &dyn std::any::Any;
    fn fields(&self) -> Fields;
    fn batch(&self) -> BatchPolicy;
    fn workers(&self) -> usize;
    fn row_settings(&self) -> String;
    fn revision(&self, resources: &Resources) -> String;
    /// Whether it may give items other keys, and change fields that it does not name.
    fn is_closure(&self) -> bool {
        false
    }
    fn build(&self, resources: &Resources) -> Result<Box<dyn Stage>, FieldError>;
}

impl<C: StageConfig> AnyStage for C {
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
    fn fields(&self) -> Fields {
        StageConfig::fields(self)
    }
    fn batch(&self) -> BatchPolicy {
        StageConfig::batch(self)
    }
    fn workers(&self) -> usize {
        StageConfig::workers(self)
    }
    fn row_settings(&self) -> String {
        StageConfig::row_settings(self)
    }
    fn revision(&self, resources: &Resources) -> String {
        StageConfig::revision(self, resources)
    }
    fn build(&self, resources: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        StageConfig::build(self, resources)
    }
}

pub(crate) trait AnySink: Send + Sync {
    fn as_any(&self) -> &dyn std::any::Any;
    fn fields(&self) -> Fields;
    fn place(&self, _pipeline: &str) -> Option<SinkPlace> {
        None
    }
    fn row_settings(&self) -> String {
        String::new()
    }
    fn build(&self, resources: &Resources) -> Result<Box<dyn Sink>, FieldError>;
}

impl<C: SinkConfig> AnySink for C {
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
    fn fields(&self) -> Fields {
        SinkConfig::fields(self)
    }
    fn place(&self, pipeline: &str) -> Option<SinkPlace> {
        SinkConfig::place(self, pipeline)
    }
    fn row_settings(&self) -> String {
        SinkConfig::row_settings(self)
    }
    fn build(&self, resources: &Resources) -> Result<Box<dyn Sink>, FieldError> {
        SinkConfig::build(self, resources)
    }
}
