//! Finding the directories that a configuration names: towers, and the language model an adapter or a stage-1 folder belongs to.

use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};
use crate::hub_cache;

/// Where the directories of the official training layout are published. The last part of the path decides; the towers' folders were
/// renamed by the authors, the language models' were not, but lie in folders of other names.
const REPOSITORIES: [(&str, &str); 7] = [
    (
        "clip-vit-large-patch14-336",
        "openai/clip-vit-large-patch14-336",
    ),
    (
        "openclip-convnext-large-d-320-laion2b-s29b-b131k-ft-soup",
        "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
    ),
    ("gemma-2b-it", "google/gemma-2b-it"),
    ("vicuna-7b-v1.5", "lmsys/vicuna-7b-v1.5"),
    ("vicuna-13b-v1.5", "lmsys/vicuna-13b-v1.5"),
    (
        "meta-llama-3-8b-instruct",
        "meta-llama/Meta-Llama-3-8B-Instruct",
    ),
    (
        "mixtral-8x7b-instruct-v0.1",
        "mistralai/Mixtral-8x7B-Instruct-v0.1",
    ),
];

/// The places that are searched, in this order: the working directory, the checkpoint, the model zoo, Hugging Face's cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places<'a> {
    pub(crate) checkpoint: &'a Path,
    pub(crate) model_zoo: Option<&'a Path>,
}

impl Places<'_> {
    /// The first directory for `name` that `suits`; `what` says in the error what it is.
    ///
    /// # Errors
    /// [`Error::NotFound`], which lists where was looked.
    pub(crate) fn find(
        &self,
        what: &'static str,
        name: &str,
        suits: &dyn Fn(&Path) -> bool,
    ) -> Result<PathBuf> {
        let candidates = self.candidates(name);
        match candidates.iter().find(|path| suits(path)) {
            Some(found) => Ok(found.clone()),
            None => Err(Error::NotFound {
                what,
                name: name.into(),
                searched: list(&candidates, &repository(name)),
            }),
        }
    }

    fn candidates(&self, name: &str) -> Vec<PathBuf> {
        let mut candidates = vec![PathBuf::from(name)];
        let suffixes = suffixes(Path::new(name));
        candidates.extend(suffixes.iter().map(|suffix| self.checkpoint.join(suffix)));
        if let Some(zoo) = self.model_zoo {
            candidates.extend(suffixes.iter().map(|suffix| zoo.join(suffix)));
        }
        if let Some(repository) = repository(name)
            && let Some(snapshot) = hub_cache::find_snapshot(&repository, None)
        {
            candidates.push(snapshot);
        }
        candidates
    }
}

/// `a/b/c`, `b/c`, `c`: a zoo may hold the whole path, or start at any of its folders.
fn suffixes(path: &Path) -> Vec<PathBuf> {
    let parts: Vec<_> = path
        .components()
        .filter(|part| matches!(part, Component::Normal(_)))
        .collect();
    (0..parts.len())
        .map(|start| parts[start..].iter().collect())
        .collect()
}

/// The hub name that a path stands for: a known one, or its last two parts.
pub(crate) fn repository(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty()).collect();
    let last = parts.last()?;
    if let Some((_, repository)) = REPOSITORIES
        .iter()
        .find(|(folder, _)| folder.eq_ignore_ascii_case(last))
    {
        return Some((*repository).to_string());
    }
    // The authors' releases, by their bare names.
    if parts.len() == 1 && last.to_ascii_lowercase().starts_with("mgm-") {
        return Some(format!("YanweiLi/{last}"));
    }
    let repository = parts.get(parts.len().checked_sub(2)?..)?.join("/");
    hub_cache::is_repository(&repository).then_some(repository)
}

/// The places looked in, for an error message.
fn list(candidates: &[PathBuf], repository: &Option<String>) -> String {
    let mut places: Vec<String> = candidates
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    if let Some(repository) = repository {
        let cache = hub_cache::directory()
            .map(|cache| format!(" in {}", cache.display()))
            .unwrap_or_default();
        places.push(format!("{repository}{cache}"));
    }
    places.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stand_for_repositories() {
        let tower = "model_zoo/OpenAI/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup";
        assert_eq!(
            repository(tower).as_deref(),
            Some("laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup")
        );
        assert_eq!(
            repository("NousResearch/Nous-Hermes-2-Yi-34B").as_deref(),
            Some("NousResearch/Nous-Hermes-2-Yi-34B")
        );
        assert_eq!(repository("mgm-2b").as_deref(), Some("YanweiLi/mgm-2b"));
        assert_eq!(repository("model"), None);
        assert_eq!(repository("/"), None);
    }

    #[test]
    fn places_come_in_order() {
        let places = Places {
            checkpoint: Path::new("/checkpoint"),
            model_zoo: Some(Path::new("/zoo")),
        };
        let candidates = places.candidates("model_zoo/a/b");
        let expected = [
            "model_zoo/a/b",
            "/checkpoint/model_zoo/a/b",
            "/checkpoint/a/b",
            "/checkpoint/b",
            "/zoo/model_zoo/a/b",
            "/zoo/a/b",
            "/zoo/b",
        ];
        assert_eq!(candidates[..7], expected.map(PathBuf::from));
        // Nothing climbs out of a place.
        assert_eq!(suffixes(Path::new("/../x")), [PathBuf::from("x")]);
    }
}
