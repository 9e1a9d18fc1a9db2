//! Reading torch `.bin`/`.pt`/`.pth` files in place: zip archives of a pickle and raw storages, and the older format, in
//! which pickles and storages follow each other.
//!
//! The file is mapped, and tensors that lie row-major stay in it. The pickle is read by a machine that can execute nothing.

mod legacy;
mod pickle;
mod view;
mod zip;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use mgm_kernels::quant::Bytes;

use super::element_type::ElementType;
use super::layer::Entry;
use super::mapped_file::{self, MappedFile};
use super::stored::StoredTensor;
use crate::{Error, Result};
use pickle::{Id, Name, Pickle, Rebuild, Value};
use view::View;

/// An open file.
pub(crate) struct TorchFile {
    label: String,
    file: MappedFile,
    tensors: BTreeMap<String, View>,
}

/// Names of the dictionary of tensors in checkpoints that hold other things too, in the order in which they are tried.
const WRAPPERS: [&str; 3] = ["state_dict", "model", "module"];
/// Wrappers in wrappers.
const MAX_WRAPPERS: usize = 3;
/// Tensors in parameters in tensors of a subclass.
const MAX_REBUILDS: usize = 4;

impl TorchFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::from_mapped(path.display().to_string(), mapped_file::map(path)?)
    }

    pub(crate) fn from_mapped(label: String, file: MappedFile) -> Result<Self> {
        let bytes = (*file).as_ref();
        let tensors = if bytes.starts_with(b"PK") {
            read_archive(bytes)
        } else if legacy::is_legacy(bytes) {
            legacy::read(bytes)
        } else {
            let found = &bytes[..bytes.len().min(8)];
            Err(format!(
                "expected a torch checkpoint (a zip archive), found a file that begins with {found:02x?}"
            ))
        };
        match tensors {
            Ok(tensors) => Ok(Self {
                label,
                file,
                tensors,
            }),
            Err(message) => Err(Error::format(label, message)),
        }
    }

    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys()
    }

    pub(super) fn entry(&self, name: &str) -> Option<Entry<'_>> {
        self.tensors.get(name).map(|view| Entry {
            shape: &view.shape,
            element_type: view.element_type.clone(),
            bytes: view.bytes(),
        })
    }

    pub(crate) fn get(&self, name: &str) -> Result<Option<StoredTensor>> {
        match self.tensors.get(name) {
            Some(view) => self.read(name, view).map(Some),
            None => Ok(None),
        }
    }

    /// Rows of the first axis (a scalar has one), which must be there.
    pub(crate) fn rows(&self, name: &str, rows: Range<usize>) -> Result<Option<StoredTensor>> {
        match self.tensors.get(name) {
            Some(view) => self.read(name, &view.rows(rows)).map(Some),
            None => Ok(None),
        }
    }

    fn read(&self, name: &str, view: &View) -> Result<StoredTensor> {
        let len = (*self.file).as_ref().len();
        Bytes::slice(self.file.clone(), 0..len)
            .map_err(|error| error.to_string())
            .and_then(|file| view.read(&file))
            .map_err(|message| Error::format(&self.label, format!("tensor {name}: {message}")))
    }

    pub(crate) fn release(&self, name: &str) {
        if let Some(view) = self.tensors.get(name) {
            self.file.release(view.place());
        }
    }
}

type Tensors = BTreeMap<String, View>;

