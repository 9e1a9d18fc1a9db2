//! A picture of any format: decoded under a limit, and prepared for a model.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mgm_fuzz::{bounded, one_line};
use mgm_image::{DecodeOptions, Limits, Orientation};

/// Small enough that a picture of that size is decoded in no time, large enough that every path is taken.
const PIXELS: u64 = 1 << 18;
/// A decoder may hold several copies of the samples: as stored, in up to four channels of up to 16 bits, as coefficients of 16 bits
/// (progressive JPEG, in whole blocks), as RGB, and turned upright.
const BYTES_A_PIXEL: usize = 64;

fuzz_target!(|data: &[u8]| {
    let limits = Limits {
        max_pixels: PIXELS,
        ..Limits::default()
    };
    for orientation in [Orientation::Apply, Orientation::Ignore] {
        let decoded = bounded(data.len(), PIXELS as usize * BYTES_A_PIXEL, || {
            mgm_image::decode_with(
                data,
                &DecodeOptions {
                    limits,
                    orientation,
                },
            )
        });
        match decoded {
            Ok(image) => {
                let (width, height) = (u64::from(image.width), u64::from(image.height));
                assert!(width * height <= PIXELS);
                assert_eq!(image.data.len() as u64, width * height * 3);
            }
            Err(error) => one_line(&error),
        }
    }
});
