//! A tree of named weights.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Display;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use mgm_kernels::quant::Bytes;

use super::element_type::TensorInfo;
use super::gguf::{GgufFile, GgufMetadata};
use super::index;
use super::kept::KeptMatrices;
use super::layer::{Entry, Layer};
use super::parameters::Parameters;
use super::policy::WeightPolicy;
use super::random::RandomTensors;
use super::safetensors_file::SafetensorsFile;
use super::stored::StoredTensor;
use super::torch::TorchFile;
use crate::{Error, Result};

/// Whether a linear layer has a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// It has none; one in the source is not used.
    No,
    /// It must have one.
    Yes,
    /// It has one if the source does.
    IfPresent,
}

/// Weights by name, with a position in the tree of names. Cheap to clone.
#[derive(Clone)]
pub struct WeightSource {
    shared: Arc<Shared>,
    prefix: String,
}

struct Shared {
    layers: Vec<Arc<Layer>>,
    policy: WeightPolicy,
    parameters: Parameters,
    kept: Option<Arc<KeptMatrices>>,
}

/// A stored tensor and where it was found.
pub(super) struct Found {
    pub(super) tensor: StoredTensor,
    pub(super) name: String,
    pub(super) file: String,
    /// `None` for a tensor that was made, not found.
    layer: Option<Arc<Layer>>,
}

impl Found {
    /// A tensor that is in no layer.
    pub(super) fn made(name: &str, tensor: StoredTensor) -> Self {
        Self {
            tensor,
            name: name.to_string(),
            file: "memory".to_string(),
            layer: None,
        }
    }

    /// Gives the tensor's mapped pages back to the system: for tensors that were copied and are not needed as stored any more.
    pub(super) fn release(&self) {
        if let Some(layer) = &self.layer {
            layer.release(&self.name);
        }
    }

    /// All values, after which the file's pages are not needed any more.
    pub(super) fn into_values(self) -> Result<Vec<f32>> {
        let values = self.values()?;
        self.release();
        Ok(values)
    }

    pub(super) fn values(&self) -> Result<Vec<f32>> {
        self.tensor.values()?.ok_or_else(|| self.type_error())
    }

    fn type_error(&self) -> Error {
        Error::Type {
            file: self.file.clone(),
            name: self.name.clone(),
            expected: "F32, F16, BF16, F64 or a GGML block type this program reads",
            found: self.tensor.kind.name().to_string(),
        }
    }

    pub(super) fn check_shape(&self, expected: &[usize]) -> Result<()> {
        if self.tensor.shape == expected {
            return Ok(());
        }
        Err(self.shape_error(expected))
    }

    pub(super) fn shape_error(&self, expected: &[usize]) -> Error {
        Error::Shape {
            file: self.file.clone(),
            name: self.name.clone(),
            expected: expected.to_vec(),
            found: self.tensor.shape.clone(),
        }
    }
}

impl WeightSource {
    fn from_layers(layers: Vec<Arc<Layer>>) -> Self {
        let shared = Shared {
            layers,
            policy: WeightPolicy::default(),
            parameters: Parameters::default(),
            kept: None,
        };
        Self {
            shared: Arc::new(shared),
            prefix: String::new(),
        }
    }

    /// Safetensors files, or index files (`….index.json`) that name them; of two tensors with one name the later file's
    /// is used. Files are mapped, not read.
    pub fn from_safetensors(paths: &[PathBuf]) -> Result<Self> {
        Self::from_files(paths, |path| {
            Ok(Layer::Safetensors(SafetensorsFile::open(path)?))
        })
    }

    /// The files, or those that index files among them name.
    fn from_files(paths: &[PathBuf], open: impl Fn(&Path) -> Result<Layer>) -> Result<Self> {
        let mut layers = Vec::new();
        for path in paths {
            match path.extension() {
                Some(extension) if extension == "json" => layers.extend(index::open(path, &open)?),
                _ => layers.push(Arc::new(open(path)?)),
            }
        }
        Ok(Self::from_layers(layers))
    }

    /// A GGUF file, version 2 or 3. Tensors of text models appear under their Hugging Face names and in that layout.
    pub fn from_gguf(path: &Path) -> Result<Self> {
        Ok(Self::from_layers(vec![Arc::new(Layer::Gguf(
            GgufFile::open(path)?,
        ))]))
    }

