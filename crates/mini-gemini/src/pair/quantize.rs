//! Writing a pair from any checkpoint, tensor by tensor and a few rows at a time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mgm_nn::{ElementType, GgufTensor, GgufValueOut, GgufWriter, ImportanceMatrix};
use mgm_text::{GgufVocab, GgufVocabValue, Message, Template, Tokenizer};

use super::language::{self, LanguageFacts};
use super::mix::Scheme;
use super::plan::{self, Planned};
use super::values::Values;
use super::vision;
use crate::checkpoint::{Checkpoint, TokenizerFiles};
use crate::error::{Error, Result};
use crate::model::{LoadOptions, choose_template};
use crate::session::Control;

/// What to write and where.
#[derive(Debug)]
pub struct QuantizeOptions {
    /// The types.
    pub scheme: Scheme,
    /// The folder the files go to; made if it is not there.
    pub directory: PathBuf,
    /// Name in front of the scheme's in the file names; the checkpoint's own if `None`.
    pub name: Option<String>,
    /// How much each column of each matrix matters, as llama.cpp's `llama-imatrix` measures it.
    pub importance: Option<ImportanceMatrix>,
    /// Whether files that are there already are replaced.
    pub overwrite: bool,
}

/// Where the work stands.
#[derive(Clone, Copy, Debug)]
pub struct QuantizeProgress<'a> {
    /// The tensor being written, by its name in the file.
    pub tensor: &'a str,
    /// Its type.
    pub element_type: &'a str,
    /// Values done, of both files.
    pub done: u64,
    /// Values in all.
    pub total: u64,
}

/// A file that was written.
#[derive(Clone, Debug)]
pub struct WrittenFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Number of tensors of each type.
    pub tensors: BTreeMap<String, usize>,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct QuantizeReport {
    /// The language file.
    pub language: WrittenFile,
    /// The vision file; `None` for a text-only model.
    pub vision: Option<WrittenFile>,
    /// What the user should know, one line each.
    pub notes: Vec<String>,
}

/// Writes a checkpoint as a GGUF pair: `NAME-SCHEME.gguf` and, for a model with towers, `mmproj-NAME-SCHEME.gguf`. Adapters of the checkpoint are
/// merged. Both files are written beside their final names and renamed when both are complete; an error or [`Control::Stop`] leaves nothing.
///
/// # Errors
/// When a tensor is missing or misshapen, a file is there already and must not be replaced, or writing fails; [`Error::Stopped`] after
/// [`Control::Stop`].
pub fn quantize(
    checkpoint: &Checkpoint,
    options: &QuantizeOptions,
    progress: &mut dyn FnMut(QuantizeProgress) -> Control,
) -> Result<QuantizeReport> {
    let config = &checkpoint.config;
    let decoder = config.decoder(&checkpoint.config_file)?;
    let scheme = options.scheme;
    let template = choose_template(
        &LoadOptions::default(),
        config,
        &checkpoint.name,
        &checkpoint.config_file,
    )?;
    let name = file_stem(options.name.as_deref().unwrap_or(&checkpoint.name));
    let language_path = options
        .directory
        .join(format!("{name}-{}.gguf", scheme.name()));
    let vision_path = options
        .directory
        .join(format!("mmproj-{name}-{}.gguf", scheme.name()));

    let language_plan = plan::language(
        config,
        &decoder,
        &checkpoint.weights,
        scheme,
        options.importance.is_some(),
    )?;
    let vision_plan = match &config.mm_vision_tower {
        Some(_) => {
            let planned = plan::vision(&checkpoint.weights, scheme);
            plan::require_vision(&planned, &checkpoint.directory)?;
            planned
        }
        None => Vec::new(),
    };

    let mut notes = Vec::new();
    let mut language_keys = language::metadata(
        config,
        &decoder,
        &LanguageFacts {
            name: &name,
            template: template.name(),
            file_type: scheme.file_type(),
            with_vision: !vision_plan.is_empty(),
        },
    )?;
    language_keys.extend(vocabulary(
        checkpoint,
        template,
        decoder.vocab_size,
        &mut notes,
    )?);
    note_sources(checkpoint, &language_plan, &mut notes);

    std::fs::create_dir_all(&options.directory).map_err(|source| Error::Io {
        path: options.directory.clone(),
        source,
    })?;
    let has_vision = !vision_plan.is_empty();
    for path in [Some(&language_path), has_vision.then_some(&vision_path)]
        .into_iter()
        .flatten()
    {
        if path.exists() && !options.overwrite {
            return Err(Error::OutputExists { path: path.clone() });
        }
    }

    let mut job = Job {
        values: Values(checkpoint),
        importance: options.importance.as_ref(),
        done: 0,
        total: language_plan
            .iter()
            .chain(&vision_plan)
            .map(Planned::elements)
            .sum(),
        progress,
        notes,
    };
    let vision_file = if has_vision {
        let keys = vision::metadata(&name, scheme.file_type(), config, &checkpoint.weights)?;
        Some(job.write(&vision_path, &keys, &vision_plan, false)?)
    } else {
        None
    };
    let language_file = job.write(&language_path, &language_keys, &language_plan, true)?;
    let notes = job.notes;

    // Only now do the files get their names.
    let vision = vision_file.map(Pending::finish).transpose()?;
    let language = language_file.finish().inspect_err(|_| {
        if let Some(vision) = &vision {
            // Half a pair is of no use; the error that matters is the first one.
            let _ = std::fs::remove_file(&vision.path);
        }
    })?;
    Ok(QuantizeReport {
        language,
        vision,
        notes,
    })
}

