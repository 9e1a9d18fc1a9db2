//! The one-file layout of the original code: its names brought to those of the diffusers layout.

use std::collections::HashMap;

use mgm_nn::{Derivation, WeightSource};

use crate::config::{TextEncoderConfig, UNetConfig, VaeConfig};
use crate::error::{Error, Result};

const UNET: &str = "model.diffusion_model.";
const VAE: &str = "first_stage_model.";
const FIRST_ENCODER: &str = "conditioner.embedders.0.transformer.";
const SECOND_ENCODER: &str = "conditioner.embedders.1.model.";

fn require(source: &WeightSource, prefix: &str, what: &str) -> Result<()> {
    match source.names().iter().any(|name| name.starts_with(prefix)) {
        true => Ok(()),
        false => Err(Error::config(
            source.files().join(", "),
            format!(
                "no {what} (no tensor begins with {prefix}): expected a whole Stable Diffusion XL checkpoint in one file"
            ),
        )),
    }
}

/// The source with only the tensors below `prefix`, under the names `map` gives to the rest of theirs.
fn below(
    source: WeightSource,
    prefix: &'static str,
    map: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
) -> WeightSource {
    source.renamed(move |name| map(name.strip_prefix(prefix)?))
}

/// Replaces the longest leading part of a dotted name that `table` knows.
fn replace_prefix(table: &HashMap<String, String>, name: &str) -> Option<String> {
    let mut end = name.len();
    loop {
        if let Some(new) = table.get(&name[..end]) {
            return Some(format!("{new}{}", &name[end..]));
        }
        end = name[..end].rfind('.')?;
    }
}

/// Names inside a residual block of the UNet.
fn unet_residual(name: &str) -> String {
    let pairs = [
        ("in_layers.0.", "norm1."),
        ("in_layers.2.", "conv1."),
        ("emb_layers.1.", "time_emb_proj."),
        ("out_layers.0.", "norm2."),
        ("out_layers.3.", "conv2."),
        ("skip_connection.", "conv_shortcut."),
    ];
    pairs
        .iter()
        .find_map(|(old, new)| Some(format!("{new}{}", name.strip_prefix(old)?)))
        .unwrap_or_else(|| name.to_string())
}

/// The UNet's weights under the names of the diffusers layout.
pub(crate) fn unet(source: WeightSource, config: &UNetConfig) -> Result<WeightSource> {
    require(&source, UNET, "UNet")?;
    let levels = config.block_out_channels.len();
    let mut table: HashMap<String, String> = [
        ("time_embed.0", "time_embedding.linear_1"),
        ("time_embed.2", "time_embedding.linear_2"),
        ("time_embed.cond_proj", "time_embedding.cond_proj"),
        ("label_emb.0.0", "add_embedding.linear_1"),
        ("label_emb.0.2", "add_embedding.linear_2"),
        ("input_blocks.0.0", "conv_in"),
        ("out.0", "conv_norm_out"),
        ("out.2", "conv_out"),
        ("middle_block.0", "mid_block.resnets.0"),
        ("middle_block.1", "mid_block.attentions.0"),
        ("middle_block.2", "mid_block.resnets.1"),
    ]
    .map(|(old, new)| (old.to_string(), new.to_string()))
    .into();
    // The original code numbers blocks through: each residual block (with its transformer) and each change of resolution is one.
    let mut block = 1;
    for level in 0..levels {
        for layer in 0..config.layers_per_block.of(level) {
            table.insert(
                format!("input_blocks.{block}.0"),
                format!("down_blocks.{level}.resnets.{layer}"),
            );
            if config.down_attends(level) {
                table.insert(
                    format!("input_blocks.{block}.1"),
                    format!("down_blocks.{level}.attentions.{layer}"),
                );
            }
            block += 1;
        }
        if level + 1 < levels {
            table.insert(
                format!("input_blocks.{block}.0.op"),
                format!("down_blocks.{level}.downsamplers.0.conv"),
            );
            block += 1;
        }
    }
    let mut block = 0;
    for up in 0..levels {
        let level = levels - 1 - up;
        let layers = config.layers_per_block.of(level) + 1;
        for layer in 0..layers {
            let mut inner = 1;
            table.insert(
                format!("output_blocks.{block}.0"),
                format!("up_blocks.{up}.resnets.{layer}"),
            );
            if config.up_attends(up) {
                table.insert(
                    format!("output_blocks.{block}.1"),
                    format!("up_blocks.{up}.attentions.{layer}"),
                );
                inner = 2;
            }
            if layer + 1 == layers && level > 0 {
                table.insert(
                    format!("output_blocks.{block}.{inner}.conv"),
                    format!("up_blocks.{up}.upsamplers.0.conv"),
                );
            }
            block += 1;
        }
    }
    Ok(below(source, UNET, move |name| {
        let renamed = replace_prefix(&table, name)?;
        match renamed.find(".resnets.") {
            None => Some(renamed),
            Some(at) => {
                // `….resnets.N.rest`
                let number = at + ".resnets.".len();
                let rest = number + renamed[number..].find('.')? + 1;
                Some(format!(
                    "{}{}",
                    &renamed[..rest],
                    unet_residual(&renamed[rest..])
                ))
            }
        }
    }))
}

