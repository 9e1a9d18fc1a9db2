//! What can go wrong with an image, each as one line for the user.

use std::path::PathBuf;

/// Why an image could not be decoded or prepared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file could not be read at all.
    #[error("cannot read image file {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        error: std::io::Error,
    },
    /// The file was read, but its content is bad.
    #[error("image file {}: {error}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with its content.
        error: Box<ImageError>,
    },
    /// Zero bytes.
    #[error("the image is empty (0 bytes)")]
    Empty,
    /// The first bytes belong to no known image format.
    #[error(
        "not an image: expected JPEG, PNG, WebP, BMP or GIF, found data beginning with {first_bytes}"
    )]
    NotAnImage {
        /// The first bytes, printable.
        first_bytes: String,
    },
    /// An image, but of a format that is not decoded here.
    #[error("{format} images are not supported: expected JPEG, PNG, WebP, BMP or GIF")]
    UnsupportedFormat {
        /// The format's name.
        format: &'static str,
    },
    /// A supported format that uses a feature that is not decoded here.
    #[error("unsupported {format} image: {}", one_line(feature))]
    Unsupported {
        /// The format's name.
        format: &'static str,
        /// The feature.
        feature: String,
    },
    /// The data end before the picture does.
    #[error("truncated {format} image: {}", one_line(detail))]
    Truncated {
        /// The format's name.
        format: &'static str,
        /// Where the data ended.
        detail: String,
    },
    /// The picture cannot be written as the format wants it.
    #[error("cannot write a {format} image: {}", one_line(detail))]
    Encode {
        /// The format's name.
        format: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// The data contradict the format.
    #[error("corrupt {format} image: {}", one_line(detail))]
    Corrupt {
        /// The format's name.
        format: &'static str,
        /// The contradiction.
        detail: String,
    },
    /// More bytes than [`crate::Limits::max_bytes`].
    #[error("the image file is too large: {found} bytes, at most {allowed} are allowed")]
    TooManyBytes {
        /// Size of the file.
        found: u64,
        /// The limit.
        allowed: u64,
    },
    /// More pixels than [`crate::Limits::max_pixels`].
    #[error(
        "the image is too large: {width}x{height} = {} pixels, at most {allowed} are allowed",
        u64::from(*width) * u64::from(*height)
    )]
    TooManyPixels {
        /// Width in the header.
        width: u32,
        /// Height in the header.
        height: u32,
        /// The limit.
        allowed: u64,
    },
    /// Width or height is zero.
    #[error("the image has no pixels: its size is {width}x{height}")]
    NoPixels {
        /// Width.
        width: u32,
        /// Height.
        height: u32,
    },
    /// An [`crate::RgbImage`] whose buffer does not fit its size.
    #[error("an RGB image of {width}x{height} needs {expected} bytes of pixels, found {found}")]
    PixelCount {
        /// Width.
        width: u32,
        /// Height.
        height: u32,
        /// Bytes needed.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// A [`crate::PreprocessConfig`] that makes no sense.
    #[error("image preprocessing: {0}")]
    Config(String),
}

/// What a decoder says, in one line: some end theirs with a line break.
fn one_line(text: &str) -> String {
    let words = text.split(char::is_control).map(str::trim);
    words
        .filter(|words| !words.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}