    /// Torch `.bin`/`.pt`/`.pth` files, or index files that name them.
    pub fn from_torch(paths: &[PathBuf]) -> Result<Self> {
        Self::from_files(paths, |path| Ok(Layer::Torch(TorchFile::open(path)?)))
    }

    /// The checkpoint in a directory: `model.safetensors.index.json`, else all `*.safetensors`, else
    /// `pytorch_model.bin.index.json`, else all `pytorch_model*.bin`, else a single `*.gguf`.
    pub fn from_directory(directory: &Path) -> Result<Self> {
        let entries = std::fs::read_dir(directory).map_err(|source| Error::Io {
            path: directory.to_path_buf(),
            action: "listing",
            source,
        })?;
        let mut files: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        files.sort();
        let name = |path: &PathBuf| {
            path.file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default()
        };
        let with = |keep: &dyn Fn(&str) -> bool| -> Vec<PathBuf> {
            files
                .iter()
                .filter(|path| keep(&name(path)))
                .cloned()
                .collect()
        };
        let index = with(&|name| name == "model.safetensors.index.json");
        if !index.is_empty() {
            return Self::from_safetensors(&index);
        }
        let safetensors = with(&|name| name.ends_with(".safetensors") && !name.starts_with('.'));
        if !safetensors.is_empty() {
            return Self::from_safetensors(&safetensors);
        }
        let index = with(&|name| name == "pytorch_model.bin.index.json");
        if !index.is_empty() {
            return Self::from_torch(&index);
        }
        let torch = with(&|name| name.starts_with("pytorch_model") && name.ends_with(".bin"));
        if !torch.is_empty() {
            return Self::from_torch(&torch);
        }
        match with(&|name| name.ends_with(".gguf")).as_slice() {
            [single] => Self::from_gguf(single),
            [] => Err(Error::format(
                directory.display().to_string(),
                "no weights: expected *.safetensors, pytorch_model*.bin or one *.gguf",
            )),
            several => Err(Error::format(
                directory.display().to_string(),
                format!(
                    "expected one *.gguf, found {}; name the file",
                    several.len()
                ),
            )),
        }
    }

