//! pagemill's sources and stages, one file or folder for each kind.
//!
//! In the order in which data flows: [`ReadFiles`] and [`Stdin`] bring documents
//! in, [`RenderPdf`] makes pages of PDFs and, after it, [`DecodeImage`] of pictures;
//! [`Resize`] and [`Thumbnail`] work on their pixels; [`ChunkText`] splits
//! their text, and [`EmbedTextConfig`] turns it into vectors; [`PrepareImage`] lays pixels out
//! for a visual encoder, and [`EmbedImage`] runs it; [`PoolVectors`] makes the
//! vectors of a page fewer, and [`Binarize`] makes bits of them. What writes about pages is in
//! [`generate`], and documents from strangers are parsed in the [`cage`].
//!
//! ```
//! use pagemill_pipeline::Registry;
//!
//! let registry = pagemill_stages::register(Registry::new());
//! assert!(registry.kinds().any(|(kind, _)| kind == "read_files"));
//! ```

// Settings.
mod names;

// From files to pages.
mod media;

mod read_files;

mod stdin;

pub mod cage;

pub mod render_pdf;

mod decode_image;

// Pages.
mod pixels;

mod resize;

mod thumbnail;

// From text to vectors.
mod models;

mod chunk_text;

mod embed_text;

// From pixels to vectors.
mod patches;

mod prepare_image;

mod embed_image;

// From pixels and prompts to text.
pub mod generate;

// Fewer vectors, and smaller ones.
mod vectors;

mod pool_vectors;

mod binarize;

#[doc(hidden)]
pub mod attacks;

#[doc(hidden)]
pub mod fuzzing;

#[cfg(test)]
mod testing;

use pagemill_pipeline::Registry;

use generate::{CaptionConfig, ClassifyConfig, ExtractConfig, GenerateConfig, TranscribeConfig};

pub use binarize::{Binarize, BinarizeConfig};
pub use chunk_text::{ChunkText, ChunkTextConfig};
pub use decode_image::{DecodeImage, DecodeImageConfig};
pub use embed_image::{EmbedImage, EmbedImageConfig};
pub use embed_text::{EmbedTextConfig, Role as TextRole};
pub use models::Output;
pub use patches::PreparedImage;
pub use pool_vectors::{PoolMethod, PoolVectors, PoolVectorsConfig};
pub use prepare_image::{PrepareImage, PrepareImageConfig};
pub use read_files::{ReadFiles, ReadFilesConfig};
pub use render_pdf::{RenderPdf, RenderPdfConfig};
pub use resize::{Resize, ResizeConfig};
pub use stdin::{AttributeType, LineFormat, Stdin, StdinConfig};
pub use thumbnail::{Thumbnail, ThumbnailConfig, ThumbnailFormat};

