//! From a conversation to the tokens of a prompt.

use super::generator::Generator;
use super::problem::GenerateProblem;
use super::request::{GenerateRequest, Part};
use crate::error::ModelError;
use crate::qwen::Prompt;

impl Generator {
    /// The prompt of a request: text as ids, images as places.
    pub(super) fn prompt(&self, request: &GenerateRequest) -> Result<Prompt, ModelError> {
        let parts = request.messages.iter().flat_map(|message| &message.parts);
        let n_parts = parts.filter(|part| **part == Part::Image).count();
        let n_images = request.images.len();
        if n_parts != n_images {
            return Err(GenerateProblem::OtherImages { n_images, n_parts }.into());
        }
        self.check_images(request)?;
        let text = self.template.render(&request.messages)?;
        let texts: Vec<&str> = match &self.image_token {
            Some(token) => text.split(token.as_str()).collect(),
            None => vec![text.as_str()],
        };
        if texts.len() != n_images + 1 {
            return Err(GenerateProblem::OtherPlaces {
                n_found: texts.len() - 1,
                n_images,
                path: self.template.path().to_owned(),
            }
            .into());
        }
        let mut prompt = Prompt::default();
        let mut images = request.images.iter();
        for text in texts {
            if !text.is_empty() {
                prompt = prompt.text(&self.vocabulary.encode(text)?);
            }
            if let Some(image) = images.next() {
                prompt = prompt.image(image.grid);
            }
        }
        if prompt.n_tokens() == 0 {
            return Err(GenerateProblem::InvalidRequest {
                field: "messages",
                problem: "come to an empty prompt".into(),
            }
            .into());
        }
        Ok(prompt)
    }

    /// Whether the tower can read the images.
    fn check_images(&self, request: &GenerateRequest) -> Result<(), ModelError> {
        if request.images.is_empty() {
            return Ok(());
        }
        let Some((patch, merge)) = self.patches else {
            return Err(ModelError::NotRead { what: "pictures" });
        };
        let foreign = |image: &crate::preprocess::Patches| {
            image.patch_len() != 3 * patch * patch || image.grid.merge != merge
        };
        match request.images.iter().position(|image| foreign(image)) {
            Some(index) => Err(GenerateProblem::ForeignImage { index }.into()),
            None => Ok(()),
        }
    }
}
