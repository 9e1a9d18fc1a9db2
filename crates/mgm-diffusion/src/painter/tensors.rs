//! Between requests, pictures and tensors.

use candle_core::{DType, Tensor};
use mgm_image::RgbImage;

use super::request::{Encoded, EncodedPrompt, PaintRequest};
use crate::error::{Error, Result};
use crate::unet::Condition;
use crate::vae::Vae;

/// What steers the UNet: for guidance the negative prompt comes first, as in diffusers.
pub(super) fn condition(
    prompt: &EncodedPrompt,
    negative: Option<&Encoded>,
    request: &PaintRequest,
    pictures: usize,
) -> Result<Condition> {
    let repeat = |x: &Tensor| Tensor::cat(&vec![x; pictures], 0);
    let both = |against: Option<&Tensor>, towards: &Tensor| -> Result<Tensor> {
        Ok(match against {
            Some(against) => Tensor::cat(&[repeat(against)?, repeat(towards)?], 0)?,
            None => repeat(towards)?,
        })
    };
    let own = (request.size.1, request.size.0);
    let (original, target) = (
        request.original_size.unwrap_or(own),
        request.target_size.unwrap_or(own),
    );
    let sizes = [
        original.0,
        original.1,
        request.crop.0,
        request.crop.1,
        target.0,
        target.1,
    ]
    .map(f64::from);
    let batch = pictures * if negative.is_some() { 2 } else { 1 };
    Ok(Condition {
        words: both(negative.map(|n| &n.words), &prompt.prompt.words)?,
        pooled: both(negative.map(|n| &n.pooled), &prompt.prompt.pooled)?,
        sizes: vec![sizes; batch],
    })
}

/// Small pictures of predicted latents: squares of four positions averaged, then decoded.
pub(super) fn previews(vae: &Vae, predicted: &Tensor) -> Result<Vec<RgbImage>> {
    let (pictures, height, width, channels) = predicted.dims4()?;
    let (rows, columns) = (height / 2, width / 2);
    let small = match rows > 0 && columns > 0 {
        true => predicted
            .narrow(1, 0, 2 * rows)?
            .narrow(2, 0, 2 * columns)?
            .contiguous()?
            .reshape(vec![pictures, rows, 2, columns, 2, channels])?
            .mean(4)?
            .mean(2)?,
        false => predicted.clone(),
    };
    (0..pictures)
        .map(|index| {
            to_image(&vae.decode_scaled(&small.narrow(0, index, 1)?, None, &mut || true)?)
        })
        .collect()
}

/// `[1, height, width, 3]` in ±1 to 8 bits.
pub(super) fn to_image(picture: &Tensor) -> Result<RgbImage> {
    let (_, height, width, _) = picture.dims4()?;
    let values: Vec<f32> = picture.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    if values.iter().any(|v| !v.is_finite()) {
        return Err(Error::Input(
            "the picture holds values that are not numbers: the weights are damaged".into(),
        ));
    }
    let data = values
        .iter()
        .map(|v| ((v / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8)
        .collect();
    RgbImage::new(width as u32, height as u32, data)
        .map_err(|error| Error::Input(error.to_string()))
}
