//! Small sound files: what the fuzzer starts from, and what surrounds its input.

use std::io::{Cursor, Read, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive};

/// A safetensors file of one tensor.
pub fn shard(name: &str) -> Vec<u8> {
    let header = format!(r#"{{"{name}":{{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}}}"#);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(
        [1.0f32, -2.0, 0.5, 4.0]
            .iter()
            .flat_map(|value| value.to_le_bytes()),
    );
    bytes
}

/// A torch file with this pickle and two storages of 64 bytes, all entries stored, as `torch.save` writes them.
pub fn torch_archive(pickle: &[u8]) -> Vec<u8> {
    let storage: Vec<u8> = (0..64).collect();
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .with_alignment(64);
    for (name, content) in [
        ("archive/data.pkl", pickle),
        ("archive/byteorder", b"little"),
        ("archive/data/0", &storage),
        ("archive/data/1", &storage),
        ("archive/version", b"3\n"),
    ] {
        archive.start_file(name, stored).expect("entry");
        archive.write_all(content).expect("memory");
    }
    archive.finish().expect("memory").into_inner()
}

/// The pickle of a torch file.
pub fn pickle_of(torch_file: &[u8]) -> Option<Vec<u8>> {
    let mut archive = ZipArchive::new(Cursor::new(torch_file)).ok()?;
    let name = archive
        .file_names()
        .filter_map(Result::ok)
        .find(|name| name.ends_with("data.pkl"))?
        .into_owned();
    let mut pickle = Vec::new();
    archive.by_name(&name).ok()?.read_to_end(&mut pickle).ok()?;
    Some(pickle)
}

/// A SentencePiece model of a few pieces with byte fallback.
pub fn sentencepiece() -> Vec<u8> {
    fn field(number: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2, body.len() as u8];
        bytes.extend_from_slice(body);
        bytes
    }
    let mut bytes = Vec::new();
    let mut push = |text: &str, score: f32, kind: u8| {
        let mut piece = field(1, text.as_bytes());
        piece.push(2 << 3 | 5);
        piece.extend(score.to_le_bytes());
        piece.extend([3 << 3, kind]);
        bytes.extend(field(1, &piece));
    };
    push("<unk>", 0.0, 2);
    push("<s>", 0.0, 3);
    push("</s>", 0.0, 3);
    for byte in 0..=255u8 {
        push(&format!("<0x{byte:02X}>"), 0.0, 6);
    }
    for (rank, text) in [
        "\u{2581}",
        "H",
        "e",
        "l",
        "o",
        "ll",
        "\u{2581}H",
        "\u{2581}He",
        "llo",
    ]
    .iter()
    .enumerate()
    {
        push(text, -(rank as f32), 1);
    }
    // A byte-pair model without a character map that puts a space before the text.
    bytes.extend(field(2, &[3 << 3, 2]));
    bytes.extend(field(3, &[3 << 3, 1, 4 << 3, 0]));
    bytes
}

