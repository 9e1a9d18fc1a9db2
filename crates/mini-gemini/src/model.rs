//! The whole model: vision, language, tokeniser, and the splice between them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use mgm_image::{PreparedImage, RgbImage};
use mgm_nn::{KeptMatrices, LoraConfig, Parameters, WeightPolicy, WeightSource, WeightStorage};
use mgm_text::{IMAGE_TOKEN, Template, Tokenizer};

use crate::checkpoint::Checkpoint;
use crate::config::{Family, GemmaNumerics, ModelConfig};
use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::memory::{Placement, WORKING_BYTES, available_memory, readable};
use crate::session::Session;
use crate::source::ModelSource;
use crate::vision::{TowerFeatures, Vision};

/// In what precision frozen weights are held. Activations are f32 on a CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// As stored: quantised blocks, bf16 and f16 stay what they are. What does not fit into memory stays in its files.
    #[default]
    Auto,
    /// f32; quantised weights are expanded.
    F32,
    /// bf16; quantised weights are expanded.
    Bf16,
    /// f16, in which the official code runs; quantised weights are expanded. Values beyond ±65504 become infinite.
    F16,
    /// 8 bits throughout: weights and the rows they are multiplied with share a scale for each 256 values. Quantised weights of fewer bits stay what
    /// they are until many rows are multiplied.
    Int8,
}

impl Precision {
    /// How frozen matrices are held.
    pub fn storage(self) -> WeightStorage {
        match self {
            Self::Auto => WeightStorage::AsStored,
            Self::F32 => WeightStorage::F32,
            Self::Bf16 => WeightStorage::Bf16,
            Self::F16 => WeightStorage::F16,
            Self::Int8 => WeightStorage::Int8,
        }
    }
}

/// How to load a model.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Precision of frozen weights.
    pub precision: Precision,
    /// Conversation template to use in place of the model's own.
    pub template: Option<String>,
    /// Folder in which tower and base-model paths of a configuration are looked for, after the working directory and the checkpoint.
    pub model_zoo: Option<PathBuf>,
    /// The language model that a stage-1 or adapter folder belongs to, in place of the one its configuration names.
    pub base: Option<PathBuf>,
    /// A PEFT adapter folder to run with.
    pub adapter: Option<PathBuf>,
    /// The vision file of a GGUF pair, in place of the one found beside the language file.
    pub mmproj: Option<PathBuf>,
    /// Gemma's numerics, in place of the configuration's.
    pub gemma_numerics: Option<GemmaNumerics>,
    /// Keep the matrices, in the order in which they are multiplied, in a file beside the model: loaded again in the same precision, they
    /// are mapped from there.
    pub keep_packed: bool,
    /// Bytes of memory the model may take, in place of what [`available_memory`] finds.
    pub available_memory: Option<u64>,
}

/// What is told while a model is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadEvent<'a> {
    /// Something the user should know, one line.
    Note(&'a str),
    /// So many decoder layers are loaded.
    Layer {
        /// Layers loaded.
        done: usize,
        /// Layers of the model.
        total: usize,
    },
    /// The towers, miner and projector are being loaded.
    Vision,
    /// The file of kept matrices is being completed.
    Keeping,
}

/// Low-rank adapter targets: every linear layer of the decoder. A CLIP tower has layers of the same names; they are left alone.
pub const LORA_TARGETS: [&str; 7] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
];

/// A loaded Mini-Gemini model.
pub struct MiniGemini {
    name: String,
    directory: PathBuf,
    config: ModelConfig,
    tokenizer: Tokenizer,
    template: &'static Template,
    vision: Option<Vision>,
    decoder: Decoder,
    weights: WeightSource,
    stop_ids: Vec<u32>,
}

impl MiniGemini {
    /// Loads a model for answering.
    ///
    /// # Errors
    /// When the directory, a file or a tensor is missing or wrong; the message names it.
    pub fn load(source: &ModelSource, options: &LoadOptions) -> Result<Self> {
        Self::load_with_progress(source, options, &mut |_| ())
    }

