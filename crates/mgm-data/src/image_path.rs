use std::path::{Path, PathBuf};

/// Finds a record's picture below the image folder, with the official file-name repairs (preprocessing §7): a missing path that contains
/// `ocr` is tried with `.png` for `.jpg`; one that contains `VG_100K` is tried with `images` in place of `VG_100K_2` and `VG_100K`.
/// Returns the plain path when neither exists, so that the error names what the record says.
pub fn resolve_image(folder: &Path, relative: &str) -> PathBuf {
    let plain = folder.join(relative);
    if plain.exists() {
        return plain;
    }
    let repaired = if relative.contains("ocr") {
        relative.replace(".jpg", ".png")
    } else if relative.contains("VG_100K") {
        relative
            .replace("VG_100K_2", "images")
            .replace("VG_100K", "images")
    } else {
        return plain;
    };
    let repaired = folder.join(repaired);
    if repaired.exists() { repaired } else { plain }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repairs() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["ocr_vqa/1.png", "vg/images/2.jpg", "plain/3.jpg"] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"x").unwrap();
        }
        let resolve = |name: &str| {
            resolve_image(folder.path(), name)
                .strip_prefix(folder.path())
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(resolve("ocr_vqa/1.jpg"), "ocr_vqa/1.png");
        assert_eq!(resolve("vg/VG_100K_2/2.jpg"), "vg/images/2.jpg");
        assert_eq!(resolve("vg/VG_100K/2.jpg"), "vg/images/2.jpg");
        assert_eq!(resolve("plain/3.jpg"), "plain/3.jpg");
        assert_eq!(resolve("plain/4.jpg"), "plain/4.jpg");
        assert_eq!(resolve("ocr_vqa/9.jpg"), "ocr_vqa/9.jpg");
    }
}
