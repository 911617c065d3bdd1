//! Defines the reasons for which a request cannot be answered.

use std::path::PathBuf;

/// What keeps a [`Generator`](crate::Generator) from answering one request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateProblem {
    /// The cache is too small for this request even when it is alone.
    #[error(
        "its {n_tokens} tokens need {needed_bytes} bytes of cache, and there are {available_bytes}"
    )]
    TooLarge {
        /// Prompt and answer together.
        n_tokens: usize,
        /// What their keys and values take.
        needed_bytes: usize,
        /// What the cache may take.
        available_bytes: usize,
    },

    /// The prompt leaves no room for an answer.
    #[error("its prompt has {n_tokens} tokens, and the context has room for {max_context}")]
    TooLong {
        /// The prompt's.
        n_tokens: usize,
        /// Prompt and answer together.
        max_context: usize,
    },

    /// The request has another number of images than its messages name.
    #[error("it has {n_images} images, and its messages name {n_parts}")]
    OtherImages {
        /// Images given.
        n_images: usize,
        /// Image parts of the messages.
        n_parts: usize,
    },

    /// The chat template puts another number of images into the prompt than the messages name.
    #[error("the chat template makes {n_found} places for {n_images} images: {}", path.display())]
    OtherPlaces {
        /// Places in the prompt.
        n_found: usize,
        /// Images given.
        n_images: usize,
        /// The template's file.
        path: PathBuf,
    },

    /// An image was prepared for another model.
    #[error("image {index} was prepared for another model")]
    ForeignImage {
        /// Its place in the request, from 0.
        index: usize,
    },

    /// A value of the request makes no sense.
    #[error("`{field}` {problem}")]
    InvalidRequest {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },

    /// The chat template is malformed, or refuses the messages.
    #[error("the chat template fails ({problem}): {}", path.display())]
    Template {
        /// What the template engine said, with the line.
        problem: String,
        /// The template's file.
        path: PathBuf,
    },

    /// No text could be held to this constraint.
    #[error("the constraint cannot be met: {problem}")]
    Constraint {
        /// What it asks for.
        problem: String,
    },

    /// The network gave scores with NaN or an infinity.
    #[error("the model gave scores that are not finite after {n_tokens} tokens")]
    NotFinite {
        /// Tokens of the answer so far.
        n_tokens: usize,
    },

    /// A tensor operation failed while this request ran.
    #[error("computing the answer failed ({problem})")]
    Compute {
        /// What candle said.
        problem: String,
    },
}

impl GenerateProblem {
    /// What to do about it, as one sentence without a full stop.
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::TooLarge { needed_bytes, .. } => format!(
                "raise `cache_mb` to {}, or lower `max_new_tokens` or the images' tokens",
                needed_bytes.div_ceil(1 << 20)
            ),
            Self::TooLong { .. } => {
                "shorten the text, lower the images' tokens, or raise `max_context` if it was \
                 lowered"
                    .into()
            }
            Self::OtherImages { .. } => "give one image for each image part, in order".into(),
            Self::OtherPlaces { .. } => {
                "use the chat template of the model's own repository".into()
            }
            Self::ForeignImage { .. } => {
                "prepare images with the processor of the model that reads them".into()
            }
            Self::InvalidRequest { field, .. } => format!("change `{field}`"),
            Self::Template { .. } => {
                "fetch the file again, or write the messages as the template wants them".into()
            }
            Self::Constraint { .. } => {
                "simplify the schema, or leave out what is named and check the answer later".into()
            }
            Self::NotFinite { .. } => {
                "set the item aside; if every one fails, the weights are damaged or need `bf16` \
                 or `f32`"
                    .into()
            }
            Self::Compute { .. } => {
                "if the device ran out of memory, lower `cache_mb` or `max_batch`; otherwise \
                 report this"
                    .into()
            }
        }
    }
}