/// The tensors of a zip archive.
fn read_archive(bytes: &[u8]) -> std::result::Result<Tensors, String> {
    let entries = zip::directory(bytes)?;
    let mut pickles = entries.keys().filter_map(|name| {
        let folder = name.strip_suffix("data.pkl")?;
        (folder.is_empty() || folder.ends_with('/')).then_some(folder)
    });
    let folder = match (pickles.next(), pickles.next()) {
        (Some(folder), None) => folder,
        (None, _) => {
            return Err("expected a torch checkpoint: a zip archive without data.pkl".into());
        }
        (Some(_), Some(_)) => {
            return Err("expected one data.pkl in the archive, found several".into());
        }
    };
    if entries.contains_key(&format!("{folder}constants.pkl")) {
        return Err("a TorchScript program, expected a checkpoint of tensors".into());
    }
    let entry = |name: &str| match entries.get(&format!("{folder}{name}")) {
        Some(Some(place)) => Ok(Some(place.clone())),
        Some(None) => Err(format!(
            "entry {name} is compressed or encrypted, expected it stored as torch.save writes it"
        )),
        None => Ok(None),
    };
    if let Some(order) = entry("byteorder")?.map(|range| &bytes[range])
        && order != b"little"
    {
        return Err(format!(
            "expected little-endian storages, found {:?}",
            String::from_utf8_lossy(&order[..order.len().min(16)])
        ));
    }
    let range = entry("data.pkl")?.ok_or("no data.pkl")?;
    let pickle = pickle::read(&bytes[range]).map_err(|message| format!("data.pkl: {message}"))?;
    let storages = |key: &str| {
        entry(&format!("data/{key}"))?
            .ok_or_else(|| format!("needs the storage data/{key}, which the archive does not hold"))
    };
    tensors_of(&pickle, &storages)
}

/// Where a storage lies in the file, by its key.
type Storages<'a> = &'a dyn Fn(&str) -> std::result::Result<Range<usize>, String>;

/// The tensors of the dictionary that a pickle stands for.
fn tensors_of(pickle: &Pickle, storages: Storages) -> std::result::Result<Tensors, String> {
    let mut dict = pickle.root;
    for _ in 0..MAX_WRAPPERS {
        match wrapped(pickle, dict) {
            Some(inner) => dict = inner,
            None => break,
        }
    }
    let Value::Dict(items) = pickle.value(dict) else {
        return Err("expected a dictionary of tensors, found something else".to_string());
    };
    // Of two entries with one key the later counts, as in Python.
    let mut named: HashMap<&str, (Rebuild, Id)> = HashMap::new();
    for &(key, value) in items {
        if let (Some(key), &Value::Tensor(rebuild, arguments)) =
            (pickle.text(key), pickle.value(value))
        {
            named.insert(key, (rebuild, arguments));
        }
    }
    if named.is_empty() && !items.is_empty() {
        return Err(format!(
            "expected a dictionary of tensors, found none among its {} entries",
            items.len()
        ));
    }
    let mut tensors = Tensors::new();
    for (name, (rebuild, arguments)) in named {
        let view = view_of(pickle, rebuild, arguments, storages).map_err(|message| {
            format!(
                "tensor {} {message}",
                name.chars().take(200).collect::<String>()
            )
        })?;
        tensors.insert(name.to_string(), view);
    }
    Ok(tensors)
}

/// The dictionary of tensors in one that holds it under a usual name.
fn wrapped(pickle: &Pickle, dict: Id) -> Option<Id> {
    let Value::Dict(items) = pickle.value(dict) else {
        return None;
    };
    WRAPPERS.iter().find_map(|wrapper| {
        let (_, inner) = items
            .iter()
            .rev()
            .find(|(key, _)| pickle.text(*key) == Some(wrapper))?;
        matches!(pickle.value(*inner), Value::Dict(_)).then_some(*inner)
    })
}