/// The autoencoder's weights under the names of the diffusers layout.
pub(crate) fn vae(source: WeightSource, config: &VaeConfig) -> Result<WeightSource> {
    require(&source, VAE, "autoencoder")?;
    let levels = config.block_out_channels.len();
    let mut table = HashMap::new();
    let mut insert = |old: String, new: String| table.insert(old, new);
    for half in ["encoder", "decoder"] {
        for (old, new) in [
            ("conv_in", "conv_in"),
            ("conv_out", "conv_out"),
            ("norm_out", "conv_norm_out"),
            ("mid.block_1", "mid_block.resnets.0"),
            ("mid.block_2", "mid_block.resnets.1"),
            ("mid.attn_1.norm", "mid_block.attentions.0.group_norm"),
            ("mid.attn_1.q", "mid_block.attentions.0.to_q"),
            ("mid.attn_1.k", "mid_block.attentions.0.to_k"),
            ("mid.attn_1.v", "mid_block.attentions.0.to_v"),
            ("mid.attn_1.proj_out", "mid_block.attentions.0.to_out.0"),
        ] {
            insert(format!("{half}.{old}"), format!("{half}.{new}"));
        }
    }
    for level in 0..levels {
        for layer in 0..config.layers_per_block {
            insert(
                format!("encoder.down.{level}.block.{layer}"),
                format!("encoder.down_blocks.{level}.resnets.{layer}"),
            );
        }
        insert(
            format!("encoder.down.{level}.downsample.conv"),
            format!("encoder.down_blocks.{level}.downsamplers.0.conv"),
        );
        // The original code counts the decoder's levels from the finest.
        let block = levels - 1 - level;
        for layer in 0..=config.layers_per_block {
            insert(
                format!("decoder.up.{level}.block.{layer}"),
                format!("decoder.up_blocks.{block}.resnets.{layer}"),
            );
        }
        insert(
            format!("decoder.up.{level}.upsample.conv"),
            format!("decoder.up_blocks.{block}.upsamplers.0.conv"),
        );
    }
    for name in ["quant_conv", "post_quant_conv"] {
        insert(name.to_string(), name.to_string());
    }
    Ok(below(source, VAE, move |name| {
        let renamed = replace_prefix(&table, name)?;
        Some(renamed.replace(".nin_shortcut.", ".conv_shortcut."))
    }))
}

/// The first text encoder, which both layouts name alike.
pub(crate) fn first_encoder(source: WeightSource) -> Result<WeightSource> {
    require(&source, FIRST_ENCODER, "first text encoder")?;
    Ok(below(source, FIRST_ENCODER, |name| Some(name.to_string())))
}

/// The second text encoder, an OpenCLIP model: one matrix for queries, keys and values, and the projection the other way round.
pub(crate) fn second_encoder(
    source: WeightSource,
    config: &TextEncoderConfig,
) -> Result<WeightSource> {
    require(&source, SECOND_ENCODER, "second text encoder")?;
    let width = config.hidden_size;
    let mut derived = vec![(
        "text_projection.weight".to_string(),
        format!("{SECOND_ENCODER}text_projection"),
        Derivation::Transposed,
    )];
    for layer in 0..config.num_hidden_layers {
        let block = format!("{SECOND_ENCODER}transformer.resblocks.{layer}.attn.in_proj_");
        let target = format!("text_model.encoder.layers.{layer}.self_attn.");
        for (index, name) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
            for kind in ["weight", "bias"] {
                derived.push((
                    format!("{target}{name}.{kind}"),
                    format!("{block}{kind}"),
                    Derivation::Rows(index * width..(index + 1) * width),
                ));
            }
        }
    }
    let source = source.with_derived(derived)?;
    Ok(source.renamed(|name| {
        // The derived tensors have their final names.
        let Some(name) = name.strip_prefix(SECOND_ENCODER) else {
            let is_derived = name.starts_with("text_model.") || name == "text_projection.weight";
            return is_derived.then(|| name.to_string());
        };
        match name {
            "token_embedding.weight" => {
                return Some("text_model.embeddings.token_embedding.weight".into());
            }
            "positional_embedding" => {
                return Some("text_model.embeddings.position_embedding.weight".into());
            }
            _ => {}
        }
        if let Some(rest) = name.strip_prefix("ln_final.") {
            return Some(format!("text_model.final_layer_norm.{rest}"));
        }
        let (layer, rest) = name
            .strip_prefix("transformer.resblocks.")?
            .split_once('.')?;
        let pairs = [
            ("ln_1.", "layer_norm1."),
            ("ln_2.", "layer_norm2."),
            ("attn.out_proj.", "self_attn.out_proj."),
            ("mlp.c_fc.", "mlp.fc1."),
            ("mlp.c_proj.", "mlp.fc2."),
        ];
        let new = pairs
            .iter()
            .find_map(|(old, new)| Some(format!("{new}{}", rest.strip_prefix(old)?)))?;
        Some(format!("text_model.encoder.layers.{layer}.{new}"))
    }))
}