    /// [`Self::load`], telling what is being done.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_with_progress(
        source: &ModelSource,
        options: &LoadOptions,
        on_event: &mut dyn FnMut(LoadEvent),
    ) -> Result<Self> {
        let checkpoint = Checkpoint::open(source, options)?;
        for note in &checkpoint.notes {
            on_event(LoadEvent::Note(note));
        }
        let mut checkpoint = checkpoint;
        let mut kept = match options.keep_packed {
            true => keep(&checkpoint, options, on_event),
            false => None,
        };
        let (placement, warning) = match &kept {
            // The system may take back the memory of mapped files.
            Some(kept) if kept.is_ready() => (Placement::ALL, None),
            _ => fit(&checkpoint, options)?,
        };
        if let Some(warning) = warning {
            on_event(LoadEvent::Note(&warning));
        }
        if placement != Placement::ALL && kept.take().is_some() {
            on_event(LoadEvent::Note(
                "warning: the packed weights are not kept: not all of them are packed",
            ));
        }
        if let Some(kept) = &kept {
            checkpoint.weights = checkpoint.weights.with_kept(Arc::clone(kept));
        }
        let storage = match placement.rest_packed {
            true => options.precision.storage(),
            false => WeightStorage::Mapped,
        };
        let policy = WeightPolicy {
            device: Device::Cpu,
            storage,
            trainable: Vec::new(),
            lora: None,
        };
        let model = Self::from_opened(checkpoint, options, policy, placement, on_event)?;
        if let Some(kept) = kept.filter(|kept| !kept.is_ready()) {
            on_event(LoadEvent::Keeping);
            // A tied head is made when it is first asked for.
            model.decoder.head()?;
            if let Err(error) = kept.finish() {
                on_event(LoadEvent::Note(&not_kept(&error)));
            }
        }
        Ok(model)
    }

    /// Loads a model under a weight policy: what is trainable, where low-rank adapters go, in what precision frozen weights are held.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_with_policy(
        source: &ModelSource,
        options: &LoadOptions,
        policy: WeightPolicy,
    ) -> Result<Self> {
        Self::load_with_overlay(source, options, policy, &[])
    }

    /// As [`Self::load_with_policy`], with further weight files that override the directory's (a training checkpoint, say).
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_with_overlay(
        source: &ModelSource,
        options: &LoadOptions,
        policy: WeightPolicy,
        overlay: &[PathBuf],
    ) -> Result<Self> {
        let mut checkpoint = Checkpoint::open(source, options)?;
        for file in overlay {
            checkpoint.weights = checkpoint.weights.overlay(WeightSource::open(file)?);
        }
        // The adapters that a model directory's own `config.json` announces are a recipe's business; those of an adapter folder belong to
        // the model that was asked for.
        if checkpoint.config.lora.is_some() {
            checkpoint.lora = None;
        }
        Self::from_checkpoint(checkpoint, options, policy)
    }

    /// Loads what [`Checkpoint::open`] found. Adapters of the checkpoint are applied unless `policy` has its own.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn from_checkpoint(
        checkpoint: Checkpoint,
        options: &LoadOptions,
        policy: WeightPolicy,
    ) -> Result<Self> {
        Self::from_opened(checkpoint, options, policy, Placement::ALL, &mut |_| ())
    }

    fn from_opened(
        checkpoint: Checkpoint,
        options: &LoadOptions,
        mut policy: WeightPolicy,
        placement: Placement,
        on_event: &mut dyn FnMut(LoadEvent),
    ) -> Result<Self> {
        checkpoint.require_tensors()?;
        let Checkpoint {
            name,
            directory,
            config,
            config_file,
            weights,
            lora,
            tokenizer,
            ..
        } = checkpoint;
        policy.lora = policy.lora.or(lora);
        let weights = weights.with_policy(decoder_adapters_only(policy));
        let template = choose_template(options, &config, &name, &config_file)?;
        let decoder_config = config.decoder(&config_file)?;
        let total = decoder_config.layers;
        let packed_layers = placement.packed_layers;
        // A large vocabulary takes as long as weights that only have to be mapped, and one thread.
        let (tokenizer, decoder, vision) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| tokenizer.load());
            let load = || -> Result<_> {
                let mut tell = |done| on_event(LoadEvent::Layer { done, total });
                let decoder = Decoder::load_with_progress(
                    decoder_config,
                    &weights,
                    packed_layers,
                    &mut tell,
                )?;
                on_event(LoadEvent::Vision);
                Ok((decoder, Vision::load(&config, &weights)?))
            };
            let loaded = load();
            let tokenizer = match tokenizer.join() {
                Ok(tokenizer) => tokenizer?,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            let (decoder, vision) = loaded?;
            Ok::<_, Error>((tokenizer, decoder, vision))
        })?;
        let mut stop_ids = template.stop_token_ids(&tokenizer);
        stop_ids.extend(config.eos_token_id.iter().flat_map(|ids| ids.ids()));
        stop_ids.sort_unstable();
        stop_ids.dedup();
        Ok(Self {
            name,
            directory,
            config,
            tokenizer,
            template,
            vision,
            decoder,
            weights,
            stop_ids,
        })
    }

    /// Name: the directory's, or `smol`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Directory the model was loaded from.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its `config.json`.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Its tokeniser.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Its conversation template.
    pub fn template(&self) -> &'static Template {
        self.template
    }

    /// The language model.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The visual part; `None` in a text-only model.
    pub fn vision(&self) -> Option<&Vision> {
        self.vision.as_ref()
    }

    /// Trainable parameters by checkpoint name; empty unless the weight policy names some.
    pub fn parameters(&self) -> &Parameters {
        self.weights.parameters()
    }

    /// The files the model was loaded from, under the tensors' official names.
    pub fn weights(&self) -> &WeightSource {
        &self.weights
    }

    /// Ids that end an answer.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// Positions a prompt may fill.
    pub fn context_limit(&self) -> usize {
        self.config.context_limit()
    }

    /// A new conversation.
    pub fn session(&self) -> Session<'_> {
        Session::new(self)
    }

    /// Resizes and normalises a picture the way this model expects it.
    ///
    /// # Errors
    /// When the model has no vision tower.
    pub fn prepare(&self, image: &RgbImage) -> Result<PreparedImage> {
        Ok(mgm_image::prepare(
            image,
            self.require_vision()?.preprocess(),
        )?)
    }

    /// Runs both frozen towers on a prepared picture.
    ///
    /// # Errors
    /// When the model has no vision tower or the picture was prepared for another model.
    pub fn tower_features(&self, image: &PreparedImage) -> Result<TowerFeatures> {
        self.require_vision()?.tower_features(image)
    }

    /// Visual tokens `[tokens, hidden]` of one picture's features.
    ///
    /// # Errors
    /// When the model has no vision tower or the features are another model's.
    pub fn visual_tokens(&self, features: &TowerFeatures) -> Result<Tensor> {
        self.require_vision()?.visual_tokens(features)
    }

    pub(crate) fn require_vision(&self) -> Result<&Vision> {
        self.vision.as_ref().ok_or(Error::NoVision)
    }

    /// Input embeddings `[rows, hidden]` of ids in which every [`IMAGE_TOKEN`] is replaced by the next of `images`
    /// (visual tokens `[tokens, hidden]` each).
    ///
    /// # Errors
    /// When placeholders and images differ in number, an id is invalid, or there is nothing to embed.
    pub fn splice(&self, ids: &[i64], images: &[Tensor]) -> Result<Tensor> {
        let placeholders = ids.iter().filter(|id| **id == IMAGE_TOKEN).count();
        if placeholders != images.len() {
            return Err(Error::PlaceholderCount {
                placeholders,
                images: images.len(),
            });
        }
        let mut parts = Vec::new();
        let mut images = images.iter();
        for (index, piece) in ids.split(|id| *id == IMAGE_TOKEN).enumerate() {
            if index > 0
                && let Some(image) = images.next()
            {
                parts.push(image.clone());
            }
            if !piece.is_empty() {
                let piece = piece
                    .iter()
                    .map(|id| u32::try_from(*id))
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|_| Error::Input("a token id is negative".into()))?;
                parts.push(self.decoder.embed(&piece)?);
            }
        }
        match parts.len() {
            0 => Err(Error::Input("the prompt is empty".into())),
            1 => Ok(parts.remove(0)),
            _ => Ok(Tensor::cat(&parts, 0)?),
        }
    }
}

