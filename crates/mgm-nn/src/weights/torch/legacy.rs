//! The format of torch before 1.6 (and of `_use_new_zipfile_serialization=False`): pickles of a magic number, a version, the
//! machine and the tensors, one of the storages' keys, then the storages in that order, each after its number of elements.

use std::collections::HashMap;
use std::ops::Range;

use super::pickle::{self, Pickle, Value};
use super::{Storage, Tensors, tensors_of};

/// `PROTO 2, LONG1 10 bytes` and torch's number 0x1950a86a20f9469cfc6c.
const BEGINNING: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
const VERSION: usize = 1001;

pub(super) fn is_legacy(bytes: &[u8]) -> bool {
    bytes.starts_with(BEGINNING)
}

/// The tensors of a file that [`is_legacy`].
pub(super) fn read(bytes: &[u8]) -> Result<Tensors, String> {
    let mut position = 0;
    let mut next = || -> Result<Pickle<'_>, String> {
        let pickle = pickle::read(&bytes[position..])
            .map_err(|message| format!("at byte {position}, {message}"))?;
        position += pickle.len;
        Ok(pickle)
    };
    next()?;
    let version = next()?;
    if version.size(version.root) != Some(VERSION) {
        return Err(format!(
            "expected version {VERSION} of torch's older format"
        ));
    }
    let machine = next()?;
    if little_endian(&machine) == Some(false) {
        return Err("expected little-endian storages, found big-endian ones".to_string());
    }
    let tensors = next()?;
    let keys = next()?;
    let sizes = element_sizes(&tensors);
    let mut places: HashMap<&str, Range<usize>> = HashMap::new();
    for &key in keys.items(keys.root).unwrap_or_default() {
        let key = keys.text(key).ok_or("a storage's key is not a text")?;
        let size = *sizes
            .get(key)
            .ok_or_else(|| format!("no tensor says of which type the storage {key} is"))?;
        let numel = bytes
            .get(position..)
            .and_then(<[u8]>::first_chunk)
            .map(|numel| u64::from_le_bytes(*numel));
        position = position.saturating_add(8);
        let end = numel
            .and_then(|numel| usize::try_from(numel).ok())
            .and_then(|numel| numel.checked_mul(size))
            .and_then(|len| position.checked_add(len))
            .filter(|end| *end <= bytes.len());
        let Some(end) = end else {
            return Err(format!("truncated: the file ends inside the storage {key}"));
        };
        places.insert(key, position..end);
        position = end;
    }
    tensors_of(&tensors, &|key| {
        places
            .get(key)
            .cloned()
            .ok_or_else(|| format!("needs the storage {key}, which the file does not hold"))
    })
}

fn little_endian(machine: &Pickle) -> Option<bool> {
    let Value::Dict(items) = machine.value(machine.root) else {
        return None;
    };
    let (_, value) = items
        .iter()
        .find(|(key, _)| machine.text(*key) == Some("little_endian"))?;
    match machine.value(*value) {
        Value::Bool(value) => Some(*value),
        _ => None,
    }
}

/// Bytes of an element of each storage that the pickle mentions, by key.
fn element_sizes<'a>(pickle: &'a Pickle) -> HashMap<&'a str, usize> {
    let storages = pickle.values().filter_map(|value| match value {
        Value::Storage(id) => Storage::of(pickle, *id).ok(),
        _ => None,
    });
    storages
        .filter_map(|storage| {
            let size = match &storage.element_type {
                Some(element_type) => element_type.bytes_of(1)? as usize,
                None => 1,
            };
            Some((storage.key, size))
        })
        .collect()
}
