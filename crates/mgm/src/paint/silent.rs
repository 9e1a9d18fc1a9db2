//! Painting without a word on the terminal: for a server, whose log holds no prompts.

use mgm_diffusion::{Control, Progress};

use super::{Painted, Studio};
use crate::failure::Failure;

/// Sizes that models of 1024 by 1024 pixels were trained on besides that, and a small one for those in a hurry.
const LARGE_SIZES: [(u32, u32); 9] = [
    (1152, 896),
    (896, 1152),
    (1216, 832),
    (832, 1216),
    (1344, 768),
    (768, 1344),
    (1536, 640),
    (640, 1536),
    (512, 512),
];

/// One picture for [`Studio::paint_silently`].
pub(crate) struct Commission<'a> {
    pub(crate) prompt: &'a str,
    pub(crate) size: (u32, u32),
    pub(crate) seed: u64,
    /// A preview after every so many steps; none for 0.
    pub(crate) preview_every: usize,
}

impl Studio {
    /// Sizes worth offering: the one that was asked for first, then the model's own and what goes with it. All pass the model's check.
    pub(crate) fn sizes(&self) -> Vec<(u32, u32)> {
        let side = self.painter.defaults().side;
        let mut sizes = vec![self.request.size, (side, side)];
        match side {
            1024 => sizes.extend(LARGE_SIZES),
            _ => {
                let half_more = side + side / 2;
                sizes.extend([(half_more, side), (side, half_more), (2 * side, 2 * side)]);
            }
        }
        let mut offered = Vec::with_capacity(sizes.len());
        for size in sizes {
            let request = mgm_diffusion::PaintRequest {
                size,
                ..self.request.clone()
            };
            if !offered.contains(&size) && self.painter.check(&request).is_ok() {
                offered.push(size);
            }
        }
        offered
    }

    /// Steps of a picture.
    pub(crate) fn steps(&self) -> usize {
        self.request.steps
    }

    /// Paints one picture. The UNet and the decoder stay loaded for the next one.
    pub(crate) fn paint_silently(
        &mut self,
        commission: &Commission,
        cancelled: &dyn Fn() -> bool,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Painted, Failure> {
        let stopped = || Failure::from(mgm_diffusion::Error::Interrupted);
        let &Commission {
            prompt,
            size,
            seed,
            preview_every,
        } = commission;
        let encoded = self.painter.encode(prompt, Some(&self.negative));
        self.painter.release_text_encoders();
        let encoded = encoded?;
        if cancelled() {
            return Err(stopped());
        }
        self.painter.load_unet()?;
        let request = mgm_diffusion::PaintRequest {
            size,
            seeds: vec![seed],
            preview_every,
            ..self.request.clone()
        };
        let latents = self.painter.denoise(&encoded, &request, &mut |told| {
            progress(&told);
            match cancelled() {
                true => Control::Stop,
                false => Control::Continue,
            }
        })?;
        let tiling = self.tiles.then(|| self.painter.tiling());
        let mut images = self
            .painter
            .decode(&latents, tiling, &mut || !cancelled())?;
        let image = images
            .pop()
            .ok_or_else(|| Failure::failed("the painter gave no picture"))?;
        let png = self.png(prompt, seed, &image)?;
        Ok(Painted { image, png, seed })
    }
}
