//! What a checkpoint's weights amount to, part by part, and what its towers are, told from names and shapes alone.

use std::fmt;

use mgm_nn::WeightSource;

/// A part of the model, as users think of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Token embedding.
    Embedding,
    /// Decoder layers and the last norm.
    Layers,
    /// Output head, where it is stored.
    Head,
    /// CLIP or DINOv2.
    LowResTower,
    /// ConvNeXt or EfficientNet.
    HighResTower,
    /// Patch info mining (`vlm_uni_*`).
    Mining,
    /// `mm_projector`.
    Projector,
    /// Low-rank adapters.
    Adapters,
    /// Tensors this program does not use.
    Other,
}

impl Part {
    /// The part that a tensor belongs to, by its official name.
    pub fn of(name: &str) -> Self {
        let Some(rest) = name.strip_prefix("model.") else {
            return if name.starts_with("lm_head.") {
                Self::Head
            } else {
                Self::Other
            };
        };
        const PREFIXES: [(&str, Part); 7] = [
            ("embed_tokens.", Part::Embedding),
            ("layers.", Part::Layers),
            ("norm.", Part::Layers),
            ("vision_tower.", Part::LowResTower),
            ("vision_tower_aux.", Part::HighResTower),
            ("vlm_uni_", Part::Mining),
            ("mm_projector", Part::Projector),
        ];
        if rest.contains(".lora_") {
            return Self::Adapters;
        }
        PREFIXES
            .iter()
            .find(|(prefix, _)| rest.starts_with(prefix))
            .map_or(Self::Other, |(_, part)| *part)
    }

    /// Its name in tables.
    pub fn label(self) -> &'static str {
        match self {
            Self::Embedding => "token embedding",
            Self::Layers => "decoder layers",
            Self::Head => "output head",
            Self::LowResTower => "low-resolution tower",
            Self::HighResTower => "high-resolution tower",
            Self::Mining => "patch info mining",
            Self::Projector => "projector",
            Self::Adapters => "low-rank adapters",
            Self::Other => "not used",
        }
    }
}

/// What one part holds in one element type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartSize {
    /// The part.
    pub part: Part,
    /// Element type as stored, such as `BF16` or `Q4_K`.
    pub element_type: String,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of values.
    pub parameters: u64,
    /// Bytes as stored.
    pub bytes: u64,
}

/// One entry for each part and element type, in the order of [`Part`], largest type first. `weights` stands at the root of the checkpoint.
pub fn part_sizes(weights: &WeightSource) -> Vec<PartSize> {
    let mut rows: Vec<PartSize> = Vec::new();
    for name in weights.names() {
        let Some(info) = weights.info(&name) else {
            continue;
        };
        let part = Part::of(&name);
        let element_type = info.element_type.name().to_string();
        let parameters = info.shape.iter().map(|&axis| axis as u64).product::<u64>();
        match rows
            .iter_mut()
            .find(|row| row.part == part && row.element_type == element_type)
        {
            Some(row) => {
                row.tensors += 1;
                row.parameters += parameters;
                row.bytes += info.bytes;
            }
            None => rows.push(PartSize {
                part,
                element_type,
                tensors: 1,
                parameters,
                bytes: info.bytes,
            }),
        }
    }
    rows.sort_by_key(|row| (row.part, std::cmp::Reverse(row.bytes)));
    rows
}

/// The two towers, as far as the tensors tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Towers {
    /// CLIP or DINOv2.
    pub low_res: Option<LowResShape>,
    /// ConvNeXt or EfficientNet-Lite.
    pub high_res: Option<HighResShape>,
}

/// Sizes of a vision transformer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LowResShape {
    /// `CLIP ViT` or `DINOv2`.
    pub kind: &'static str,
    /// Blocks stored.
    pub layers: usize,
    /// Width.
    pub width: usize,
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Patches a side.
    pub grid: usize,
}

impl LowResShape {
    /// Side of the picture it sees, in pixels.
    pub fn pixels(&self) -> usize {
        self.patch * self.grid
    }

    /// Patches, one query each.
    pub fn patches(&self) -> usize {
        self.grid * self.grid
    }
}

impl fmt::Display for LowResShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {} layers, width {}, {grid}×{grid} patches of {patch} pixels",
            self.kind,
            self.layers,
            self.width,
            grid = self.grid,
            patch = self.patch
        )
    }
}

