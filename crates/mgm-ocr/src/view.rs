//! How large a picture is shown to the detection network: PP-OCR's limits, bounded for pictures of absurd shapes.

use std::borrow::Cow;

use mgm_image::{Filter, RgbImage};

use crate::detect::STRIDE;
use crate::geometry::{Point, Quad};
use crate::resize::resize;

/// A longer side than this is reduced to it ...
const LONGEST: f64 = 2000.0;
/// ... but a shorter side is never reduced below this, and enlarged to it.
const SHORTEST_SEEN: f64 = 736.0;
/// A shorter side than this is enlarged to it before anything else.
const SHORTEST: f64 = 30.0;
/// Wider than this many times its height, a picture gets black bars above and below.
const WIDEST_RATIO: f64 = 8.0;
/// No side is ever shown longer than this.
const LONGEST_SEEN: f64 = 30_000.0;
/// Enlarging makes no more pixels than this: those of the widest picture without bars.
const MOST_ENLARGED: f64 = WIDEST_RATIO * SHORTEST_SEEN * SHORTEST_SEEN;
/// Nothing can be read in fewer rows or columns.
const SHORTEST_READABLE: f64 = 4.0;

/// A picture as it is shown to the network, before the final enlargement.
#[derive(Debug)]
pub(crate) struct View<'image> {
    /// The pixels.
    pub(crate) picture: Cow<'image, RgbImage>,
    /// Whether the original has more pixels.
    pub(crate) reduced: bool,
    /// Pixels of the original for one of the view.
    ratio: (f64, f64),
    /// Height of the black bar above.
    bar: u32,
}

impl<'image> View<'image> {
    /// PP-OCR's view of a picture. `None` when it is too thin to hold any text.
    pub(crate) fn of(image: &'image RgbImage) -> Option<Self> {
        let (width, height) = (f64::from(image.width), f64::from(image.height));
        let (short, long) = (width.min(height), width.max(height));
        let mut scale = if long > LONGEST {
            (LONGEST / long)
                .max((SHORTEST_SEEN / short).min(1.0))
                .min(LONGEST_SEEN / long)
        } else {
            1.0
        };
        let reduced = scale < 1.0;
        if short * scale < SHORTEST_READABLE {
            return None;
        }
        if short * scale < SHORTEST {
            scale *= (SHORTEST / (short * scale))
                .min(LONGEST_SEEN / (long * scale))
                .max(1.0);
        }
        if scale == 1.0 {
            return Some(Self::whole(image).with_bars());
        }
        let (seen_width, seen_height) = (strides(width * scale), strides(height * scale));
        let picture = if reduced {
            // Fine strokes survive the averaging; OpenCV's resize would skip over them.
            mgm_image::resize(image, seen_width, seen_height, Filter::Bilinear)
        } else {
            resize(image, seen_width, seen_height)
        };
        let view = Self {
            picture: Cow::Owned(picture),
            reduced,
            ratio: (
                width / f64::from(seen_width),
                height / f64::from(seen_height),
            ),
            bar: 0,
        };
        Some(view.with_bars())
    }

    /// The picture itself.
    pub(crate) fn whole(image: &'image RgbImage) -> Self {
        Self {
            picture: Cow::Borrowed(image),
            reduced: false,
            ratio: (1.0, 1.0),
            bar: 0,
        }
    }

    fn with_bars(self) -> Self {
        let (width, height) = (self.picture.width, self.picture.height);
        let (columns, rows) = (f64::from(width), f64::from(height));
        if rows > SHORTEST && columns / rows <= WIDEST_RATIO {
            return self;
        }
        // As much as a picture of the usual size would get: the rest of a longer one lies beside, not above.
        let barred = 2.0 * (columns.min(LONGEST) / WIDEST_RATIO).trunc().max(SHORTEST);
        let bar = ((barred - rows).abs() / 2.0) as u32;
        let mut picture = RgbImage::filled(width, height + 2 * bar, [0; 3]);
        let start = 3 * bar as usize * width as usize;
        picture.data[start..start + self.picture.data.len()].copy_from_slice(&self.picture.data);
        Self {
            picture: Cow::Owned(picture),
            bar,
            ..self
        }
    }