/// The file of the model's kept matrices, read or begun; nothing, with a note, where that fails.
fn keep(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
    on_event: &mut dyn FnMut(LoadEvent),
) -> Option<Arc<KeptMatrices>> {
    let adapter = options.adapter.as_deref().and_then(Path::file_name);
    let adapter = adapter.map(|name| format!("+{}", name.to_string_lossy()));
    let file = format!(
        "{}{}.{}.kept",
        checkpoint.name.replace(['/', '\\'], "-"),
        adapter.unwrap_or_default(),
        match options.precision {
            Precision::Auto => "stored",
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::F16 => "f16",
            Precision::Int8 => "int8",
        }
    );
    let files: Vec<PathBuf> = (checkpoint.weights.files().into_iter())
        .map(PathBuf::from)
        .collect();
    let path = checkpoint.directory.join(file);
    match KeptMatrices::open(&path, &files, options.precision.storage()) {
        Ok(kept) => Some(Arc::new(kept)),
        Err(error) => {
            on_event(LoadEvent::Note(&not_kept(&error)));
            None
        }
    }
}

fn not_kept(error: &mgm_nn::Error) -> String {
    format!("warning: the packed weights are not kept: {error}")
}

/// What of the model is packed into the memory there is, and one line for the user when not all of it fits.
fn fit(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<(Placement, Option<String>)> {
    let Some(available) = options.available_memory.or_else(available_memory) else {
        return Ok((Placement::ALL, None));
    };
    let positions = checkpoint.config.context_limit();
    let total = checkpoint.memory(options.precision)?.total(positions) + WORKING_BYTES;
    if total <= available {
        return Ok((Placement::ALL, None));
    }
    let placement = match options.precision {
        Precision::Auto => {
            let decoder = checkpoint.config.decoder(&checkpoint.config_file)?;
            let bytes = available.saturating_sub(WORKING_BYTES);
            Placement::within(bytes, &checkpoint.weights, &decoder, positions)
        }
        // Weights that are to be converted cannot stay as they are.
        Precision::F32 | Precision::Bf16 | Precision::F16 | Precision::Int8 => Placement::ALL,
    };
    let layers = checkpoint.config.num_hidden_layers;
    let consequence = match (options.precision, placement) {
        (Precision::F32 | Precision::Bf16 | Precision::F16 | Precision::Int8, _) => {
            "it may fail; kept as stored (dtype auto), what does not fit would stay in its files"
                .to_string()
        }
        (_, Placement::ALL) => {
            "its files are read again while it answers, which is slow".to_string()
        }
        (_, placement) => format!(
            "{} of its {layers} layers stay in their files and are read again for every token, which is slow",
            layers.saturating_sub(placement.packed_layers)
        ),
    };
    let warning = format!(
        "warning: {} needs {} of memory and {} are free: {consequence}",
        checkpoint.name,
        readable(total),
        readable(available)
    );
    Ok((placement, Some(warning)))
}

/// Keeps low-rank adapters inside the decoder, as the official code does: a CLIP tower has layers of the same names (spec: training §11).
fn decoder_adapters_only(mut policy: WeightPolicy) -> WeightPolicy {
    if let Some(lora) = &mut policy.lora {
        for target in &mut lora.targets {
            // An adapter folder names its layers in full.
            if !target.starts_with("model.") && target != "lm_head" {
                *target = format!("model.layers.*{target}");
            }
        }
    }
    policy
}

/// The low-rank adapters a directory's `config.json` announces.
pub fn lora_config(config: &ModelConfig) -> Option<LoraConfig> {
    config.lora.as_ref().map(|lora| LoraConfig {
        rank: lora.rank,
        alpha: lora.alpha,
        targets: LORA_TARGETS
            .iter()
            .map(|target| target.to_string())
            .collect(),
        seed: 0,
    })
}

pub(crate) fn choose_template(
    options: &LoadOptions,
    config: &ModelConfig,
    name: &str,
    config_file: &Path,
) -> Result<&'static Template> {
    if let Some(name) = &options.template {
        return Ok(Template::by_name(name)?);
    }
    if let Some(name) = &config.conversation_template {
        return Template::by_name(name).map_err(|error| Error::Config {
            file: config_file.into(),
            message: error.to_string(),
        });
    }
    // The official rule goes by the directory's name and misses the 8B models; family and vocabulary decide first (spec: prompts §1).
    let key = match config.family() {
        Family::Gemma => "gemma",
        Family::Mixtral | Family::Mistral => "mistral_instruct",
        Family::Qwen2 => "smollm2",
        Family::Llama => return Ok(Template::for_model(name, config.vocab_size)),
    };
    Ok(Template::by_name(key)?)
}
