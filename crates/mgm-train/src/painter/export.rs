use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mgm_diffusion::Part;
use mgm_nn::WeightSource;
use serde_json::Value;

use super::{Objective, PainterTrainer, folder};
use crate::error::TrainError;
use crate::tensor_file::{self, NamedValues};

impl PainterTrainer {
    /// Writes what was trained, the running means of the parameters: an autoencoder's folder, or a whole model in the diffusers layout.
    pub(super) fn export(&self) -> Result<PathBuf, TrainError> {
        let (output, model) = (&self.recipe.output, &self.recipe.model);
        match &self.objective {
            Objective::Autoencoder(_) => {
                let place = output.join("vae");
                copy(&model.join("vae/config.json"), &place.join("config.json"))?;
                self.write_part(Part::Vae, &place)?;
                Ok(place)
            }
            Objective::Denoiser(denoiser) => {
                let place = output.join("model");
                for name in [
                    "model_index.json",
                    "scheduler/scheduler_config.json",
                    "unet/config.json",
                    "text_encoder/config.json",
                    "text_encoder_2/config.json",
                ] {
                    copy(&model.join(name), &place.join(name))?;
                }
                for (from, to) in self
                    .files
                    .tokenizers
                    .iter()
                    .zip(["tokenizer", "tokenizer_2"])
                {
                    for name in ["vocab.json", "merges.txt", "tokenizer_config.json"] {
                        if from.join(name).exists() {
                            copy(&from.join(name), &place.join(to).join(name))?;
                        }
                    }
                }
                for part in [Part::UNet, Part::FirstEncoder, Part::SecondEncoder] {
                    self.write_part(part, &place.join(folder(part)))?;
                }
                let own = match &self.recipe.vae {
                    Some(vae) => vae.clone(),
                    None => model.join("vae"),
                };
                self.write_vae(&own, &place.join("vae"), &denoiser.statistics)?;
                Ok(place)
            }
        }
    }

    /// A trained part's weights, under the names of its files.
    fn write_part(&self, part: Part, place: &Path) -> Result<(), TrainError> {
        let prefix = format!("{}.", folder(part));
        let mut tensors: Vec<NamedValues> = Vec::new();
        for (name, mean) in &self.state.mean {
            let (Some(own), Some(variable)) =
                (name.strip_prefix(&prefix), self.parameters.get(name))
            else {
                continue;
            };
            tensors.push((own.to_owned(), variable.dims().to_vec(), mean.clone()));
        }
        self.write_weights(part, place, &tensors)
    }

    fn write_weights(
        &self,
        part: Part,
        place: &Path,
        tensors: &[NamedValues],
    ) -> Result<(), TrainError> {
        create(place)?;
        let name = match part {
            Part::UNet | Part::Vae => "diffusion_pytorch_model.safetensors",
            Part::FirstEncoder | Part::SecondEncoder => "model.safetensors",
        };
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        tensor_file::write(&place.join(name), tensors, self.recipe.save_type, metadata)
    }

    /// The autoencoder that the latents are of, with their statistics in its configuration.
    fn write_vae(
        &self,
        own: &Path,
        place: &Path,
        [mean, deviation]: &[Vec<f64>; 2],
    ) -> Result<(), TrainError> {
        create(place)?;
        let path = own.join("config.json");
        let text = std::fs::read(&path).map_err(TrainError::io("read", &path))?;
        let mut config: Value =
            serde_json::from_slice(&text).map_err(|error| TrainError::Checkpoint {
                path,
                message: error.to_string(),
            })?;
        config["latents_mean"] = serde_json::json!(mean);
        config["latents_std"] = serde_json::json!(deviation);
        config["scaling_factor"] = serde_json::json!(1.0);
        let text = format!("{config:#}\n");
        tensor_file::write_atomically(&place.join("config.json"), text.as_bytes())?;
        let source: WeightSource = self.files.open(Part::Vae)?;
        let mut tensors: Vec<NamedValues> = Vec::new();
        for name in source.names() {
            let tensor = source
                .tensor_any(&name)
                .map_err(mgm_diffusion::Error::from)?;
            let values = tensor
                .to_dtype(candle_core::DType::F32)?
                .flatten_all()?
                .to_vec1::<f32>()?;
            tensors.push((name, tensor.dims().to_vec(), values));
        }
        self.write_weights(Part::Vae, place, &tensors)
    }
}

fn create(folder: &Path) -> Result<(), TrainError> {
    std::fs::create_dir_all(folder).map_err(TrainError::io("create", folder))
}

fn copy(from: &Path, to: &Path) -> Result<(), TrainError> {
    if let Some(parent) = to.parent() {
        create(parent)?;
    }
    let bytes = std::fs::read(from).map_err(TrainError::io("read", from))?;
    tensor_file::write_atomically(to, &bytes)
}
