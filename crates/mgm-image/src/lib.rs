//! Image decoding and Pillow-exact preprocessing.
//!
//! * [`decode`], [`decode_with`], [`open`]: JPEG, PNG, WebP, BMP and GIF (first frame) to 8-bit RGB with the rules of
//!   Pillow's `Image.open(..).convert("RGB")`, with limits checked from the header before pixels are allocated.
//! * [`encode_png`]: PNG with texts in its metadata.
//! * [`resize`]: Pillow's 8-bit fixed-point bicubic and bilinear resize, bit-exact.
//! * [`prepare`]: the two inputs of the vision towers as the official Mini-Gemini code makes them.

mod bilinear;
mod decode;
mod encode;
mod error;
mod orientation;
mod prepare;
mod resize;
mod rgb;

pub use bilinear::bilinear_planar;
pub use decode::{DecodeOptions, Limits, Orientation, decode, decode_with, open, open_with};
pub use encode::{TextEntry, encode_png, png_texts};
pub use error::ImageError;
pub use prepare::{
    Aspect, CLIP_MEAN, CLIP_STD, PAD_COLOUR, PreparedImage, PreprocessConfig, prepare,
};
pub use resize::{Filter, resize};
pub use rgb::{RgbImage, center_crop, pad_to_square, resize_shortest_edge};