/// A complete file that has not got its name yet.
struct Pending {
    writer: GgufWriter,
    written: WrittenFile,
}

impl Pending {
    fn finish(self) -> Result<WrittenFile> {
        self.writer.finish()?;
        Ok(self.written)
    }
}

struct Job<'a> {
    values: Values<'a>,
    importance: Option<&'a ImportanceMatrix>,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(QuantizeProgress) -> Control,
    notes: Vec<String>,
}

impl Job<'_> {
    fn write(
        &mut self,
        path: &Path,
        keys: &[(String, GgufValueOut)],
        plan: &[Planned],
        is_language: bool,
    ) -> Result<Pending> {
        let tensors: Vec<GgufTensor> = plan.iter().map(|planned| planned.target.clone()).collect();
        let mut writer = GgufWriter::create(path, keys, &tensors)?;
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        let mut without_importance = 0;
        for planned in plan {
            let element_type = planned.target.element_type.name();
            *counts.entry(element_type.to_string()).or_default() += 1;
            let importance = match self.importance.filter(|_| is_language) {
                Some(all) => importance_of(all, planned)?,
                None => None,
            };
            let quantised = matches!(planned.target.element_type, ElementType::Quantised(_));
            let is_embedding = planned.target.name == "token_embd.weight";
            if quantised && importance.is_none() && !is_embedding {
                without_importance += 1;
            }
            let (done, total, progress) = (&mut self.done, self.total, &mut self.progress);
            self.values
                .encode(planned, importance, &mut |bytes, values| {
                    writer.write(bytes)?;
                    *done += values;
                    match progress(QuantizeProgress {
                        tensor: &planned.target.name,
                        element_type,
                        done: (*done).min(total),
                        total,
                    }) {
                        Control::Continue => Ok(()),
                        Control::Stop => Err(Error::Stopped),
                    }
                })?;
        }
        if is_language && self.importance.is_some() && without_importance > 0 {
            self.notes.push(format!(
                "the importance matrix says nothing about {without_importance} of the quantised tensors"
            ));
        }
        let written = WrittenFile {
            path: path.to_path_buf(),
            bytes: writer.total_bytes(),
            tensors: counts,
        };
        Ok(Pending { writer, written })
    }
}

/// The numbers for a tensor, one a column (of every expert).
fn importance_of<'a>(all: &'a ImportanceMatrix, planned: &Planned) -> Result<Option<&'a [f32]>> {
    let Some(found) = all.get(&planned.target.name) else {
        return Ok(None);
    };
    let width = planned.target.shape.last().copied().unwrap_or(0);
    let expected = width * planned.sources.len();
    if found.len() == expected {
        return Ok(Some(found));
    }
    // As llama-quantize: the embedding is looked up, not multiplied, so its entry need not fit.
    if planned.target.name == "token_embd.weight" {
        return Ok(None);
    }
    Err(Error::Input(format!(
        "importance matrix: {} has {} numbers, expected {expected}: it was measured on another model",
        planned.target.name,
        found.len()
    )))
}