    /// Any of the above by what the path is.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Self::from_directory(path);
        }
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        if name.ends_with(".gguf") {
            Self::from_gguf(path)
        } else if [".bin", ".pt", ".pth", ".bin.index.json"]
            .iter()
            .any(|end| name.ends_with(end))
        {
            Self::from_torch(&[path.to_path_buf()])
        } else {
            Self::from_safetensors(&[path.to_path_buf()])
        }
    }

    /// Tensors in memory.
    pub fn from_tensors(tensors: HashMap<String, Tensor>) -> Self {
        Self::from_layers(vec![Arc::new(Layer::Tensors {
            label: "memory".to_string(),
            tensors,
        })])
    }

    /// Tensors made from a seed when they are asked for.
    pub fn from_random(tensors: RandomTensors) -> Self {
        Self::from_layers(vec![Arc::new(Layer::Random(tensors))])
    }

    /// Lays `other` over this source: its tensors win. Policy, parameters and position are this one's.
    pub fn overlay(self, other: Self) -> Self {
        let layers = self
            .shared
            .layers
            .iter()
            .chain(&other.shared.layers)
            .cloned()
            .collect();
        self.with_layers(layers)
    }

    /// The same tensors under other names: `map` gets full names and gives the new one, or `None` to hide a tensor. Of two tensors of one
    /// file that get the same name, the one whose old name comes first stays. Policy, parameters and position are this source's.
    pub fn renamed(self, map: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        let layers = self.shared.layers.iter();
        let layers = layers.map(|layer| Arc::new(layer.renamed(&map))).collect();
        self.with_layers(layers)
    }

    fn with_layers(self, layers: Vec<Arc<Layer>>) -> Self {
        let shared = &self.shared;
        Self {
            shared: Arc::new(Shared {
                layers,
                policy: shared.policy.clone(),
                parameters: shared.parameters.clone(),
                kept: shared.kept.clone(),
            }),
            prefix: self.prefix,
        }
    }

    /// The same tensors under another policy, with an empty registry of parameters.
    pub fn with_policy(self, policy: WeightPolicy) -> Self {
        Self {
            shared: Arc::new(Shared {
                layers: self.shared.layers.clone(),
                policy,
                parameters: Parameters::default(),
                kept: self.shared.kept.clone(),
            }),
            prefix: self.prefix,
        }
    }

    /// The same tensors, whose matrices are taken from a file that keeps them or written to it when they are made.
    pub fn with_kept(self, kept: Arc<KeptMatrices>) -> Self {
        Self {
            shared: Arc::new(Shared {
                layers: self.shared.layers.clone(),
                policy: self.shared.policy.clone(),
                parameters: self.shared.parameters.clone(),
                kept: Some(kept),
            }),
            prefix: self.prefix,
        }
    }

    pub(super) fn kept(&self) -> Option<&KeptMatrices> {
        self.shared.kept.as_deref()
    }

    /// What becomes of the weights.
    pub fn policy(&self) -> &WeightPolicy {
        &self.shared.policy
    }

    /// Device of the tensors that come out.
    pub fn device(&self) -> &Device {
        &self.shared.policy.device
    }

    /// The trainable variables handed out so far, by full name.
    pub fn parameters(&self) -> &Parameters {
        &self.shared.parameters
    }

    /// Metadata of the last GGUF file of the source.
    pub fn gguf_metadata(&self) -> Option<&GgufMetadata> {
        self.shared
            .layers
            .iter()
            .rev()
            .find_map(|layer| layer.gguf_metadata())
    }

    /// `__metadata__` of all safetensors files together, later files winning.
    pub fn safetensors_metadata(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        for layer in &self.shared.layers {
            all.extend(layer.safetensors_metadata().cloned().unwrap_or_default());
        }
        all
    }

    /// The position one level further down: `pp("layers").pp(3)`.
    pub fn pp(&self, name: impl Display) -> Self {
        Self {
            shared: self.shared.clone(),
            prefix: self.full_name(&name.to_string()),
        }
    }

    /// The names passed to [`pp`](Self::pp) so far, joined by dots.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Full checkpoint name of `name` at this position.
    pub fn full_name(&self, name: &str) -> String {
        match (self.prefix.is_empty(), name.is_empty()) {
            (true, _) => name.to_string(),
            (false, true) => self.prefix.clone(),
            (false, false) => format!("{}.{name}", self.prefix),
        }
    }

    /// Full names of all tensors below this position, in order.
    pub fn names(&self) -> Vec<String> {
        let below = if self.prefix.is_empty() {
            String::new()
        } else {
            format!("{}.", self.prefix)
        };
        let names: BTreeSet<&String> = self
            .shared
            .layers
            .iter()
            .flat_map(|layer| layer.names())
            .filter(|name| name.starts_with(&below))
            .collect();
        names.into_iter().cloned().collect()
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.shape(name).is_some()
    }

    /// Shape of a tensor, if there is one of this name.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let name = self.full_name(name);
        let (_, entry) = self.winner(&name)?;
        Some(entry.shape.to_vec())
    }

    /// Shape, element type, size and file of a tensor, if there is one of this name.
    pub fn info(&self, name: &str) -> Option<TensorInfo> {
        let name = self.full_name(name);
        let (layer, entry) = self.winner(&name)?;
        Some(TensorInfo {
            shape: entry.shape.to_vec(),
            element_type: entry.element_type,
            bytes: entry.bytes.unwrap_or(0),
            file: layer.label().to_string(),
        })
    }

    /// The topmost layer that holds a tensor, by full name.
    fn winner(&self, full_name: &str) -> Option<(&Layer, Entry<'_>)> {
        let mut layers = self.shared.layers.iter().rev();
        layers.find_map(|layer| Some((&**layer, layer.entry(full_name)?)))
    }

    /// Rows of the first axis as `f32`, `[rows.len(), product of the other axes]` row-major. Only these are read and decoded.
    ///
    /// # Errors
    /// When there is no such tensor, it has fewer rows (a scalar has one), or its type does not become `f32`.
    pub fn rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        let name = self.full_name(name);
        let Some((layer, entry)) = self.winner(&name) else {
            return Err(self.missing(&name));
        };
        let count = entry.shape.first().copied().unwrap_or(1);
        if rows.start > rows.end || rows.end > count {
            return Err(Error::format(
                layer.label(),
                format!("tensor {name} has {count} rows, asked for {rows:?}"),
            ));
        }
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let Some(tensor) = layer.rows(&name, rows)? else {
            return Err(self.missing(&name));
        };
        let found = Found {
            file: layer.label().to_string(),
            layer: None,
            tensor,
            name,
        };
        found.values()
    }

    /// The elements as stored, row-major and little-endian: the mapped bytes of the file, or a copy where its order differs.
    ///
    /// # Errors
    /// When there is no such tensor, or it is in memory with a type that no file has.
    pub fn stored_bytes(&self, name: &str) -> Result<Bytes> {
        let found = self.require(&self.full_name(name))?;
        found.tensor.bytes()?.ok_or_else(|| found.type_error())
    }

    /// Gives a tensor's mapped pages back to the system, so that they no longer count as this process's memory. They are read again
    /// when the tensor is used again. Where there is no such tensor, or it is in memory, nothing happens.
    pub fn release(&self, name: &str) {
        let name = self.full_name(name);
        if let Some((layer, _)) = self.winner(&name) {
            layer.release(&name);
        }
    }

    /// The files of the source, lowest first: of two tensors with one name, the one of the later file is used.
    pub fn files(&self) -> Vec<String> {
        let layers = self.shared.layers.iter();
        layers.map(|layer| layer.label().to_string()).collect()
    }

    pub(super) fn find(&self, full_name: &str) -> Result<Option<Found>> {
        for layer in self.shared.layers.iter().rev() {
            if let Some(tensor) = layer.get(full_name)? {
                return Ok(Some(Found {
                    tensor,
                    name: full_name.to_string(),
                    file: layer.label().to_string(),
                    layer: Some(layer.clone()),
                }));
            }
        }
        Ok(None)
    }

    pub(super) fn require(&self, full_name: &str) -> Result<Found> {
        self.find(full_name)?.ok_or_else(|| self.missing(full_name))
    }

    pub(super) fn missing_tensor(&self, name: &str) -> Error {
        self.missing(&self.full_name(name))
    }

    /// The same source with the position at the top of the tree.
    pub(super) fn at_root(mut self) -> Self {
        self.prefix = String::new();
        self
    }

    pub(super) fn with_layer(self, layer: Layer) -> Self {
        let mut layers = self.shared.layers.clone();
        layers.push(Arc::new(layer));
        self.with_layers(layers)
    }

    fn missing(&self, full_name: &str) -> Error {
        let files = self.files();
        let searched = match files.as_slice() {
            [] => "an empty source".to_string(),
            [first, .., last] if files.len() > 3 => {
                format!("{} files from {first} to {last}", files.len())
            }
            few => few.join(", "),
        };
        Error::Missing {
            name: full_name.to_string(),
            searched,
        }
    }

    /// The tensor as `f32`, which must have this shape; a trainable one is registered and comes out as its variable.
    pub fn tensor(&self, name: &str, shape: impl AsRef<[usize]>) -> Result<Tensor> {
        self.load(&self.full_name(name), Some(shape.as_ref()))
    }

    /// The tensor as `f32`, whatever its shape.
    pub fn tensor_any(&self, name: &str) -> Result<Tensor> {
        self.load(&self.full_name(name), None)
    }

    fn load(&self, name: &str, shape: Option<&[usize]>) -> Result<Tensor> {
        let found = self.require(name)?;
        if let Some(shape) = shape {
            found.check_shape(shape)?;
        }
        let shape = found.tensor.shape.clone();
        let tensor = self.upload(found.into_values()?, &shape)?;
        if self.policy().is_trainable(name) {
            return Ok(self
                .parameters()
                .register(name, &tensor)?
                .as_tensor()
                .clone());
        }
        Ok(tensor)
    }

    pub(super) fn upload(&self, values: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
        Ok(Tensor::from_vec(values, shape, self.device())?)
    }
}
