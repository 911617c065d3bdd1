//! Pictures that are named on the command line.

use std::path::Path;

use image::DynamicImage;

use crate::Hinted;

/// Decodes a file, by what it holds and not by its name.
pub(crate) fn read(path: &Path) -> Result<DynamicImage, Hinted> {
    let unreadable = |error: image::ImageError| {
        let name = path.display();
        let hint = "give a PNG, JPEG, TIFF or WebP file that is whole";
        Hinted::failed(format!("cannot read the picture ({error}): {name}"), hint)
    };
    let reader = image::ImageReader::open(path)
        .and_then(image::ImageReader::with_guessed_format)
        .map_err(|error| unreadable(image::ImageError::IoError(error)))?;
    reader.decode().map_err(unreadable)
}
