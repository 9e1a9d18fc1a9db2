//! Matrices kept in a file in the very order in which the kernels read them: a model that is loaded again maps them instead of packing.
//!
//! The file is the matrices one after another, each at a multiple of 64 bytes, then an index (JSON), its length and a mark. It is this
//! program's own and for one machine: it holds what it was made of, and is made anew when that has changed.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use mgm_kernels::STORED_LAYOUT;
use mgm_kernels::gemm::{PackedWeight, WeightType};
use mgm_kernels::int8::Int8Weight;
use mgm_kernels::quant::{Bytes, QuantError, QuantType, QuantWeight, prefers_interleaved};
use serde::{Deserialize, Serialize};

use super::mapped_file::{self, MappedFile};
use super::policy::WeightStorage;
use super::save::partial_path;
use crate::{Error, FrozenWeight, Result};

/// The end of such a file.
const MARK: &[u8; 8] = b"mgm-kept";
/// Matrices begin at a multiple of this.
const ALIGN: u64 = 64;

/// How a matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Form {
    /// Panels of floats.
    F32,
    /// Panels of floats.
    F16,
    /// Panels of floats.
    Bf16,
    /// Panels of 8 bits.
    Int8,
    /// Blocks side by side, by their number in GGUF files.
    Blocks(u32),
    /// The same, whose products with many rows are in 8 bits.
    BlocksInt8(u32),
}

impl Form {
    pub(crate) fn of_floats(weight_type: WeightType) -> Self {
        match weight_type {
            WeightType::F32 => Self::F32,
            WeightType::F16 => Self::F16,
            WeightType::Bf16 => Self::Bf16,
        }
    }

