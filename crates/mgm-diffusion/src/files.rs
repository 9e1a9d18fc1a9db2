//! Where the parts of a model are: a folder in the layout of diffusers, or one file in the layout of the original code.

use std::path::{Path, PathBuf};

use mgm_nn::WeightSource;

use crate::config::{TextEncoderConfig, UNetConfig, VaeConfig, read_json};
use crate::error::{Error, Result};
use crate::scheduler::SchedulerConfig;
use crate::single_file;

/// A model's configurations, and where its weights and tokenisers lie. Everything is found when the model is opened, so that nothing is
/// missed halfway through a painting.
pub struct ModelFiles {
    /// The UNet.
    pub unet: UNetConfig,
    /// The autoencoder.
    pub vae: VaeConfig,
    /// Both text encoders.
    pub text_encoders: [TextEncoderConfig; 2],
    /// The scheduler it was published with.
    pub scheduler: SchedulerConfig,
    /// Folders of both tokenisers.
    pub tokenizers: [PathBuf; 2],
    /// Whether the absence of a negative prompt means states of zero.
    pub zeros_for_empty_prompt: bool,
    weights: Weights,
}

enum Weights {
    /// UNet, VAE and both text encoders, each from its own files.
    Folder([PathBuf; 4]),
    File(PathBuf),
}

/// A part of the model that has weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The UNet.
    UNet,
    /// The autoencoder.
    Vae,
    /// The first text encoder.
    FirstEncoder,
    /// The second text encoder.
    SecondEncoder,
}

/// What [`ModelFiles::find`] may use besides the model's own files.
#[derive(Clone, Debug, Default)]
pub struct FindOptions {
    /// Folder of the tokeniser (`vocab.json`, `merges.txt`), for files that bring none.
    pub tokenizer: Option<PathBuf>,
    /// Folder of another autoencoder.
    pub vae: Option<PathBuf>,
    /// Prefer full-precision weights where a folder has half-precision ones too.
    pub full_precision: bool,
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
struct ModelIndex {
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
    force_zeros_for_empty_prompt: Option<bool>,
}

impl ModelFiles {
    /// Finds everything a model at `path` needs.
    ///
    /// # Errors
    /// When something is missing or not supported, in one line that names it.
    pub fn find(path: &Path, options: &FindOptions) -> Result<Self> {
        let mut files = match path.is_dir() {
            true => Self::folder(path, options)?,
            false => Self::file(path, options)?,
        };
        if let Some(vae) = &options.vae {
            files.vae = config(vae)?;
            let weights = weight_file(vae, "diffusion_pytorch_model", options)?;
            match &mut files.weights {
                Weights::Folder([_, own, ..]) => *own = weights,
                Weights::File(_) => {
                    return Err(Error::Input(
                        "--vae needs a model in the diffusers layout".into(),
                    ));
                }
            }
        }
        files.unet.check("unet/config.json")?;
        files.vae.check("vae/config.json")?;
        files.text_encoders[0].check("text_encoder/config.json")?;
        files.text_encoders[1].check("text_encoder_2/config.json")?;
        files.check_widths()?;
        Ok(files)
    }

    fn folder(path: &Path, options: &FindOptions) -> Result<Self> {
        let index_path = path.join("model_index.json");
        if !index_path.exists() {
            return Err(Error::Missing {
                path: path.to_path_buf(),
                what: "no model_index.json: expected a model in the diffusers layout, or one .safetensors file".into(),
            });
        }
        let index: ModelIndex = read_json(&index_path)?;
        if let Some(class) = index
            .class_name
            .filter(|name| !name.starts_with("StableDiffusionXL"))
        {
            return Err(Error::config(
                index_path.display().to_string(),
                format!("a {class}, expected a Stable Diffusion XL model"),
            ));
        }
        let part = |name: &str| path.join(name);
        let unet = part("unet");
        let vae = part("vae");
        let encoders = [part("text_encoder"), part("text_encoder_2")];
        let tokenizers = ["tokenizer", "tokenizer_2"].map(|name| match &options.tokenizer {
            Some(tokenizer) => tokenizer.clone(),
            None => part(name),
        });
        for tokenizer in &tokenizers {
            check_tokenizer(tokenizer)?;
        }
        let scheduler = part("scheduler").join("scheduler_config.json");
        Ok(Self {
            unet: config(&unet)?,
            vae: config(&vae)?,
            text_encoders: [config(&encoders[0])?, config(&encoders[1])?],
            scheduler: match scheduler.exists() {
                true => read_json(&scheduler)?,
                false => SchedulerConfig::sdxl(),
            },
            tokenizers,
            zeros_for_empty_prompt: index.force_zeros_for_empty_prompt.unwrap_or(true),
            weights: Weights::Folder([
                weight_file(&unet, "diffusion_pytorch_model", options)?,
                match &options.vae {
                    // Replaced by the caller.
                    Some(_) => PathBuf::new(),
                    None => weight_file(&vae, "diffusion_pytorch_model", options)?,
                },
                weight_file(&encoders[0], "model", options)?,
                weight_file(&encoders[1], "model", options)?,
            ]),
        })
    }

