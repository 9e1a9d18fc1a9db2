//! Writing pictures: PNG with text about how they came to be.

use crate::{ImageError, RgbImage};

/// A keyword and a text that are stored in a picture's file.
pub type TextEntry<'a> = (&'a str, &'a str);

/// The picture as a PNG file with `texts` in its metadata, in order (`iTXt`: UTF-8). Keywords are 1 to 79 Latin-1 characters; `Software`,
/// `Title` and `Description` are registered ones.
///
/// # Errors
/// When size and pixels disagree or a keyword is not allowed.
pub fn encode_png(image: &RgbImage, texts: &[TextEntry]) -> Result<Vec<u8>, ImageError> {
    image.validate()?;
    let failed = |error: png::EncodingError| ImageError::Encode {
        format: "PNG",
        detail: error.to_string(),
    };
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, image.width, image.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for (keyword, text) in texts {
        encoder
            .add_itxt_chunk((*keyword).to_string(), (*text).to_string())
            .map_err(failed)?;
    }
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(&image.data).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(file)
}

/// The texts of a PNG file's metadata, in order (`tEXt`, `zTXt`, then `iTXt`); damaged ones are left out.
///
/// # Errors
/// When it is not a PNG file.
pub fn png_texts(file: &[u8]) -> Result<Vec<(String, String)>, ImageError> {
    let broken = |error: png::DecodingError| ImageError::Corrupt {
        format: "PNG",
        detail: error.to_string(),
    };
    let mut reader = png::Decoder::new(std::io::Cursor::new(file))
        .read_info()
        .map_err(broken)?;
    // Texts may stand behind the pixels.
    reader.finish().map_err(broken)?;
    let info = reader.info();
    let latin = info
        .uncompressed_latin1_text
        .iter()
        .map(|chunk| (chunk.keyword.clone(), chunk.text.clone()));
    let compressed = info
        .compressed_latin1_text
        .iter()
        .filter_map(|chunk| Some((chunk.keyword.clone(), chunk.get_text().ok()?)));
    let unicode = info
        .utf8_text
        .iter()
        .filter_map(|chunk| Some((chunk.keyword.clone(), chunk.get_text().ok()?)));
    Ok(latin.chain(compressed).chain(unicode).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Limits, decode};

    #[test]
    fn pictures_and_texts_come_back() {
        let data: Vec<u8> = (0..5 * 4 * 3).map(|i| (i * 37 % 256) as u8).collect();
        let image = RgbImage::new(5, 4, data).unwrap();
        let texts = [
            ("Prompt", "ein Apfel, größer als 猫\n\"zitiert\""),
            ("Seed", "42"),
        ];
        let file = encode_png(&image, &texts).unwrap();
        assert_eq!(decode(&file, &Limits::default()).unwrap(), image);
        let found = png_texts(&file).unwrap();
        let expected: Vec<(String, String)> = texts
            .iter()
            .map(|(keyword, text)| (keyword.to_string(), text.to_string()))
            .collect();
        assert_eq!(found, expected);
        assert!(encode_png(&image, &[("", "x")]).is_err());
        assert!(png_texts(b"no picture").is_err());
        let wrong = RgbImage {
            width: 5,
            height: 4,
            data: vec![0; 7],
        };
        assert!(encode_png(&wrong, &[]).is_err());
    }
}
