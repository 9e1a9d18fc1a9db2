//! Hand-made files, sound and hostile.

use mgm_kernels::mapped::Mapped;
use mgm_kernels::quant::{self, QuantType};

use super::*;

/// Writes GGUF files byte by byte.
struct Writer {
    metadata: Vec<u8>,
    keys: u64,
    tensors: Vec<u8>,
    count: u64,
    data: Vec<u8>,
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Writer {
    fn new(architecture: &str) -> Self {
        let writer = Self {
            metadata: Vec::new(),
            keys: 0,
            tensors: Vec::new(),
            count: 0,
            data: Vec::new(),
        };
        writer.string("general.architecture", architecture)
    }

    fn entry(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        text(&mut self.metadata, key);
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(value);
        self.keys += 1;
        self
    }

    fn string(self, key: &str, value: &str) -> Self {
        let mut bytes = Vec::new();
        text(&mut bytes, value);
        self.entry(key, 8, &bytes)
    }

    fn unsigned(self, key: &str, value: u32) -> Self {
        self.entry(key, 4, &value.to_le_bytes())
    }

    /// `shape` outermost first.
    fn tensor(mut self, name: &str, shape: &[usize], type_id: u32, bytes: &[u8]) -> Self {
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        text(&mut self.tensors, name);
        self.tensors.extend((shape.len() as u32).to_le_bytes());
        for axis in shape.iter().rev() {
            self.tensors.extend((*axis as u64).to_le_bytes());
        }
        self.tensors.extend(type_id.to_le_bytes());
        self.tensors.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(bytes);
        self.count += 1;
        self
    }

    fn bytes(&self, version: u32) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(version.to_le_bytes());
        out.extend(self.count.to_le_bytes());
        out.extend(self.keys.to_le_bytes());
        out.extend(&self.metadata);
        out.extend(&self.tensors);
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }

    fn open(&self) -> GgufFile {
        open(self.bytes(3)).unwrap()
    }
}

fn open(bytes: Vec<u8>) -> Result<GgufFile> {
    GgufFile::from_mapped("test.gguf".into(), Mapped::from_vec(bytes))
}

fn error(bytes: Vec<u8>) -> String {
    let message = open(bytes).err().expect("an error").to_string();
    assert!(
        message.starts_with("test.gguf: ") && !message.contains('\n'),
        "{message}"
    );
    message
}

fn floats(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn sample(count: usize) -> Vec<f32> {
    (0..count)
        .map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0)
        .collect()
}

#[test]
fn every_type_is_read() {
    let values = sample(2 * 512);
    let mut writer = Writer::new("clip")
        .tensor("f32", &[2, 512], 0, &floats(&values))
        .tensor(
            "f16",
            &[2, 512],
            1,
            &values
                .iter()
                .flat_map(|&v| half::f16::from_f32(v).to_le_bytes())
                .collect::<Vec<_>>(),
        )
        .tensor(
            "bf16",
            &[2, 512],
            30,
            &values
                .iter()
                .flat_map(|&v| half::bf16::from_f32(v).to_le_bytes())
                .collect::<Vec<_>>(),
        )
        .tensor(
            "f64",
            &[2, 512],
            28,
            &values
                .iter()
                .flat_map(|&v| f64::from(v).to_le_bytes())
                .collect::<Vec<_>>(),
        )
        .tensor("q2_k", &[2, 512], 10, &[0; 168]);
    for quant_type in QuantType::ALL {
        writer = writer.tensor(
            quant_type.name(),
            &[2, 512],
            quant_type.to_ggml(),
            &quant::quantize(quant_type, &values),
        );
    }
    for version in [2, 3] {
        let file = open(writer.bytes(version)).unwrap();
        assert_eq!(file.names().count(), 5 + 8);
        let read = |name: &str| file.get(name).unwrap().unwrap().values().unwrap();
        assert_eq!(read("f32").unwrap(), values);
        assert_eq!(read("f64").unwrap(), values);
        let half: Vec<f32> = values
            .iter()
            .map(|&v| half::f16::from_f32(v).to_f32())
            .collect();
        assert_eq!(read("f16").unwrap(), half);
        let brain: Vec<f32> = values
            .iter()
            .map(|&v| half::bf16::from_f32(v).to_f32())
            .collect();
        assert_eq!(read("bf16").unwrap(), brain);
        for quant_type in QuantType::ALL {
            let found = read(quant_type.name()).unwrap();
            let mut expected = vec![0.0; values.len()];
            quant::dequantize(
                quant_type,
                &quant::quantize(quant_type, &values),
                &mut expected,
            );
            assert_eq!(found, expected, "{}", quant_type.name());
            let worst = found
                .iter()
                .zip(&values)
                .fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
            assert!(worst < 0.3, "{}: {worst}", quant_type.name());
            let stored = file.get(quant_type.name()).unwrap().unwrap();
            assert_eq!(stored.row(1, 512).unwrap().unwrap(), expected[512..]);
            assert_eq!(stored.shape, [2, 512]);
        }
        // A type we cannot read is only an error when it is used.
        assert!(read("q2_k").is_none());
        assert_eq!(file.get("q2_k").unwrap().unwrap().kind.name(), "Q2_K");
    }
}

