//! What the fuzz targets share: an allocator with a limit, a place for the input, and the uses an opened file is put to.
//!
//! A target fails when its reader panics, aborts, takes longer than the limit of the run, or holds more memory than
//! [`FACTOR`] times its input and [`FIXED`] bytes.

use std::alloc::System;
use std::path::{Path, PathBuf};

use cap::Cap;
use mgm_nn::WeightSource;
use mgm_text::Tokenizer;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// Bytes of memory that a reader may hold for every byte of its input.
///
/// The worst honest ratio is that of the smallest record to what it becomes. A one-byte GGUF array element becomes a `GgufValue` of
/// 32 bytes; a two-byte SentencePiece field becomes an empty piece: a `String` (24), a score and a kind (5), its entries in the hash tables of
/// ids (40) and of the detokeniser (32), some of it twice while a vector grows. 64 bytes a byte hold these, and are far
/// below what a count read from the file and believed would ask for.
pub const FACTOR: usize = 64;

/// Bytes that a reader may hold for any input: compiled regular expressions and Unicode tables of the tokenisers, pools of threads, buffers
/// of fixed size.
pub const FIXED: usize = 16 << 20;

/// Runs `work` on an input of `length` bytes under the limit; `extra` bytes are allowed on top for what the input legitimately expands to
/// (pixels). An allocation beyond aborts the process, which the fuzzer records.
pub fn bounded<T>(length: usize, extra: usize, work: impl FnOnce() -> T) -> T {
    // Telling of a panic takes memory of its own.
    static LIFT_ON_PANIC: std::sync::Once = std::sync::Once::new();
    LIFT_ON_PANIC.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let _ = ALLOCATOR.set_limit(usize::MAX);
            tell(panic);
        }));
    });
    let limit = ALLOCATOR.allocated() + FACTOR * length + FIXED + extra;
    ALLOCATOR
        .set_limit(limit)
        .expect("the limit is above what is held");
    let result = work();
    ALLOCATOR.set_limit(usize::MAX).expect("no limit");
    result
}

/// A folder of this process, in memory where the system has such a place.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes it.
    pub fn new(name: &str) -> Self {
        let shared_memory = Path::new("/dev/shm");
        let parent = if shared_memory.is_dir() {
            shared_memory.to_path_buf()
        } else {
            std::env::temp_dir()
        };
        let path = parent.join(format!("mgm-fuzz-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("scratch folder");
        Self(path)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Puts `bytes` into the file `name` and returns its path.
    pub fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        // A new file each time: the old one may still be mapped.
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, bytes).expect("scratch file");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A string with the property that every error of this project has: one line.
pub fn one_line(error: &dyn std::error::Error) {
    let text = error.to_string();
    assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
}

/// Decodes every tensor.
pub fn touch_weights(source: mgm_nn::Result<WeightSource>) {
    let source = match source {
        Ok(source) => source,
        Err(error) => return one_line(&error),
    };
    let _ = source.gguf_metadata().map(|metadata| {
        metadata
            .iter()
            .filter(|(key, value)| key.len() > 3 && value.as_u64().is_some())
            .count()
    });
    for name in source.names() {
        let shape = source.shape(&name).expect("a listed tensor has a shape");
        match source.tensor_any(&name) {
            Ok(tensor) => assert_eq!(tensor.dims(), shape),
            Err(error) => one_line(&error),
        }
    }
}

/// Encodes and decodes with a tokeniser that a file has given, and asks for every token.
pub fn touch_tokenizer(tokenizer: Result<Tokenizer, mgm_text::TextError>) {
    let tokenizer = match tokenizer {
        Ok(tokenizer) => tokenizer,
        Err(error) => return one_line(&error),
    };
    const TEXT: &str = "Hello  <s> world</s>\n\tÀ bientôt, 漢字 😀 <image> 12345 it's<|im_end|>";
    for parse_special in [true, false] {
        match tokenizer.encode_parse(TEXT, true, parse_special) {
            Ok(ids) => {
                let _ = tokenizer.decode(&ids, true);
                let mut stream = tokenizer.stream();
                for id in ids {
                    let _ = stream.push(id);
                }
                let _ = stream.finish();
            }
            Err(error) => one_line(&error),
        }
    }
    let all: Vec<u32> = (0..tokenizer.vocab_size() as u32).collect();
    let _ = tokenizer.decode(&all, false);
    for id in all {
        if let Some(token) = tokenizer.id_to_token(id) {
            let _ = tokenizer.token_to_id(&token);
        }
    }
    for id in [
        tokenizer.bos(),
        tokenizer.eos(),
        tokenizer.pad(),
        tokenizer.unk(),
    ] {
        let _ = id.map(|id| tokenizer.is_special(id));
    }
}