/// Stages of a convolutional tower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HighResShape {
    /// `ConvNeXt` or `EfficientNet-Lite`.
    pub kind: &'static str,
    /// Blocks of each stage, or of the whole tower.
    pub blocks: Vec<usize>,
    /// Channels of each stage; empty where the blocks do not tell.
    pub channels: Vec<usize>,
}

impl fmt::Display for HighResShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |numbers: &[usize]| {
            let texts: Vec<String> = numbers.iter().map(usize::to_string).collect();
            texts.join("/")
        };
        write!(f, "{}, {} blocks", self.kind, list(&self.blocks))?;
        if !self.channels.is_empty() {
            write!(f, ", {} channels", list(&self.channels))?;
        }
        Ok(())
    }
}

impl Towers {
    /// Looks at names and shapes; `weights` stands at the root of the checkpoint.
    pub fn of(weights: &WeightSource) -> Self {
        let model = weights.pp("model");
        Self {
            low_res: low_res_shape(&model.pp("vision_tower.vision_tower")),
            high_res: high_res_shape(&model.pp("vision_tower_aux")),
        }
    }
}

fn low_res_shape(tower: &WeightSource) -> Option<LowResShape> {
    let clip = tower.pp("vision_model");
    let (kind, patches, positions, blocks, first) = if clip.contains("pre_layrnorm.weight") {
        let embeddings = clip.pp("embeddings");
        (
            "CLIP ViT",
            embeddings.shape("patch_embedding.weight")?,
            embeddings.shape("position_embedding.weight")?,
            clip.pp("encoder.layers"),
            "layer_norm1.weight",
        )
    } else {
        let embeddings = tower.pp("embeddings");
        (
            "DINOv2",
            embeddings.shape("patch_embeddings.projection.weight")?,
            embeddings.shape("position_embeddings")?,
            tower.pp("encoder.layer"),
            "norm1.weight",
        )
    };
    let &[width, _, patch, _] = patches.as_slice() else {
        return None;
    };
    // One position belongs to the class token.
    let positions = *positions.iter().rev().nth(1)?;
    Some(LowResShape {
        kind,
        layers: run_length(|index| blocks.contains(&format!("{index}.{first}"))),
        width,
        patch,
        grid: positions.saturating_sub(1).isqrt(),
    })
}

fn high_res_shape(tower: &WeightSource) -> Option<HighResShape> {
    if tower.contains("vision_stem.0.weight") {
        let stages = tower.pp("vision_stages");
        let mut shape = HighResShape {
            kind: "ConvNeXt",
            blocks: Vec::new(),
            channels: Vec::new(),
        };
        while let Some(gamma) = stages.shape(&format!("{}.blocks.0.gamma", shape.blocks.len())) {
            let blocks = stages.pp(shape.blocks.len()).pp("blocks");
            shape.blocks.push(run_length(|index| {
                blocks.contains(&format!("{index}.gamma"))
            }));
            shape.channels.push(*gamma.first()?);
        }
        return Some(shape);
    }
    if !tower.contains("_conv_stem.weight") {
        return None;
    }
    let blocks = tower.pp("_blocks");
    Some(HighResShape {
        kind: "EfficientNet-Lite",
        blocks: vec![run_length(|index| {
            blocks.contains(&format!("{index}._depthwise_conv.weight"))
        })],
        channels: Vec::new(),
    })
}

/// How many of 0, 1, 2, … hold without a gap.
fn run_length(holds: impl Fn(usize) -> bool) -> usize {
    (0..).take_while(|index| holds(*index)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_part() {
        for (name, part) in [
            ("model.embed_tokens.weight", Part::Embedding),
            ("model.layers.3.mlp.up_proj.weight", Part::Layers),
            ("model.layers.3.mlp.up_proj.lora_A.weight", Part::Adapters),
            ("model.norm.weight", Part::Layers),
            ("lm_head.weight", Part::Head),
            (
                "model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias",
                Part::LowResTower,
            ),
            (
                "model.vision_tower_aux.vision_stem.0.weight",
                Part::HighResTower,
            ),
            ("model.vlm_uni_val_projector.1.bias", Part::Mining),
            ("model.mm_projector.0.weight", Part::Projector),
            ("model.mm_projector.weight", Part::Projector),
            ("logit_scale", Part::Other),
        ] {
            assert_eq!(Part::of(name), part, "{name}");
        }
    }
}
