//! Index files (`model.safetensors.index.json`, `pytorch_model.bin.index.json`): which tensor is in which shard.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::layer::Layer;
use crate::{Error, Result};

#[derive(Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// Tensor to file, each tensor once.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from tensors to files")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<WeightMap, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((tensor, file)) = map.next_entry::<String, String>()? {
                    if entries.insert(tensor.clone(), file).is_some() {
                        return Err(A::Error::custom(format!("tensor {tensor} is listed twice")));
                    }
                }
                Ok(WeightMap(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Opens the shards that an index names and checks that each holds what the index says. A shard may hold more, but where two hold a
/// tensor of one name, the index decides.
pub(super) fn open(index: &Path, open: impl Fn(&Path) -> Result<Layer>) -> Result<Vec<Arc<Layer>>> {
    let text = std::fs::read(index).map_err(|source| Error::Io {
        path: index.to_path_buf(),
        action: "reading",
        source,
    })?;
    let label = index.display().to_string();
    let parsed: Index = serde_json::from_slice(&text).map_err(|error| {
        Error::format(
            &label,
            format!("expected a JSON index with a weight_map: {error}"),
        )
    })?;
    let wanted = parsed.weight_map.0;
    let folder = index.parent().unwrap_or(Path::new("."));
    let names: BTreeSet<&String> = wanted.values().collect();
    let mut layers = Vec::with_capacity(names.len());
    for name in names {
        let layer = Arc::new(open(&shard(&label, folder, name)?)?);
        let is_elsewhere = |tensor: &str| wanted.get(tensor).is_some_and(|file| file != name);
        if layer.names().any(|tensor| is_elsewhere(tensor)) {
            let hide = |tensor: &str| (!is_elsewhere(tensor)).then(|| tensor.to_string());
            layers.push((name, Arc::new(layer.renamed(&hide))));
        } else {
            layers.push((name, layer));
        }
    }
    let by_name: BTreeMap<&String, &Arc<Layer>> =
        layers.iter().map(|(name, layer)| (*name, layer)).collect();
    let mut absent = wanted.iter().filter(|(tensor, file)| {
        by_name
            .get(file)
            .is_none_or(|layer| layer.entry(tensor).is_none())
    });
    if let Some((tensor, file)) = absent.next() {
        let more = match absent.count() {
            0 => String::new(),
            more => format!(" ({more} more tensors are not where it says)"),
        };
        return Err(Error::format(
            label,
            format!("tensor {tensor} should be in {file}, which does not hold it{more}"),
        ));
    }
    Ok(layers.into_iter().map(|(_, layer)| layer).collect())
}

/// The path of a shard: a plain name in the index's own folder, of a file that is there and is no index itself.
fn shard(label: &str, folder: &Path, name: &str) -> Result<PathBuf> {
    let mut parts = Path::new(name).components();
    let is_plain = matches!(
        (parts.next(), parts.next()),
        (Some(Component::Normal(_)), None)
    );
    if !is_plain {
        return Err(Error::format(
            label,
            format!("bad file name {name:?}, expected a file beside the index"),
        ));
    }
    if Path::new(name)
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("json"))
    {
        return Err(Error::format(
            label,
            format!("names {name}, another index, expected files of weights"),
        ));
    }
    let path = folder.join(name);
    if !path.exists() {
        return Err(Error::format(
            label,
            format!("names {name}, which is not in its folder"),
        ));
    }
    Ok(path)
}