/// The tokeniser's keys.
fn vocabulary(
    checkpoint: &Checkpoint,
    template: &'static Template,
    rows: usize,
    notes: &mut Vec<String>,
) -> Result<Vec<(String, GgufValueOut)>> {
    let tokenizer = checkpoint.tokenizer.load()?;
    let (TokenizerFiles::Directory(source) | TokenizerFiles::File(source)) = &checkpoint.tokenizer;
    if tokenizer.vocab_size() > rows {
        notes.push(format!(
            "the tokeniser knows {} tokens, the embedding has {rows} rows; the file holds the first {rows}",
            tokenizer.vocab_size()
        ));
    }
    let vocab = GgufVocab::from_tokenizer(&tokenizer, source, rows)?;
    let mut keys: Vec<(String, GgufValueOut)> = vocab
        .entries()
        .into_iter()
        .map(|(key, value)| {
            let value = match value {
                GgufVocabValue::String(value) => GgufValueOut::String(value),
                GgufVocabValue::Bool(value) => GgufValueOut::Bool(value),
                GgufVocabValue::U32(value) => GgufValueOut::U32(value),
                GgufVocabValue::Strings(values) => GgufValueOut::Strings(values),
                GgufVocabValue::F32s(values) => GgufValueOut::F32s(values),
                GgufVocabValue::I32s(values) => GgufValueOut::I32s(values),
                GgufVocabValue::U32s(values) => GgufValueOut::U32s(values),
            };
            (key, value)
        })
        .collect();
    let end_of_turn = template
        .stop_token_ids(&tokenizer)
        .into_iter()
        .find(|&id| Some(id) != tokenizer.eos() && (id as usize) < rows);
    if let Some(id) = end_of_turn {
        keys.push(("tokenizer.ggml.eot_token_id".into(), id.into()));
    }
    if tokenizer.vocab_size() <= rows {
        check_vocabulary(&tokenizer, &vocab, template, notes)?;
    }
    Ok(keys)
}

/// Compares the tokeniser that the file will hold with the one it was made from.
fn check_vocabulary(
    tokenizer: &Tokenizer,
    vocab: &GgufVocab,
    template: &Template,
    notes: &mut Vec<String>,
) -> Result<()> {
    let written = Tokenizer::from_gguf_metadata(vocab)?;
    let prompt = template.render(&[
        Message::user("What is in the picture?\nAnswer in  one word."),
        Message::assistant("A cat."),
        Message::user("¿Por qué? 为什么 🙂"),
        Message::open_answer(),
    ]);
    let texts = [
        prompt.as_str(),
        "",
        " leading and trailing  spaces ",
        "fn main() {\n\tprintln!(\"{}\", 1 + 23456);\n}\n\n",
        "Größe, naïve, İstanbul, 日本語, \u{0}\u{7f}",
    ];
    for text in texts {
        let (expected, found) = (tokenizer.encode(text, true)?, written.encode(text, true)?);
        if expected != found {
            notes.push(format!(
                "the written vocabulary splits some texts differently, for example {text:?}: please report this tokeniser"
            ));
            return Ok(());
        }
    }
    Ok(())
}

/// Says when precision was already lost before.
fn note_sources(checkpoint: &Checkpoint, plan: &[Planned], notes: &mut Vec<String>) {
    let quantised: Vec<String> = plan
        .iter()
        .flat_map(|planned| &planned.sources)
        .filter_map(
            |source| match checkpoint.weights.info(source)?.element_type {
                ElementType::Quantised(quant_type) => Some(quant_type.name().to_string()),
                _ => None,
            },
        )
        .collect();
    if let Some(first) = quantised.first() {
        notes.push(format!(
            "{} of the source's tensors are quantised already ({first}…); what they lost stays lost",
            quantised.len()
        ));
    }
}

/// A name for files: without path separators, and without the scheme of the file it came from.
fn file_stem(name: &str) -> String {
    let clean: String = name
        .chars()
        .map(|character| match character {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '_' | '-' => character,
            _ => '-',
        })
        .collect();
    let stem = Scheme::ALL
        .iter()
        .find_map(|scheme| clean.strip_suffix(&format!("-{}", scheme.name())))
        .unwrap_or(&clean)
        .trim_matches(['-', '.']);
    if stem.is_empty() { "model" } else { stem }.to_string()
}

#[cfg(test)]
mod tests {
    use super::file_stem;

    #[test]
    fn names_become_file_names() {
        assert_eq!(file_stem("MGM-2B"), "MGM-2B");
        assert_eq!(file_stem("MGM-2B-Q4_K_M"), "MGM-2B");
        assert_eq!(file_stem("../a b/c"), "a-b-c");
        assert_eq!(file_stem("…"), "model");
    }
}