    /// The matrix whose bytes were kept.
    fn weight(
        self,
        n: usize,
        k: usize,
        bytes: Bytes,
    ) -> Option<std::result::Result<Arc<FrozenWeight>, QuantError>> {
        let floats = |weight_type, bytes| {
            PackedWeight::from_stored(n, k, weight_type, bytes).map(FrozenWeight::packed)
        };
        let blocks = |id, bytes| {
            let quant_type = QuantType::from_ggml(id)?;
            Some(QuantWeight::from_interleaved(quant_type, n, k, bytes))
        };
        Some(match self {
            Self::F32 => floats(WeightType::F32, bytes),
            Self::F16 => floats(WeightType::F16, bytes),
            Self::Bf16 => floats(WeightType::Bf16, bytes),
            Self::Int8 => Int8Weight::from_stored(n, k, bytes).map(FrozenWeight::int8),
            Self::Blocks(id) => blocks(id, bytes)?.map(FrozenWeight::quantised),
            Self::BlocksInt8(id) => blocks(id, bytes)?.map(FrozenWeight::quantised_int8),
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Index {
    /// What the matrices were made of, and how.
    origin: String,
    matrices: BTreeMap<String, Entry>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Entry {
    form: Form,
    rows: usize,
    columns: usize,
    offset: u64,
    bytes: u64,
}

/// The file of kept matrices of one model in one storage: read where it is there, else written while the model is loaded.
pub struct KeptMatrices {
    path: PathBuf,
    state: Mutex<State>,
}

enum State {
    Reading {
        map: MappedFile,
        matrices: BTreeMap<String, Entry>,
    },
    Writing(Writer),
    Failed(Error),
    /// Written, or not wanted.
    Done,
}

struct Writer {
    file: BufWriter<File>,
    partial: PathBuf,
    at: u64,
    index: Index,
}

impl KeptMatrices {
    /// Opens the file at `path` if it was made of `files` in this storage by this layout; otherwise a new one is begun beside it, which
    /// [`Self::finish`] gives the name.
    ///
    /// # Errors
    /// When one of `files` cannot be looked at, there is something else at `path`, or the new file cannot be begun.
    pub fn open(path: &Path, files: &[PathBuf], storage: WeightStorage) -> Result<Self> {
        let origin = origin(files, storage)?;
        let state = match read_index(path)? {
            Some((map, index)) if index.origin == origin => {
                map.will_need();
                State::Reading {
                    map,
                    matrices: index.matrices,
                }
            }
            _ => State::Writing(Writer::begin(path, origin)?),
        };
        Ok(Self {
            path: path.to_path_buf(),
            state: Mutex::new(state),
        })
    }

    /// Where the file is, or will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the matrices are there already.
    pub fn is_ready(&self) -> bool {
        matches!(*self.state(), State::Reading { .. })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The matrix of this name, if it was kept.
    pub(super) fn find(&self, name: &str, n: usize, k: usize) -> Result<Option<Arc<FrozenWeight>>> {
        let state = self.state();
        let State::Reading { map, matrices } = &*state else {
            return Ok(None);
        };
        let Some(entry) = matrices.get(name) else {
            return Ok(None);
        };
        let damaged = |why: String| {
            Error::format(
                self.path.display().to_string(),
                format!("matrix {name}: {why}; remove the file to have it made anew"),
            )
        };
        if (entry.rows, entry.columns) != (n, k) {
            let found = format!(
                "expected [{n}, {k}], found [{}, {}]",
                entry.rows, entry.columns
            );
            return Err(damaged(found));
        }
        let range = entry.offset as usize..entry.offset.saturating_add(entry.bytes) as usize;
        let bytes = Bytes::slice(map.clone(), range).map_err(|error| damaged(error.to_string()))?;
        match entry.form.weight(n, k, bytes) {
            Some(weight) => weight.map(Some).map_err(|error| damaged(error.to_string())),
            None => Err(damaged(format!("unknown form {:?}", entry.form))),
        }
    }

    /// Writes a matrix that was made. What fails is told by [`Self::finish`].
    pub(super) fn keep(&self, name: &str, weight: &FrozenWeight) {
        let mut state = self.state();
        if let State::Writing(writer) = &mut *state
            && let Some((form, bytes)) = weight.stored()
            && let Err(error) = writer.append(name, form, weight, bytes)
        {
            *state = State::Failed(error);
        }
    }

    /// Gives a file that was begun its name, once all matrices were made. Nothing happens where it was there already.
    ///
    /// # Errors
    /// When a matrix or the file could not be written; nothing is left of it then.
    pub fn finish(&self) -> Result<()> {
        let mut state = self.state();
        if matches!(*state, State::Reading { .. }) {
            return Ok(());
        }
        match std::mem::replace(&mut *state, State::Done) {
            State::Writing(writer) => writer.finish(&self.path),
            State::Failed(error) => Err(error),
            State::Reading { .. } | State::Done => Ok(()),
        }
    }
}

impl fmt::Debug for KeptMatrices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeptMatrices({})", self.path.display())
    }
}

impl Writer {
    fn begin(path: &Path, origin: String) -> Result<Self> {
        remove_abandoned(path);
        let partial = partial_path(path);
        let file = File::create(&partial).map_err(|source| Error::Io {
            path: partial.clone(),
            action: "creating",
            source,
        })?;
        Ok(Self {
            file: BufWriter::with_capacity(1 << 20, file),
            partial,
            at: 0,
            index: Index {
                origin,
                matrices: BTreeMap::new(),
            },
        })
    }

    fn append(
        &mut self,
        name: &str,
        form: Form,
        weight: &FrozenWeight,
        bytes: &[u8],
    ) -> Result<()> {
        if self.index.matrices.contains_key(name) {
            return Ok(());
        }
        let padding = self.at.next_multiple_of(ALIGN) - self.at;
        let written = self
            .file
            .write_all(&[0; ALIGN as usize][..padding as usize])
            .and_then(|()| self.file.write_all(bytes));
        written.map_err(|source| self.failed("writing", source))?;
        let entry = Entry {
            form,
            rows: weight.out_features(),
            columns: weight.in_features(),
            offset: self.at + padding,
            bytes: bytes.len() as u64,
        };
        self.at = entry.offset + entry.bytes;
        self.index.matrices.insert(name.to_string(), entry);
        Ok(())
    }

    fn failed(&self, action: &'static str, source: std::io::Error) -> Error {
        Error::Io {
            path: self.partial.clone(),
            action,
            source,
        }
    }

    fn finish(mut self, path: &Path) -> Result<()> {
        let index = serde_json::to_vec(&self.index)
            .map_err(|error| self.failed("writing the index", error.into()))?;
        let written = self
            .file
            .write_all(&index)
            .and_then(|()| self.file.write_all(&(index.len() as u64).to_le_bytes()))
            .and_then(|()| self.file.write_all(MARK))
            .and_then(|()| self.file.flush())
            .and_then(|()| self.file.get_ref().sync_all());
        written.map_err(|source| self.failed("writing", source))?;
        fs::rename(&self.partial, path).map_err(|source| self.failed("renaming", source))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Gone already when it was given its name.
        let _ = fs::remove_file(&self.partial);
    }
}

/// Removes what processes that are gone had begun to write for `path`: these files are large.
fn remove_abandoned(path: &Path) {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let begun = |found: &str| -> Option<u32> {
        let process = found.strip_prefix(&format!(".{name}."))?;
        process.strip_suffix(".partial")?.parse().ok()
    };
    // Where processes cannot be looked up, nothing is removed.
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        if let Some(process) = begun(&entry.file_name().to_string_lossy())
            && Path::new("/proc/self").exists()
            && !Path::new(&format!("/proc/{process}")).exists()
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The file and its index; nothing where there is no file.
fn read_index(path: &Path) -> Result<Option<(MappedFile, Index)>> {
    if !path.exists() {
        return Ok(None);
    }
    let map = mapped_file::map(path)?;
    let bytes = (*map).as_ref();
    let index = || {
        let rest = bytes.strip_suffix(MARK)?;
        let (rest, length) = rest.split_last_chunk::<8>()?;
        let start = rest
            .len()
            .checked_sub(u64::from_le_bytes(*length) as usize)?;
        serde_json::from_slice(&rest[start..]).ok()
    };
    match index() {
        Some(index) => Ok(Some((map.clone(), index))),
        None => Err(Error::format(
            path.display().to_string(),
            "no file of kept matrices, or a damaged one; remove it to have one made",
        )),
    }
}

/// What matrices are made of: names, sizes and times of the files, what becomes of them, and the order in which they are stored.
fn origin(files: &[PathBuf], storage: WeightStorage) -> Result<String> {
    let mut parts = vec![format!(
        "layout {STORED_LAYOUT}, {storage:?}, side by side {}",
        prefers_interleaved()
    )];
    for file in files {
        let failed = |source| Error::Io {
            path: file.clone(),
            action: "looking at",
            source,
        };
        let metadata = fs::metadata(file).map_err(failed)?;
        let changed = metadata.modified().map_err(failed)?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        parts.push(format!("{name} {} {changed:?}", metadata.len()));
    }
    Ok(parts.join("; "))
}

#[cfg(test)]
#[path = "kept_tests.rs"]
mod tests;