#[test]
fn metadata_is_typed() {
    let mut strings = Vec::new();
    strings.extend(8u32.to_le_bytes());
    strings.extend(2u64.to_le_bytes());
    text(&mut strings, "ab");
    text(&mut strings, "c\u{e9}");
    let mut scores = Vec::new();
    scores.extend(6u32.to_le_bytes());
    scores.extend(2u64.to_le_bytes());
    scores.extend(floats(&[0.5, -1.0]));
    let file = Writer::new("llama")
        .unsigned("n", 7)
        .entry("negative", 5, &(-3i32).to_le_bytes())
        .entry("yes", 7, &[1])
        .entry("pi", 12, &3.25f64.to_le_bytes())
        .entry("tokens", 9, &strings)
        .entry("scores", 9, &scores)
        .open();
    let metadata = file.metadata();
    assert_eq!(metadata.architecture(), Some("llama"));
    assert_eq!(metadata.unsigned("n"), Some(7));
    assert_eq!(metadata.get("negative").unwrap().as_i64(), Some(-3));
    assert_eq!(metadata.unsigned("negative"), None);
    assert_eq!(metadata.bool("yes"), Some(true));
    assert_eq!(metadata.float("pi"), Some(3.25));
    assert_eq!(metadata.strings("tokens").unwrap(), ["ab", "c\u{e9}"]);
    assert_eq!(metadata.floats("scores").unwrap(), [0.5, -1.0]);
    assert_eq!(metadata.strings("scores"), None);
}

/// What llama.cpp's converter does to the rows of query and key projections.
fn interleaved(values: &[f32], heads: usize, width: usize) -> Vec<f32> {
    let rows = values.len() / width;
    let half = rows / heads / 2;
    let mut out = Vec::new();
    for head in 0..heads {
        for i in 0..half {
            for second in 0..2 {
                let row = head * 2 * half + second * half + i;
                out.extend_from_slice(&values[row * width..][..width]);
            }
        }
    }
    out
}