fn view_of(
    pickle: &Pickle,
    mut rebuild: Rebuild,
    mut arguments: Id,
    storages: Storages,
) -> std::result::Result<View, String> {
    let unusual = || "is put together in a way that torch.save does not use".to_string();
    for _ in 0..MAX_REBUILDS {
        let items = pickle.items(arguments).ok_or_else(unusual)?;
        match (rebuild, items) {
            (Rebuild::Parameter, [inner, ..]) => match pickle.value(*inner) {
                &Value::Tensor(inner, inner_arguments) => {
                    (rebuild, arguments) = (inner, inner_arguments)
                }
                _ => return Err(unusual()),
            },
            (Rebuild::FromType, [function, _, inner, ..]) => match pickle.value(*function) {
                Value::Name(Name::Rebuild(function)) => (rebuild, arguments) = (*function, *inner),
                _ => return Err(unusual()),
            },
            (Rebuild::Tensor, [storage, offset, shape, strides, ..]) => {
                return strided(
                    pickle,
                    *storage,
                    None,
                    [*offset, *shape, *strides],
                    storages,
                );
            }
            (Rebuild::TypedTensor, [storage, offset, shape, strides, _, _, scalar, ..]) => {
                let Value::Name(Name::ScalarType(scalar)) = pickle.value(*scalar) else {
                    return Err(unusual());
                };
                return strided(
                    pickle,
                    *storage,
                    Some(scalar),
                    [*offset, *shape, *strides],
                    storages,
                );
            }
            _ => return Err(unusual()),
        }
    }
    Err(unusual())
}

fn strided(
    pickle: &Pickle,
    storage: Id,
    scalar: Option<&ElementType>,
    [offset, shape, strides]: [Id; 3],
    storages: Storages,
) -> std::result::Result<View, String> {
    let storage = match pickle.value(storage) {
        Value::Storage(id) => Storage::of(pickle, *id)?,
        _ => return Err("has no storage".to_string()),
    };
    let place = storages(storage.key)?;
    let element_type = match (scalar, &storage.element_type) {
        (Some(scalar), _) => scalar.clone(),
        (None, Some(element_type)) => element_type.clone(),
        (None, None) => ElementType::U8,
    };
    // An untyped storage counts bytes.
    let numel = match (&storage.element_type, element_type.bytes_of(1)) {
        (None, Some(size)) => storage.numel / size as usize,
        _ => storage.numel,
    };
    let numbers = |id: Id| -> std::result::Result<Vec<usize>, String> {
        let items = pickle.items(id).ok_or("has a shape that is no tuple")?;
        // The view allows fewer.
        let items = items.iter().take(16);
        items
            .map(|item| pickle.size(*item))
            .collect::<Option<_>>()
            .ok_or_else(|| "has a shape or strides that are not sizes".to_string())
    };
    let offset = pickle
        .size(offset)
        .ok_or("has an offset that is not a size")?;
    View::new(
        element_type,
        place,
        numel,
        offset,
        numbers(shape)?,
        numbers(strides)?,
    )
}

/// The persistent id of a storage.
struct Storage<'a> {
    /// `None` for plain bytes.
    element_type: Option<ElementType>,
    key: &'a str,
    numel: usize,
}

impl<'a> Storage<'a> {
    fn of(pickle: &'a Pickle, id: Id) -> std::result::Result<Self, String> {
        let items = pickle.items(id).unwrap_or_default();
        let [kind, storage_type, key, _location, numel, rest @ ..] = items else {
            return Err("has a storage that is not (type, key, location, size)".to_string());
        };
        if pickle.text(*kind) != Some("storage") {
            return Err("has a persistent id that is not a storage".to_string());
        }
        // The older format allows for storages that are parts of others.
        if !rest
            .iter()
            .all(|id| matches!(pickle.value(*id), Value::None))
        {
            return Err(
                "has a storage that is a part of another, which this program does not read"
                    .to_string(),
            );
        }
        let element_type = match pickle.value(*storage_type) {
            Value::Name(Name::StorageType(element_type)) => Some(element_type.clone()),
            Value::Name(Name::UntypedStorage) => None,
            _ => return Err("has a storage of no known type".to_string()),
        };
        match (pickle.text(*key), pickle.size(*numel)) {
            (Some(key), Some(numel)) => Ok(Self {
                element_type,
                key,
                numel,
            }),
            _ => Err("has a storage without key or size".to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
