//! Writes the seeds: `seeds FOLDER` fills `FOLDER/TARGET/` with small sound files, most of them from the fixtures of the tests.

use std::path::{Path, PathBuf};

use mgm_fuzz_samples as samples;

/// Larger fixtures only slow the fuzzer down.
const LARGEST: u64 = 24 << 10;

fn main() -> std::io::Result<()> {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: seeds FOLDER");
        std::process::exit(2);
    };
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates");
    let mut seeds = Seeds { folder, written: 0 };

    seeds.put("safetensors", "one", &samples::shard("model.weight"))?;
    seeds.put("safetensors", "types", &samples::safetensors_types())?;
    seeds.put("gguf", "llama", &samples::gguf_llama())?;
    seeds.put("gguf", "gemma", &samples::gguf_gemma())?;
    seeds.put("gguf_vocabulary", "pieces", &samples::gguf_pieces())?;
    for pre in ["smollm", "qwen2", "llama-bpe", "gpt-2", "falcon", "default"] {
        seeds.put("gguf_vocabulary", pre, &samples::gguf_bytes(pre))?;
    }
    seeds.put("sentencepiece", "bytes", &samples::sentencepiece())?;
    for (name, index) in samples::INDEXES {
        seeds.put("index", name, index.as_bytes())?;
    }
    for (name, tokenizer) in samples::tokenizers() {
        seeds.put("tokenizer_json", name, tokenizer.as_bytes())?;
    }

    for file in files(&crates)? {
        let (Some(name), Ok(metadata)) = (
            file.file_name().and_then(|name| name.to_str()),
            file.metadata(),
        ) else {
            continue;
        };
        // `crates/CRATE/tests/fixtures/FAMILY/FILE`: the family tells files of one name apart.
        let family = file
            .parent()
            .and_then(Path::file_name)
            .unwrap_or_default()
            .to_string_lossy();
        let label = format!("{family}-{name}");
        if !file.components().any(|part| part.as_os_str() == "fixtures") || metadata.len() > LARGEST
        {
            continue;
        }
        let content = || std::fs::read(&file);
        let with_first =
            |first: u8| content().map(|content| [&[first], content.as_slice()].concat());
        match name.rsplit_once('.') {
            _ if name == "config.json" || name == "config_hd.json" => {
                seeds.put("config", &label, &content()?)?;
                seeds.put("tokenizer_config", &label, &with_first(3)?)?;
            }
            _ if name == "tokenizer_config.json" => {
                seeds.put("tokenizer_config", &label, &with_first(0)?)?
            }
            _ if name == "tokenizer.model" => seeds.put("sentencepiece", &label, &content()?)?,
            Some((_, "png" | "jpg" | "webp" | "gif" | "bmp")) if family == "formats" => {
                seeds.put("picture", name, &content()?)?
            }
            Some((_, "bin" | "pt" | "pth")) => {
                if let Some(pickle) = samples::pickle_of(&content()?) {
                    seeds.put("torch", &label, &content()?)?;
                    seeds.put("torch_pickle", &label, &pickle)?;
                }
            }
            _ => {}
        }
    }
    println!("{} seeds in {}", seeds.written, seeds.folder.display());
    Ok(())
}

struct Seeds {
    folder: PathBuf,
    written: usize,
}

impl Seeds {
    fn put(&mut self, target: &str, name: &str, bytes: &[u8]) -> std::io::Result<()> {
        let folder = self.folder.join(target);
        std::fs::create_dir_all(&folder)?;
        self.written += 1;
        std::fs::write(folder.join(name), bytes)
    }
}

/// All files below a folder.
fn files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}