    /// The size at which the network looks at the view.
    pub(crate) fn network_size(&self) -> (u32, u32) {
        let (width, height) = (
            f64::from(self.picture.width),
            f64::from(self.picture.height),
        );
        let enlargement = (SHORTEST_SEEN / width.min(height))
            .min((MOST_ENLARGED / (width * height)).sqrt())
            .max(1.0);
        (strides(width * enlargement), strides(height * enlargement))
    }

    /// Where corners in the view lie in the original.
    pub(crate) fn original(&self, corners: &Quad) -> Quad {
        corners.map(|corner| {
            Point::new(
                corner.x * self.ratio.0,
                (corner.y - f64::from(self.bar)) * self.ratio.1,
            )
        })
    }
}

/// The nearest multiple of the network's stride, at least one.
pub(crate) fn strides(length: f64) -> u32 {
    let strides = (length.trunc() / f64::from(STRIDE)).round_ties_even() as u32;
    strides.max(1) * STRIDE
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes of the view and of what the network sees.
    fn sizes(width: u32, height: u32) -> Option<[(u32, u32); 2]> {
        let image = RgbImage::filled(width, height, [255; 3]);
        let view = View::of(&image)?;
        Some([
            (view.picture.width, view.picture.height),
            view.network_size(),
        ])
    }

    #[test]
    fn usual_pictures_are_shown_as_pp_ocr_shows_them() {
        // Values of rapidocr 3.10's `resize_image_within_bounds`, `apply_vertical_padding` and `DetPreProcess.resize`.
        assert_eq!(sizes(640, 480), Some([(640, 480), (992, 736)]));
        assert_eq!(sizes(1000, 900), Some([(1000, 900), (992, 896)]));
        assert_eq!(sizes(384, 191), Some([(384, 191), (1472, 736)]));
        assert_eq!(sizes(20, 40), Some([(32, 64), (736, 1472)]));
        assert_eq!(sizes(600, 48), Some([(600, 150), (2944, 736)]));
        assert_eq!(sizes(3000, 2000), Some([(1984, 1344), (1984, 1344)]));
        assert_eq!(sizes(2000, 250), Some([(2000, 250), (5888, 736)]));
    }

    #[test]
    fn absurd_pictures_stay_affordable() {
        assert_eq!(sizes(1, 1), None);
        assert_eq!(sizes(20_000, 1), None);
        assert_eq!(sizes(3, 20_000), None);
        for (width, height) in [
            (20_000, 100),
            (100, 20_000),
            (20_000, 4),
            (10_000, 10_000),
            (25_000_000, 4),
            (5, 4),
            (1080, 30_000),
        ] {
            let Some([view, network]) = sizes(width, height) else {
                continue;
            };
            for (width, height) in [view, network] {
                assert!(width >= 32 && height >= 32);
                assert!(
                    u64::from(width) * u64::from(height) < 40_000_000,
                    "{width}x{height}"
                );
            }
        }
        // A strip is read at its full resolution.
        assert_eq!(sizes(20_000, 100), Some([(20_000, 500), (20_000, 512)]));
    }

    #[test]
    fn corners_find_their_way_back() {
        let image = RgbImage::filled(4000, 300, [255; 3]);
        let view = View::of(&image).unwrap();
        let (width, height) = (view.picture.width, view.picture.height);
        let bar = (height - 300) / 2;
        let corners = [
            (0, bar),
            (width, bar),
            (width, height - bar),
            (0, height - bar),
        ]
        .map(|(x, y)| Point::new(f64::from(x), f64::from(y)));
        let expected = [(0.0, 0.0), (4000.0, 0.0), (4000.0, 300.0), (0.0, 300.0)]
            .map(|(x, y)| Point::new(x, y));
        assert_eq!(view.original(&corners), expected);
    }
}