#[test]
fn llama_comes_back_in_hugging_face_layout() {
    let (heads, kv_heads, head_dim, width) = (4, 2, 6, 32);
    let query: Vec<f32> = sample(heads * head_dim * width);
    let key: Vec<f32> = sample(kv_heads * head_dim * width)
        .iter()
        .map(|v| v + 0.5)
        .collect();
    let q8 = |values: &[f32]| quant::quantize(QuantType::Q8_0, values);
    let file = Writer::new("llama")
        .unsigned("llama.attention.head_count", heads as u32)
        .unsigned("llama.attention.head_count_kv", kv_heads as u32)
        .tensor(
            "token_embd.weight",
            &[2, width],
            0,
            &floats(&sample(2 * width)),
        )
        .tensor(
            "output_norm.weight",
            &[4],
            0,
            &floats(&[1.0, 2.0, 3.0, 4.0]),
        )
        .tensor("output.weight", &[2, width], 0, &floats(&sample(2 * width)))
        .tensor("rope_freqs.weight", &[3], 0, &floats(&[1.0, 2.0, 3.0]))
        .tensor(
            "blk.7.attn_q.weight",
            &[heads * head_dim, width],
            0,
            &floats(&interleaved(&query, heads, width)),
        )
        .tensor(
            "blk.7.attn_k.weight",
            &[kv_heads * head_dim, width],
            8,
            &q8(&interleaved(&key, kv_heads, width)),
        )
        .tensor(
            "blk.7.attn_v.weight",
            &[2, width],
            0,
            &floats(&sample(2 * width)),
        )
        .tensor(
            "blk.7.ffn_gate_exps.weight",
            &[3, 2, 4],
            0,
            &floats(&sample(24)),
        )
        .tensor(
            "blk.7.ffn_norm.weight",
            &[4],
            0,
            &floats(&[1.0, 2.0, 3.0, 4.0]),
        )
        .open();
    let read = |name: &str| {
        file.get(name)
            .unwrap()
            .unwrap_or_else(|| panic!("{name}"))
            .values()
            .unwrap()
            .unwrap()
    };
    assert_eq!(read("model.layers.7.self_attn.q_proj.weight"), query);
    let mut expected = vec![0.0; key.len()];
    quant::dequantize(QuantType::Q8_0, &q8(&key), &mut expected);
    assert_eq!(read("model.layers.7.self_attn.k_proj.weight"), expected);
    assert_eq!(
        read("model.layers.7.self_attn.v_proj.weight"),
        sample(2 * width)
    );
    assert_eq!(read("model.embed_tokens.weight"), sample(2 * width));
    assert_eq!(read("lm_head.weight"), sample(2 * width));
    assert_eq!(read("model.norm.weight"), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(
        read("model.layers.7.post_attention_layernorm.weight"),
        [1.0, 2.0, 3.0, 4.0]
    );
    assert_eq!(
        read("model.layers.7.block_sparse_moe.experts.2.w1.weight"),
        sample(24)[16..]
    );
    assert_eq!(
        file.entry("model.layers.7.block_sparse_moe.experts.0.w1.weight")
            .unwrap()
            .shape,
        [2, 4]
    );
    // Parts come in the same order as the whole.
    for name in [
        "model.layers.7.self_attn.q_proj.weight",
        "model.layers.7.self_attn.k_proj.weight",
        "model.norm.weight",
    ] {
        let whole = read(name);
        let shape = file.entry(name).unwrap().shape.to_vec();
        let row = whole.len() / shape[0];
        for range in [0..shape[0], 1..3, 2..2] {
            let part = file.rows(name, range.clone()).unwrap().unwrap();
            assert_eq!(
                part.values().unwrap().unwrap(),
                whole[range.start * row..range.end * row],
                "{name}"
            );
            file.release(name);
        }
    }
}

#[test]
fn gemma_norms_lose_their_one_and_qwen_rows_stay() {
    let file = Writer::new("gemma")
        .tensor("token_embd.weight", &[1, 4], 0, &floats(&[0.0; 4]))
        .tensor("blk.0.attn_norm.weight", &[2], 0, &floats(&[1.5, 0.75]))
        .open();
    let norm = file
        .get("model.layers.0.input_layernorm.weight")
        .unwrap()
        .unwrap()
        .values()
        .unwrap()
        .unwrap();
    assert_eq!(norm, [0.5, -0.25]);
    let file = Writer::new("qwen2")
        .unsigned("qwen2.attention.head_count", 1)
        .tensor("token_embd.weight", &[1, 4], 0, &floats(&[0.0; 4]))
        .tensor("blk.0.attn_q.weight", &[4, 2], 0, &floats(&sample(8)))
        .tensor("blk.0.attn_q.bias", &[4], 0, &floats(&sample(4)))
        .open();
    assert_eq!(
        file.get("model.layers.0.self_attn.q_proj.weight")
            .unwrap()
            .unwrap()
            .values()
            .unwrap()
            .unwrap(),
        sample(8)
    );
    assert_eq!(
        file.get("model.layers.0.self_attn.q_proj.bias")
            .unwrap()
            .unwrap()
            .values()
            .unwrap()
            .unwrap(),
        sample(4)
    );
}

#[test]
fn hostile_headers_are_errors() {
    let sound = Writer::new("llama").tensor("a", &[2, 32], 0, &floats(&sample(64)));
    assert!(error(b"GGML....".to_vec()).contains("not a GGUF file"));
    assert!(error(Vec::new()).contains("truncated"));
    assert!(error(sound.bytes(1)).contains("version 2 or 3, found 1"));
    assert!(error(sound.bytes(4)).contains("version 2 or 3, found 4"));

    // Every possible truncation.
    let bytes = sound.bytes(3);
    for len in 0..bytes.len() {
        error(bytes[..len].to_vec());
    }
    assert!(error(bytes[..bytes.len() - 1].to_vec()).contains("tensor a [2, 32] F32 ends at byte"));

    // Counts and lengths that the file cannot hold.
    for (at, what) in [(8, "tensors"), (16, "metadata entries"), (24, "characters")] {
        for count in [u64::MAX, u64::MAX / 8, 1 << 40] {
            let mut bytes = bytes.clone();
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
            assert!(error(bytes).contains(what));
        }
    }
    let mut array = Vec::new();
    array.extend(4u32.to_le_bytes());
    array.extend(u64::MAX.to_le_bytes());
    assert!(
        error(Writer::new("llama").entry("many", 9, &array).bytes(3)).contains("array elements")
    );
    let nested: Vec<u8> = (0..100)
        .flat_map(|_| [9u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat())
        .collect();
    assert!(
        error(Writer::new("llama").entry("deep", 9, &nested).bytes(3)).contains("nested deeper")
    );
    assert!(
        error(Writer::new("llama").entry("odd", 77, &[0; 16]).bytes(3))
            .contains("unknown metadata type 77")
    );
    assert!(
        error(
            Writer::new("llama")
                .unsigned("general.alignment", 0)
                .bytes(3)
        )
        .contains("power of two")
    );
    assert!(
        error(
            Writer::new("llama")
                .unsigned("general.alignment", 48)
                .bytes(3)
        )
        .contains("power of two")
    );

    // Tensors.
    let huge = Writer::new("llama").tensor("a", &[1 << 40, 1 << 40], 0, &[]);
    assert!(error(huge.bytes(3)).contains("too many elements"));
    let large = Writer::new("llama").tensor("a", &[1 << 31, 1 << 30], 0, &[]);
    assert!(error(large.bytes(3)).contains("truncated: tensor a"));
    let ragged = Writer::new("llama").tensor("a", &[2, 33], 8, &[0; 128]);
    assert!(error(ragged.bytes(3)).contains("Q8_0 rows must be multiples of 32 values, found 33"));
    let empty = Writer::new("llama").tensor("a", &[1 << 40, 0], 0, &[]);
    assert!(error(empty.bytes(3)).contains("at least 1 element"));
    let five = Writer::new("llama").tensor("a", &[1, 1, 1, 1, 1], 0, &floats(&[0.0]));
    assert!(error(five.bytes(3)).contains("at most 4 axes, found 5"));
    let twice = Writer::new("llama")
        .tensor("a", &[1], 0, &floats(&[0.0]))
        .tensor("a", &[1], 0, &floats(&[0.0]));
    assert!(error(twice.bytes(3)).contains("described twice"));
    let headless = Writer::new("llama")
        .tensor("token_embd.weight", &[1, 4], 0, &floats(&[0.0; 4]))
        .tensor("blk.0.attn_q.weight", &[4, 4], 0, &floats(&[0.0; 16]));
    assert!(error(headless.bytes(3)).contains("heads"));
}

#[test]
fn random_damage_never_panics() {
    let sound = Writer::new("llama")
        .unsigned("llama.attention.head_count", 2)
        .string("general.name", "damage")
        .tensor(
            "token_embd.weight",
            &[4, 32],
            8,
            &quant::quantize(QuantType::Q8_0, &sample(128)),
        )
        .tensor(
            "blk.0.attn_q.weight",
            &[8, 32],
            8,
            &quant::quantize(QuantType::Q8_0, &sample(256)),
        )
        .tensor(
            "blk.0.ffn_gate_exps.weight",
            &[3, 2, 4],
            0,
            &floats(&sample(24)),
        )
        .bytes(3);
    let header = 400.min(sound.len());
    let mut state = 1u64;
    for _ in 0..20_000 {
        let mut bytes = sound.clone();
        for _ in 0..3 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let at = (state >> 33) as usize % header;
            bytes[at] = (state >> 20) as u8;
        }
        if let Ok(file) = open(bytes) {
            for name in file.names() {
                let _ = file
                    .get(name)
                    .map(|tensor| tensor.map(|tensor| tensor.values()));
            }
        }
    }
}