    fn file(path: &Path, options: &FindOptions) -> Result<Self> {
        if !path.exists() {
            return Err(Error::Missing {
                path: path.to_path_buf(),
                what: "no such file or folder: expected a model in the diffusers layout, or one .safetensors file".into(),
            });
        }
        // What the original code has in its own configuration files; a folder of configurations beside the file wins.
        let beside = path.with_extension("");
        let own = |name: &str| {
            let own = beside.join(name).join("config.json");
            own.exists().then_some(beside.join(name))
        };
        let tokenizers = match (
            &options.tokenizer,
            path.parent().map(|folder| folder.join("tokenizer")),
        ) {
            (Some(tokenizer), _) => [tokenizer.clone(), tokenizer.clone()],
            (None, Some(folder)) if folder.exists() => {
                let second = folder.with_file_name("tokenizer_2");
                [
                    folder.clone(),
                    if second.exists() { second } else { folder },
                ]
            }
            _ => {
                return Err(Error::Missing {
                    path: path.to_path_buf(),
                    what: "a single file brings no tokeniser: expected a folder `tokenizer` beside it, or one named by --tokenizer".into(),
                });
            }
        };
        for tokenizer in &tokenizers {
            check_tokenizer(tokenizer)?;
        }
        let scheduler = beside.join("scheduler/scheduler_config.json");
        Ok(Self {
            unet: own("unet").map_or(Ok(UNetConfig::sdxl()), |folder| config(&folder))?,
            vae: own("vae").map_or(Ok(VaeConfig::sdxl()), |folder| config(&folder))?,
            text_encoders: [
                own("text_encoder").map_or(Ok(TextEncoderConfig::sdxl_first()), |folder| {
                    config(&folder)
                })?,
                own("text_encoder_2").map_or(Ok(TextEncoderConfig::sdxl_second()), |folder| {
                    config(&folder)
                })?,
            ],
            scheduler: match scheduler.exists() {
                true => read_json(&scheduler)?,
                false => SchedulerConfig::sdxl(),
            },
            tokenizers,
            zeros_for_empty_prompt: true,
            weights: Weights::File(path.to_path_buf()),
        })
    }

    /// Opens the weights of a part under the names of the diffusers layout.
    ///
    /// # Errors
    /// When the file is damaged or not of this kind.
    pub fn open(&self, part: Part) -> Result<WeightSource> {
        match &self.weights {
            Weights::Folder(files) => {
                let file = match part {
                    Part::UNet => &files[0],
                    Part::Vae => &files[1],
                    Part::FirstEncoder => &files[2],
                    Part::SecondEncoder => &files[3],
                };
                Ok(WeightSource::open(file)?)
            }
            Weights::File(file) => {
                let source = WeightSource::open(file)?;
                match part {
                    Part::UNet => single_file::unet(source, &self.unet),
                    Part::Vae => single_file::vae(source, &self.vae),
                    Part::FirstEncoder => single_file::first_encoder(source),
                    Part::SecondEncoder => {
                        single_file::second_encoder(source, &self.text_encoders[1])
                    }
                }
            }
        }
    }

    /// Refuses parts that do not belong together.
    fn check_widths(&self) -> Result<()> {
        let [first, second] = &self.text_encoders;
        let width = first.hidden_size + second.hidden_size;
        if width != self.unet.cross_attention_dim {
            return Err(Error::config(
                "unet/config.json",
                format!(
                    "cross_attention_dim {} does not fit text encoders of {} and {}",
                    self.unet.cross_attention_dim, first.hidden_size, second.hidden_size
                ),
            ));
        }
        let sizes = 6 * self.unet.addition_time_embed_dim.unwrap_or(0);
        if self.unet.projection_class_embeddings_input_dim != Some(second.projection_dim + sizes) {
            return Err(Error::config(
                "unet/config.json",
                format!(
                    "projection_class_embeddings_input_dim {:?} does not fit a pooled text of {} and six sizes, {} in all",
                    self.unet.projection_class_embeddings_input_dim,
                    second.projection_dim,
                    second.projection_dim + sizes
                ),
            ));
        }
        if self.unet.in_channels != self.vae.latent_channels
            || self.unet.out_channels != self.vae.latent_channels
        {
            return Err(Error::config(
                "unet/config.json",
                format!(
                    "{} channels in and {} out do not fit a VAE of {} latent channels",
                    self.unet.in_channels, self.unet.out_channels, self.vae.latent_channels
                ),
            ));
        }
        Ok(())
    }
}

fn config<T: serde::de::DeserializeOwned>(folder: &Path) -> Result<T> {
    let path = folder.join("config.json");
    match path.exists() {
        true => read_json(&path),
        false => Err(Error::Missing {
            path,
            what: "not there: expected the configuration of this part of the model".into(),
        }),
    }
}

fn check_tokenizer(folder: &Path) -> Result<()> {
    for name in ["vocab.json", "merges.txt"] {
        let path = folder.join(name);
        if !path.exists() {
            return Err(Error::Missing {
                path,
                what: "not there: expected a CLIP tokeniser (vocab.json and merges.txt)".into(),
            });
        }
    }
    Ok(())
}

/// The weights in a part's folder: single or sharded, half or full precision, safetensors or torch.
fn weight_file(folder: &Path, stem: &str, options: &FindOptions) -> Result<PathBuf> {
    let half = [
        format!("{stem}.fp16.safetensors"),
        format!("{stem}.fp16.safetensors.index.json"),
        format!("{stem}.safetensors.index.fp16.json"),
    ];
    let full = [
        format!("{stem}.safetensors"),
        format!("{stem}.safetensors.index.json"),
    ];
    let torch = match stem {
        "model" => "pytorch_model",
        stem => stem,
    };
    let old = [
        format!("{torch}.fp16.bin"),
        format!("{torch}.bin"),
        format!("{torch}.bin.index.json"),
    ];
    let order = match options.full_precision {
        true => full.iter().chain(&half),
        false => half.iter().chain(&full),
    };
    order
        .chain(&old)
        .map(|name| folder.join(name))
        .find(|path| path.exists())
        .ok_or_else(|| Error::Missing {
            path: folder.to_path_buf(),
            what: format!("no weights: expected {stem}.safetensors or {stem}.fp16.safetensors, single or sharded"),
        })
}
