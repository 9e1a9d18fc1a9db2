//! Importance matrices of llama.cpp: for each weight matrix the mean square of what each of its input features was
//! multiplied with. Quantisers use them to make the errors small that count.

use std::collections::HashMap;
use std::path::Path;

use mgm_kernels::mapped::Mapped;

use super::gguf::GgufFile;
use super::mapped_file::{self, MappedFile};
use crate::{Error, Result};

/// Names of tensors in GGUF importance matrices end in these.
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// An importance matrix, from a file of either kind that llama.cpp writes: the older `.dat` and the newer `.gguf`.
#[derive(Clone, Debug, Default)]
pub struct ImportanceMatrix {
    entries: HashMap<String, Vec<f32>>,
}

impl ImportanceMatrix {
    /// Reads a file. Every value is checked: finite and not negative.
    pub fn read(path: &Path) -> Result<Self> {
        Self::from_mapped(path.display().to_string(), mapped_file::map(path)?)
    }

    /// [`ImportanceMatrix::read`] from bytes in memory; `label` stands for the file in messages.
    pub fn from_bytes(label: impl Into<String>, bytes: Vec<u8>) -> Result<Self> {
        Self::from_mapped(label.into(), Mapped::from_vec(bytes))
    }

    fn from_mapped(label: String, file: MappedFile) -> Result<Self> {
        let bytes: &[u8] = (*file).as_ref();
        let entries = if bytes.starts_with(b"GGUF") {
            gguf_entries(label.clone(), file)?
        } else {
            legacy_entries(bytes).map_err(|message| Error::format(&label, message))?
        };
        if entries.is_empty() {
            return Err(Error::format(
                label,
                "an importance matrix without any entry",
            ));
        }
        for (name, values) in &entries {
            let unusable = values
                .iter()
                .position(|value| !value.is_finite() || *value < 0.0);
            if let Some(index) = unusable {
                return Err(Error::format(
                    label,
                    format!(
                        "{name}: importance {index} is {}, expected a finite value of at least 0",
                        values[index]
                    ),
                ));
            }
        }
        Ok(Self { entries })
    }

    /// Importances of the input features of a tensor, by its GGUF name such as `blk.0.attn_q.weight`. For a stack of experts
    /// those of one expert after another.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.entries.get(name).map(Vec::as_slice)
    }

    /// Names of the tensors, in alphabetical order.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.entries.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }
}

fn gguf_entries(label: String, file: MappedFile) -> Result<HashMap<String, Vec<f32>>> {
    let file = GgufFile::from_mapped(label, file)?;
    let kind = file.metadata().string("general.type").unwrap_or_default();
    if kind != "imatrix" {
        return Err(Error::format(
            file.label(),
            format!("not an importance matrix: expected general.type \"imatrix\", found {kind:?}"),
        ));
    }
    let values = |name: &str| -> Result<Vec<f32>> {
        let tensor = file.get(name)?.ok_or_else(|| Error::Missing {
            name: name.to_string(),
            searched: file.label().to_string(),
        })?;
        tensor.values()?.ok_or_else(|| Error::Type {
            file: file.label().to_string(),
            name: name.to_string(),
            expected: "F32",
            found: tensor.kind.name().to_string(),
        })
    };
    let mut entries = HashMap::new();
    let names = file.names().filter_map(|name| name.strip_suffix(SUMS));
    for name in names {
        let mut means = values(&format!("{name}{SUMS}"))?;
        let counts = values(&format!("{name}{COUNTS}"))?;
        if counts.is_empty() || !means.len().is_multiple_of(counts.len()) {
            return Err(Error::format(
                file.label(),
                format!(
                    "{name}: {} sums do not belong to {} counts",
                    means.len(),
                    counts.len()
                ),
            ));
        }
        let width = means.len() / counts.len();
        for (means, count) in means.chunks_mut(width.max(1)).zip(counts) {
            if count > 0.0 {
                means.iter_mut().for_each(|mean| *mean /= count);
            } else {
                // An expert that the text never reached: nothing is known, all features count the same.
                means.fill(1.0);
            }
        }
        entries.insert(name.to_string(), means);
    }
    Ok(entries)
}

/// The older layout, little-endian: i32 entries; for each: i32 length and bytes of the name, i32 calls, i32 values, the
/// f32 values summed over the calls; then, in later files, i32 chunks, i32 length and bytes of the text's name.
fn legacy_entries(bytes: &[u8]) -> std::result::Result<HashMap<String, Vec<f32>>, String> {
    let mut rest = bytes;
    let count = take_count(&mut rest, "entries", 12)?;
    let mut entries = HashMap::new();
    for index in 0..count {
        let len = take_count(&mut rest, "characters of a name", 1)?;
        let name = take(&mut rest, len, "name")?;
        let name = std::str::from_utf8(name)
            .map_err(|_| format!("the name of entry {index} is not UTF-8"))?
            .to_string();
        let calls = take_i32(&mut rest, &name)?;
        let len = take_count(&mut rest, &name, 4)?;
        let (values, _) = take(&mut rest, 4 * len, &name)?.as_chunks::<4>();
        let divisor = if calls > 0 { calls as f32 } else { 1.0 };
        let values = values
            .iter()
            .map(|&value| f32::from_le_bytes(value) / divisor)
            .collect();
        if entries.insert(name.clone(), values).is_some() {
            return Err(format!("{name} is there twice"));
        }
    }
    if !rest.is_empty() {
        take_i32(&mut rest, "chunks")?;
        let len = take_i32(&mut rest, "text's name")?;
        if usize::try_from(len) != Ok(rest.len()) {
            return Err(format!(
                "not an importance matrix: {} bytes follow the entries, expected a name of {len}",
                rest.len()
            ));
        }
    }
    Ok(entries)
}

fn take<'a>(rest: &mut &'a [u8], len: usize, what: &str) -> std::result::Result<&'a [u8], String> {
    let (taken, after) = rest.split_at_checked(len).ok_or_else(|| {
        format!(
            "not an importance matrix, or truncated: {what} needs {len} bytes, {} are left",
            rest.len()
        )
    })?;
    *rest = after;
    Ok(taken)
}

fn take_i32(rest: &mut &[u8], what: &str) -> std::result::Result<i32, String> {
    let mut word = [0; 4];
    word.copy_from_slice(take(rest, 4, what)?);
    Ok(i32::from_le_bytes(word))
}

/// A positive count of things of at least `size` bytes each, which the rest of the file must hold.
fn take_count(rest: &mut &[u8], what: &str, size: usize) -> std::result::Result<usize, String> {
    let count = take_i32(rest, what)?;
    let most = rest.len() / size;
    match usize::try_from(count) {
        Ok(found) if (1..=most).contains(&found) => Ok(found),
        _ => Err(format!(
            "not an importance matrix, or truncated: {what}: found a count of {count}, expected 1 to {most}"
        )),
    }
}

#[cfg(test)]
#[path = "imatrix_tests.rs"]
mod tests;
