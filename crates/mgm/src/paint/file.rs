//! Picture files: written beside their place, then renamed, so that a file is whole or not there.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// Where a picture will be written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PictureFile {
    path: PathBuf,
}

impl PictureFile {
    /// Checks before any work that a PNG file can be written there.
    pub(crate) fn prepare(path: &Path) -> Result<Self, Failure> {
        let is_png = path
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
        if !is_png {
            return Err(Failure::usage(format!(
                "{}: expected a name that ends in .png",
                path.display()
            )));
        }
        if path.is_dir() {
            return Err(Failure::failed(format!(
                "{}: is a folder, expected a file",
                path.display()
            )));
        }
        let file = Self {
            path: path.to_path_buf(),
        };
        let beside = file.beside();
        File::create(&beside).map_err(|error| file.failure(&error))?;
        std::fs::remove_file(&beside).map_err(|error| file.failure(&error))?;
        Ok(file)
    }

    /// The files of `count` pictures: the path itself, or `name-1.png`, `name-2.png`, ….
    pub(crate) fn prepare_all(path: &Path, count: usize) -> Result<Vec<Self>, Failure> {
        if count == 1 {
            return Ok(vec![Self::prepare(path)?]);
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        (1..=count)
            .map(|number| {
                Self::prepare(&path.with_file_name(format!("{stem}-{number}.{extension}")))
            })
            .collect()
    }

    /// The path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the file.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<(), Failure> {
        let beside = self.beside();
        let written = File::create(&beside)
            .and_then(|mut file| {
                file.write_all(bytes)?;
                file.sync_all()
            })
            .and_then(|()| std::fs::rename(&beside, &self.path));
        written.map_err(|error| {
            // What could not be written whole is not left behind.
            let _ = std::fs::remove_file(&beside);
            self.failure(&error)
        })
    }

    fn beside(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path
            .with_file_name(format!(".{name}.{}.part", std::process::id()))
    }

    fn failure(&self, error: &std::io::Error) -> Failure {
        Failure::failed(format!(
            "{}: cannot be written: {error}",
            self.path.display()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_whole_or_not_there() {
        let folder = std::env::temp_dir().join(format!("mgm-picture-file-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let files = PictureFile::prepare_all(&folder.join("a.b.PNG"), 2).unwrap();
        let names: Vec<_> = files
            .iter()
            .map(|file| file.path().file_name().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["a.b-1.PNG", "a.b-2.PNG"]);
        assert_eq!(
            std::fs::read_dir(&folder).unwrap().count(),
            0,
            "preparing leaves nothing"
        );
        files[0].write(b"first").unwrap();
        files[0].write(b"second").unwrap();
        assert_eq!(std::fs::read(files[0].path()).unwrap(), b"second");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(files[1].write(b"late").is_err());
        assert!(PictureFile::prepare(&folder.join("x.png")).is_err());
        assert!(PictureFile::prepare(&folder.join("x.jpg")).is_err());
        assert!(PictureFile::prepare(Path::new("")).is_err());
    }
}