/// A metadata value of a GGUF file.
pub enum Value<'a> {
    /// Type 4.
    U32(u32),
    /// Type 6.
    F32(f32),
    /// Type 7.
    Bool(bool),
    /// Type 8.
    Text(&'a str),
    /// Type 9 of 8.
    Texts(&'a [&'a str]),
    /// Type 9 of 6.
    Floats(&'a [f32]),
    /// Type 9 of 5.
    Integers(&'a [i32]),
    /// Type 9 of 0.
    Bytes(&'a [u8]),
}

/// A GGUF file, version 3: metadata; tensors as name, axes (innermost first), type number and bytes.
pub fn gguf(metadata: &[(&str, Value)], tensors: &[(&str, &[u64], u32, usize)]) -> Vec<u8> {
    fn text(bytes: &mut Vec<u8>, text: &str) {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    }
    fn array(bytes: &mut Vec<u8>, kind: u32, count: usize) {
        bytes.extend(9u32.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend((count as u64).to_le_bytes());
    }
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut bytes, key);
        match value {
            Value::U32(value) => {
                bytes.extend(4u32.to_le_bytes());
                bytes.extend(value.to_le_bytes());
            }
            Value::F32(value) => {
                bytes.extend(6u32.to_le_bytes());
                bytes.extend(value.to_le_bytes());
            }
            Value::Bool(value) => {
                bytes.extend(7u32.to_le_bytes());
                bytes.push(u8::from(*value));
            }
            Value::Text(value) => {
                bytes.extend(8u32.to_le_bytes());
                text(&mut bytes, value);
            }
            Value::Texts(values) => {
                array(&mut bytes, 8, values.len());
                values.iter().for_each(|value| text(&mut bytes, value));
            }
            Value::Floats(values) => {
                array(&mut bytes, 6, values.len());
                bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
            Value::Integers(values) => {
                array(&mut bytes, 5, values.len());
                bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
            Value::Bytes(values) => {
                array(&mut bytes, 0, values.len());
                bytes.extend(*values);
            }
        }
    }
    let mut data = Vec::new();
    for (name, axes, kind, size) in tensors {
        text(&mut bytes, name);
        bytes.extend((axes.len() as u32).to_le_bytes());
        axes.iter()
            .for_each(|axis| bytes.extend(axis.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend((data.len() as u64).to_le_bytes());
        data.extend((0..*size).map(|index| (index % 63) as u8));
        data.resize(data.len().next_multiple_of(32), 0);
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend(data);
    bytes
}

/// A text model of architecture `llama` with one layer of two experts, and one tensor of each block type.
pub fn gguf_llama() -> Vec<u8> {
    gguf(
        &[
            ("general.architecture", Value::Text("llama")),
            ("general.alignment", Value::U32(32)),
            ("llama.attention.head_count", Value::U32(2)),
            ("llama.attention.head_count_kv", Value::U32(1)),
            ("llama.expert_count", Value::U32(2)),
            ("llama.rope.freq_base", Value::F32(10000.0)),
            ("some.bytes", Value::Bytes(&[1, 2, 3])),
        ],
        &[
            ("token_embd.weight", &[32, 4], 8, 136),
            ("blk.0.attn_q.weight", &[32, 4], 2, 72),
            ("blk.0.attn_k.weight", &[32, 2], 1, 128),
            ("blk.0.attn_v.weight", &[32, 2], 30, 128),
            ("blk.0.ffn_gate_inp.weight", &[32, 2], 0, 256),
            ("blk.0.ffn_gate_exps.weight", &[32, 2, 2], 3, 80),
            ("blk.0.ffn_up_exps.weight", &[32, 2, 2], 6, 88),
            ("blk.0.ffn_down_exps.weight", &[32, 2, 2], 7, 96),
            ("output_norm.weight", &[32], 0, 128),
            ("blk.0.ffn_up.weight", &[256], 12, 144),
            ("blk.0.ffn_gate.weight", &[256], 13, 176),
            ("blk.0.ffn_down.weight", &[256], 14, 210),
            ("rope_freqs.weight", &[4], 28, 32),
        ],
    )
}

/// A text model of architecture `gemma`.
pub fn gguf_gemma() -> Vec<u8> {
    gguf(
        &[("general.architecture", Value::Text("gemma"))],
        &[
            ("token_embd.weight", &[32, 4], 8, 136),
            ("output_norm.weight", &[8], 0, 32),
            ("blk.0.attn_norm.weight", &[8], 1, 16),
        ],
    )
}

/// A vocabulary in the SentencePiece way.
pub fn gguf_pieces() -> Vec<u8> {
    let tokens = [
        "<unk>",
        "<s>",
        "</s>",
        "<0x41>",
        "\u{2581}",
        "H",
        "e",
        "\u{2581}H",
        "\u{2581}He",
        "<m>",
    ];
    gguf(
        &[
            ("general.architecture", Value::Text("llama")),
            ("tokenizer.ggml.model", Value::Text("llama")),
            ("tokenizer.ggml.tokens", Value::Texts(&tokens)),
            (
                "tokenizer.ggml.scores",
                Value::Floats(&[0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0, 0.0]),
            ),
            (
                "tokenizer.ggml.token_type",
                Value::Integers(&[2, 3, 3, 6, 1, 1, 1, 1, 1, 4]),
            ),
            ("tokenizer.ggml.bos_token_id", Value::U32(1)),
            ("tokenizer.ggml.eos_token_id", Value::U32(2)),
            ("tokenizer.ggml.unknown_token_id", Value::U32(0)),
            ("tokenizer.ggml.padding_token_id", Value::U32(0)),
            ("tokenizer.ggml.add_bos_token", Value::Bool(true)),
            ("tokenizer.ggml.add_space_prefix", Value::Bool(true)),
            ("mini_gemini.tokenizer.legacy", Value::Bool(false)),
            ("tokenizer.chat_template", Value::Text("{{ messages }}")),
        ],
        &[],
    )
}

/// A vocabulary in the byte-level way, with this pre-tokeniser.
pub fn gguf_bytes(pre: &str) -> Vec<u8> {
    let tokens = [
        "H",
        "e",
        "l",
        "o",
        "He",
        "ll",
        "\u{120}",
        "w",
        "\u{120}w",
        "<|im_end|>",
        "<s>",
    ];
    gguf(
        &[
            ("general.architecture", Value::Text("qwen2")),
            ("tokenizer.ggml.model", Value::Text("gpt2")),
            ("tokenizer.ggml.pre", Value::Text(pre)),
            ("tokenizer.ggml.tokens", Value::Texts(&tokens)),
            (
                "tokenizer.ggml.token_type",
                Value::Integers(&[1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 4]),
            ),
            (
                "tokenizer.ggml.merges",
                Value::Texts(&["H e", "l l", "\u{120} w"]),
            ),
            ("tokenizer.ggml.eos_token_id", Value::U32(9)),
        ],
        &[],
    )
}

/// A safetensors file with metadata and a tensor of each of several types.
pub fn safetensors_types() -> Vec<u8> {
    let header = concat!(
        r#"{"__metadata__":{"format":"pt"},"#,
        r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"#,
        r#""b":{"dtype":"F16","shape":[2,2],"data_offsets":[8,16]},"#,
        r#""c":{"dtype":"BF16","shape":[4],"data_offsets":[16,24]},"#,
        r#""d":{"dtype":"F64","shape":[],"data_offsets":[24,32]},"#,
        r#""e":{"dtype":"I64","shape":[1],"data_offsets":[32,40]},"#,
        r#""f":{"dtype":"U8","shape":[0,7],"data_offsets":[40,40]}}"#
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(0..40);
    bytes
}

/// Index files over the shards `a` and `b`.
pub const INDEXES: [(&str, &str); 3] = [
    (
        "good",
        r#"{"metadata":{"total_size":32},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#,
    ),
    (
        "itself",
        r#"{"weight_map":{"a":"model.safetensors.index.json"}}"#,
    ),
    (
        "outside",
        r#"{"weight_map":{"a":"../../etc/passwd","b":"/dev/zero"}}"#,
    ),
];

/// Small `tokenizer.json` files: byte-level pairs with a post-processor, and pieces with byte fallback.
pub fn tokenizers() -> Vec<(&'static str, String)> {
    let byte_level = r#"{"version":"1.0","truncation":null,"padding":null,
"added_tokens":[{"id":6,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
"normalizer":{"type":"NFC"},
"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\p{N}{1,3}| ?\\p{L}+"},"behavior":"Isolated","invert":false},
{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}]},
"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],
"pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],"special_tokens":{"<s>":{"id":"<s>","ids":[6],"tokens":["<s>"]}}},
"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},
"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges":true,
"vocab":{"H":0,"e":1,"l":2,"o":3,"He":4,"ll":5},"merges":["H e",["l","l"]]}}"#;
    let pieces = r#"{"version":"1.0","added_tokens":[{"id":0,"content":"<unk>","single_word":false,"lstrip":true,"rstrip":false,"normalized":false,"special":true}],
"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]},
"pre_tokenizer":null,"post_processor":null,
"decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},
"model":{"type":"BPE","unk_token":"<unk>","fuse_unk":true,"byte_fallback":true,"vocab":{"<unk>":0,"<0x0A>":1,"▁":2,"H":3,"▁H":4},"merges":["▁ H"]}}"#;
    let unigram = r#"{"version":"1.0","added_tokens":[],"normalizer":null,"pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true},
"post_processor":null,"decoder":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true},
"model":{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0.0],["▁",-1.5],["H",-2.0],["▁He",-2.5]],"byte_fallback":false}}"#;
    vec![
        ("byte-level", byte_level.to_string()),
        ("pieces", pieces.to_string()),
        ("unigram", unigram.to_string()),
    ]
}
