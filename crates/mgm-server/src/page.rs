//! The files of the page. They are part of the program, so that it needs nothing beside it and loads nothing from elsewhere.

/// A file of the page.
pub(crate) struct Asset {
    /// Path below the root, without the slash before it.
    path: &'static str,
    /// Media type, for `Content-Type`.
    pub(crate) content_type: &'static str,
    /// The file.
    pub(crate) bytes: &'static [u8],
}

/// What the page may load and do. Scripts, styles and connections are its own; pictures may also come out of the browser itself
/// (thumbnails). Nothing on the page turns text into markup, and trusted types keep it so.
pub(crate) const CONTENT_SECURITY_POLICY: &str = "default-src 'self'; img-src 'self' data: blob:; \
    style-src 'self'; script-src 'self'; connect-src 'self'; object-src 'none'; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";
const JPEG: &str = "image/jpeg";

macro_rules! assets {
    ($($folder:literal $content_type:ident { $($path:literal)* })*) => {
        &[$($(Asset {
            path: $path,
            content_type: $content_type,
            bytes: include_bytes!(concat!("../../../", $folder, $path)),
        },)*)*]
    };
}

const ASSETS: &[Asset] = assets! {
    "web/" HTML {
        "index.html"
    }
    "web/" SVG {
        "icon.svg"
    }
    "web/" CSS {
        "style/base.css"
        "style/conversation.css"
        "style/dialogs.css"
        "style/prose.css"
        "style/shell.css"
    }
    "web/" SCRIPT {
        "src/answering.js"
        "src/api/client.js"
        "src/api/failure.js"
        "src/api/request.js"
        "src/api/sse.js"
        "src/app.js"
        "src/dom.js"
        "src/main.js"
        "src/markdown/blocks.js"
        "src/markdown/inline.js"
        "src/markdown/render.js"
        "src/picture/intake.js"
        "src/picture/mining.js"
        "src/store/database.js"
        "src/store/library.js"
        "src/store/preferences.js"
        "src/store/thread.js"
        "src/store/transfer.js"
        "src/theme.js"
        "src/view/announce.js"
        "src/view/camera.js"
        "src/view/composer.js"
        "src/view/conversation.js"
        "src/view/copy.js"
        "src/view/dialog.js"
        "src/view/drawing.js"
        "src/view/drop.js"
        "src/view/inside.js"
        "src/view/message.js"
        "src/view/settings.js"
        "src/view/shell.js"
        "src/view/sidebar.js"
        "src/view/toast.js"
        "src/view/welcome.js"
    }
    "" JPEG {
        "examples/astronaut.jpg"
        "examples/cat.jpg"
        "examples/coffee.jpg"
    }
};

/// The file at a path of the address, `/` for the page itself; `None` when there is none.
pub(crate) fn asset(path: &str) -> Option<&'static Asset> {
    let path = match path.strip_prefix('/')? {
        "" => "index.html",
        path => path,
    };
    ASSETS.iter().find(|asset| asset.path == path)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files_below(&path, found);
            } else {
                found.push(path);
            }
        }
    }

    #[test]
    fn every_file_of_the_page_is_there() {
        let web = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../web");
        let mut files = vec![web.join("index.html"), web.join("icon.svg")];
        files_below(&web.join("src"), &mut files);
        files_below(&web.join("style"), &mut files);
        let mut expected: Vec<String> = files
            .iter()
            .map(|file| {
                file.strip_prefix(&web)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        expected.sort();
        let mut listed: Vec<&str> = ASSETS
            .iter()
            .map(|asset| asset.path)
            .filter(|path| !path.starts_with("examples/"))
            .collect();
        listed.sort();
        assert_eq!(listed, expected);
    }

    #[test]
    fn the_page_names_its_files() {
        let page = std::str::from_utf8(asset("/").unwrap().bytes).unwrap();
        for asset in ASSETS {
            if [CSS, SCRIPT].contains(&asset.content_type) {
                assert!(
                    page.contains(&format!("=\"{}\"", asset.path)),
                    "{}",
                    asset.path
                );
            }
        }
    }

    #[test]
    fn nothing_on_the_page_needs_what_the_policy_forbids() {
        for asset in ASSETS {
            let Ok(text) = std::str::from_utf8(asset.bytes) else {
                continue;
            };
            for forbidden in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "new Function",
                " style=\"",
                " onclick=\"",
            ] {
                assert!(!text.contains(forbidden), "{}: {forbidden}", asset.path);
            }
        }
    }

    #[test]
    fn paths() {
        assert!(asset("/").is_some_and(|asset| asset.content_type == HTML));
        assert!(asset("/index.html").is_some());
        assert!(
            asset("/examples/cat.jpg").is_some_and(|asset| asset.bytes.starts_with(&[0xff, 0xd8]))
        );
        for wrong in [
            "",
            "index.html",
            "//",
            "/src",
            "/src/",
            "/../Cargo.toml",
            "/src/../index.html",
            "/test/mock.js",
        ] {
            assert!(asset(wrong).is_none(), "{wrong}");
        }
    }
}
