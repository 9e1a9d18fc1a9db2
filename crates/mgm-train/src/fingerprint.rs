//! Hashes that name cached features: of a model's tower weights, and of pictures.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use mini_gemini::{MiniGemini, ModelConfig};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::TrainError;

/// Tensors of both towers have this in their names.
const TOWERS: &str = "vision_tower";

/// A header larger than this is not believed.
const HEADER_LIMIT: u64 = 256 << 20;

/// A hash of everything that decides what a model's towers see: their weights and the keys of `config.json` they read. A model that shares the
/// towers of another (whatever its language model) shares its fingerprint.
pub(crate) fn towers(model: &MiniGemini) -> Result<[u8; 32], TrainError> {
    let mut hash = Sha256::new();
    let config = model.config();
    hash.update(format!(
        "{:?} {:?} {:?} {:?}",
        config.mm_vision_tower,
        config.mm_vision_tower_aux,
        config.mm_vision_select_layer,
        config.mm_vision_select_feature
    ));
    for file in weight_files(model.directory(), config)? {
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors") => hash_tower_tensors(&file, &mut hash)?,
            // A language file: the towers of such a model lie in its other files.
            Some("gguf") if !file.to_string_lossy().contains("mmproj") => {}
            _ => hash_file(&file, &mut hash)?,
        }
    }
    Ok(hash.finalize().into())
}

fn weight_files(directory: &Path, config: &ModelConfig) -> Result<Vec<PathBuf>, TrainError> {
    if let Some(files) = &config.weight_files {
        return Ok(files.iter().map(|file| directory.join(file)).collect());
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory)
        .map_err(TrainError::io("read", directory))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension().is_some_and(|extension| {
                ["safetensors", "bin", "gguf"]
                    .iter()
                    .any(|known| extension == *known)
            })
        })
        .collect();
    files.sort();
    Ok(files)
}

fn hash_tower_tensors(path: &Path, hash: &mut Sha256) -> Result<(), TrainError> {
    let damaged = |message: &str| TrainError::Checkpoint {
        path: path.to_owned(),
        message: message.to_owned(),
    };
    let read_error = || TrainError::io("read", path);
    let mut file = File::open(path).map_err(read_error())?;
    let mut length = [0_u8; 8];
    file.read_exact(&mut length).map_err(read_error())?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > HEADER_LIMIT {
        return Err(damaged("the safetensors header is larger than 256 MiB"));
    }
    let mut header = vec![0_u8; header_bytes as usize];
    file.read_exact(&mut header).map_err(read_error())?;
    let header: Value = serde_json::from_slice(&header)
        .map_err(|_| damaged("the safetensors header is not JSON"))?;
    let entries = header
        .as_object()
        .ok_or_else(|| damaged("the safetensors header is not an object"))?;
    let mut towers: Vec<(&String, &Value)> = entries
        .iter()
        .filter(|(name, _)| name.contains(TOWERS))
        .collect();
    towers.sort_by_key(|(name, _)| *name);
    for (name, entry) in towers {
        let offset = |index: usize| {
            entry
                .get("data_offsets")
                .and_then(|offsets| offsets.get(index))
                .and_then(Value::as_u64)
        };
        let (Some(start), Some(end)) = (offset(0), offset(1)) else {
            return Err(damaged(&format!("tensor `{name}` has no offsets")));
        };
        hash.update(format!(
            "{name} {:?} {:?}\n",
            entry.get("dtype"),
            entry.get("shape")
        ));
        file.seek(SeekFrom::Start(8 + header_bytes + start))
            .map_err(read_error())?;
        stream(&mut (&mut file).take(end.saturating_sub(start)), hash).map_err(read_error())?;
    }
    Ok(())
}

fn hash_file(path: &Path, hash: &mut Sha256) -> Result<(), TrainError> {
    let mut file = File::open(path).map_err(TrainError::io("read", path))?;
    stream(&mut file, hash).map_err(TrainError::io("read", path))
}

fn stream(reader: &mut impl Read, hash: &mut Sha256) -> std::io::Result<()> {
    let mut buffer = vec![0_u8; 1 << 20];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(()),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// The name of a cached picture: towers, preprocessing and the picture's bytes.
pub(crate) fn picture(towers: &[u8; 32], preprocessing: &str, bytes: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(towers);
    hash.update(preprocessing);
    hash.update(bytes);
    hash.finalize()
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