/// Adds the kinds of this crate.
#[must_use]
pub fn register(registry: Registry) -> Registry {
    registry
        .source::<ReadFilesConfig>()
        .source::<StdinConfig>()
        .stage::<RenderPdfConfig>()
        .stage::<DecodeImageConfig>()
        .stage::<ResizeConfig>()
        .stage::<ThumbnailConfig>()
        .stage::<ChunkTextConfig>()
        .stage::<EmbedTextConfig>()
        .stage::<PrepareImageConfig>()
        .stage::<EmbedImageConfig>()
        .stage::<PoolVectorsConfig>()
        .stage::<BinarizeConfig>()
        .stage::<GenerateConfig>()
        .stage::<TranscribeConfig>()
        .stage::<CaptionConfig>()
        .stage::<ClassifyConfig>()
        .stage::<ExtractConfig>()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use pagemill_pipeline::testing::run_stage;
    use pagemill_pipeline::{
        ConfigFile, Field, FieldError, Fields, Image, Item, Resources, Role, Sink, SinkConfig,
        Source, SourceConfig, Stage, StageConfig, VectorData, Vectors, Word,
    };

    use super::*;
    use crate::testing::with_tiny_model;

    /// A source whose items have all that any stage reads.
    #[derive(serde::Deserialize)]
    struct EverythingConfig {}

    impl SourceConfig for EverythingConfig {
        const KIND: &'static str = "everything";
        const ABOUT: &'static str = "";
        const EXAMPLE: &'static str = "";
        fn fields(&self) -> Fields {
            Fields::provides([
                Field::DOCUMENT,
                Field::IMAGE,
                Field::TEXT,
                Field::WORDS,
                Field::VECTORS,
            ])
        }
        fn build(&self, _: &Resources) -> Result<Box<dyn Source>, FieldError> {
            unreachable!("graphs are checked and not built")
        }
    }

    /// A sink that takes all.
    #[derive(serde::Deserialize)]
    struct AnythingConfig {}

    impl SinkConfig for AnythingConfig {
        const KIND: &'static str = "anything";
        const ABOUT: &'static str = "";
        const EXAMPLE: &'static str = "";
        fn build(&self, _: &Resources) -> Result<Box<dyn Sink>, FieldError> {
            unreachable!("graphs are checked and not built")
        }
    }

    fn parse(toml: &str) -> Result<ConfigFile, String> {
        let registry = register(Registry::new())
            .source::<EverythingConfig>()
            .sink::<AnythingConfig>();
        ConfigFile::parse(Path::new("t.toml"), toml, &[], &registry, &|_| None)
            .map_err(|error| error.to_string())
    }

    /// A pipeline with one node of this kind between the source and the sink.
    fn around(role: Role, kind: &str, settings: &str) -> String {
        let sink = "[p.sink.sink]\nkind = \"anything\"\ninput = \"node\"\n";
        if role == Role::Source {
            return format!("[p.source.node]\nkind = \"{kind}\"\n{settings}\n{sink}");
        }
        format!(
            "[p.source.files]\nkind = \"everything\"\n\
             [p.stage.node]\nkind = \"{kind}\"\ninput = \"files\"\n{settings}\n{sink}"
        )
    }

    fn everything(uri: &str) -> Item {
        Item::of_text(uri, "the mill turns")
            .with_page(1)
            .with("image", Image::new(vec![9; 12], 2, 2, None).unwrap())
            .with("words", Vec::<Word>::new())
            .with(
                "vectors",
                Vectors::new(VectorData::F32(vec![0.5; 24]), 4).unwrap(),
            )
    }

    /// Builds the kind's example and runs it.
    fn check_stage<C: StageConfig>() {
        let root = tempfile::tempdir().unwrap();
        let resources = with_tiny_model(root.path());
        let file = parse(&around(Role::Stage, C::KIND, C::EXAMPLE)).unwrap();
        let node = file.pipelines()[0]
            .nodes()
            .iter()
            .find(|node| node.name() == "node");
        let mut stage: Box<dyn Stage> = node
            .unwrap()
            .settings::<C>()
            .unwrap()
            .build(&resources)
            .unwrap();
        if C::KIND == RenderPdfConfig::KIND {
            return; // Its process is the program itself; its own tests run it.
        }
        let out = run_stage(&mut *stage, []);
        assert!(out.sent.is_empty() && out.dead.is_empty() && out.error.is_none());
        let items = [everything("a.pdf"), everything("b.pdf")];
        let keys = [items[0].key(), items[1].key()];
        let out = run_stage(&mut *stage, items);
        assert!(out.dead.is_empty() && out.error.is_none(), "{out:?}");
        for (item, key) in out.sent.iter().zip(keys) {
            assert_eq!(
                (item.key().document, item.key().page),
                (key.document, key.page)
            );
        }
        assert_eq!(out.sent.len(), 2, "{}", C::KIND);
    }

    #[test]
    fn every_kind_of_stage_builds_its_example_and_keeps_keys() {
        check_stage::<RenderPdfConfig>();
        check_stage::<DecodeImageConfig>();
        check_stage::<ResizeConfig>();
        check_stage::<ThumbnailConfig>();
        check_stage::<ChunkTextConfig>();
        check_stage::<EmbedTextConfig>();
        check_stage::<GenerateConfig>();
        check_stage::<TranscribeConfig>();
        check_stage::<CaptionConfig>();
        check_stage::<ClassifyConfig>();
        check_stage::<ExtractConfig>();
        check_stage::<PrepareImageConfig>();
        check_stage::<EmbedImageConfig>();
        check_stage::<PoolVectorsConfig>();
        check_stage::<BinarizeConfig>();
        let registry = register(Registry::new());
        let stages = registry
            .kinds()
            .filter(|(_, kind)| kind.role == Role::Stage);
        assert_eq!(stages.count(), 15, "a kind is not checked");
    }

    /// Builds the kind's example.
    fn check_source<C: SourceConfig>() {
        let file = parse(&around(Role::Source, C::KIND, C::EXAMPLE)).unwrap();
        let config = file.pipelines()[0].nodes()[0].settings::<C>().unwrap();
        assert!(config.build(&Resources::default()).is_ok(), "{}", C::KIND);
        assert!(!config.is_continuous());
    }

    #[test]
    fn every_kind_of_source_builds_its_example() {
        check_source::<ReadFilesConfig>();
        check_source::<StdinConfig>();
        let registry = register(Registry::new());
        let sources = registry
            .kinds()
            .filter(|(_, kind)| kind.role == Role::Source);
        assert_eq!(sources.count(), 2, "a kind is not checked");
    }

    #[test]
    fn every_kind_refuses_a_setting_that_it_does_not_know() {
        for (kind, about) in register(Registry::new()).kinds() {
            let settings = format!("{}\nsettign = 1", about.example);
            let error = parse(&around(about.role, kind, &settings)).err().unwrap();
            assert!(error.contains("settign"), "{kind}: {error}");
            assert!(!about.about.is_empty() && !about.about.contains('\n'));
        }
    }

    #[test]
    fn pdfs_and_pictures_flow_through_one_row_of_stages() {
        let file = parse(
            "[p.source.files]\nkind = \"read_files\"\npath = \".\"\n\
             [p.stage.render]\nkind = \"render_pdf\"\ninput = \"files\"\n\
             [p.stage.decode]\nkind = \"decode_image\"\ninput = \"render\"\n\
             [p.stage.thumbnails]\nkind = \"thumbnail\"\ninput = \"decode\"\n\
             [p.stage.chunks]\nkind = \"chunk_text\"\ninput = \"thumbnails\"\n\
             [p.sink.table]\nkind = \"anything\"\ninput = \"chunks\"\n",
        )
        .unwrap();
        let nodes = file.pipelines()[0].nodes();
        let carried = |name| {
            let node = nodes.iter().find(|node| node.name() == name).unwrap();
            node.carried()
        };
        // Rendered pages pass `decode` on their way, pictures `render`.
        for field in ["document", "image", "text", "page_count", "title"] {
            assert!(carried("decode").contains(&field), "{field}");
        }
        assert!(!carried("thumbnails").contains(&"document"));
        assert!(!carried("chunks").contains(&"image"));
        assert!(carried("table").contains(&"thumbnail"));
    }

    #[test]
    fn text_from_standard_input_is_carried_past_the_stages_that_read_documents() {
        let file = parse(
            "[p.source.lines]\nkind = \"stdin\"\ntext = true\nfields = { title = \"text\" }\n\
             [p.stage.render]\nkind = \"render_pdf\"\ninput = \"lines\"\n\
             [p.stage.decode]\nkind = \"decode_image\"\ninput = \"render\"\n\
             [p.stage.chunks]\nkind = \"chunk_text\"\ninput = \"decode\"\n\
             [p.sink.table]\nkind = \"anything\"\ninput = \"chunks\"\n",
        )
        .unwrap();
        let nodes = file.pipelines()[0].nodes();
        for (name, fields) in [
            ("render", &["document", "text", "title"][..]),
            ("decode", &["document", "text", "title"]),
            ("chunks", &["text", "title"]),
        ] {
            let node = nodes.iter().find(|node| node.name() == name).unwrap();
            let carried = node.carried();
            for field in fields {
                assert!(carried.contains(field), "{name}: {carried:?}");
            }
            // No stage behind them looks at pixels.
            assert!(!carried.contains(&"image"), "{name}: {carried:?}");
        }
    }
}
