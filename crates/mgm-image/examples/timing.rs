//! Times decoding and preprocessing of the images given as arguments.

use std::time::Instant;

use mgm_image::{Filter, ImageError, Limits, PreprocessConfig, open, prepare, resize};

fn main() -> Result<(), ImageError> {
    for path in std::env::args().skip(1) {
        let start = Instant::now();
        let image = open(&path, &Limits::default())?;
        println!(
            "{path}: {}x{}, decoded in {:?}",
            image.width,
            image.height,
            start.elapsed()
        );
        for (name, config) in [
            ("base", PreprocessConfig::base()),
            ("HD", PreprocessConfig::hd()),
        ] {
            let start = Instant::now();
            let prepared = prepare(&image, &config)?;
            println!(
                "  {name}: {} views in {:?}",
                prepared.views,
                start.elapsed()
            );
        }
        let start = Instant::now();
        let small = resize(&image, 336, 336, Filter::Bicubic);
        println!("  resize to {small:?} in {:?}", start.elapsed());
    }
    Ok(())
}
