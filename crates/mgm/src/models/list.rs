//! `mgm models list`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use mgm_hub::releases::{RELEASES, Release};
use mgm_hub::{Repository, cache};
use mini_gemini::{BUILT_IN_NAME, ModelSource};
use serde::Serialize;

use super::{files, megabytes};
use crate::cli::ListArgs;
use crate::failure::Failure;
use crate::stdout;

/// How deep a model zoo is searched: `LLM/gemma/2b-it` is three folders down.
const ZOO_DEPTH: usize = 3;

/// A model on this machine.
#[derive(Debug, Serialize)]
struct Local {
    /// What `--model` takes.
    name: String,
    /// `built-in`, `cache` or `zoo`.
    place: &'static str,
    bytes: u64,
    /// Kinds of weight files.
    formats: Vec<&'static str>,
    /// The configuration's first architecture.
    architecture: Option<String>,
    path: PathBuf,
}

/// A model that can be downloaded.
#[derive(Debug, Serialize)]
struct Known {
    name: &'static str,
    repository: &'static str,
    parameters: u64,
    download_bytes: u64,
    memory_bf16_bytes: u64,
    memory_q4_k_m_bytes: u64,
    downloaded: bool,
}

#[derive(Debug, Serialize)]
struct Models {
    local: Vec<Local>,
    releases: Vec<Known>,
}

/// Prints the models that are there, and those that can be pulled.
pub(super) fn run(args: &ListArgs) -> Result<(), Failure> {
    let mut local = vec![built_in()?];
    let mut cached = Vec::new();
    if let Some(cache) = cache::directory() {
        for snapshot in cache::snapshots(&cache) {
            let current = cache::find_snapshot_in(&cache, &snapshot.repository, None);
            // `--model` takes the repository's name for what its main branch stood for, and a path for other revisions.
            let name = match current.is_some_and(|current| current == snapshot.path) {
                true => snapshot.repository.to_string(),
                false => snapshot.path.display().to_string(),
            };
            if let Some(model) = describe(name, "cache", &snapshot.path) {
                cached.push(snapshot.repository);
                local.push(model);
            }
        }
    }
    if let Some(zoo) = &args.model_zoo {
        if !zoo.is_dir() {
            return Err(Failure::failed(format!(
                "model zoo {}: no such folder",
                zoo.display()
            )));
        }
        search(zoo, zoo, ZOO_DEPTH, &mut local);
    }
    let models = Models {
        local,
        releases: RELEASES
            .iter()
            .map(|release| known(release, &cached))
            .collect(),
    };
    match args.json {
        true => stdout::write_json(&models),
        false => stdout::write(table(&models)),
    }
}

fn built_in() -> Result<Local, Failure> {
    let directory = ModelSource::BuiltIn.directory()?;
    let directory = directory.canonicalize().unwrap_or(directory);
    let bytes = files(&directory)?.iter().map(|(_, size)| size).sum();
    Ok(Local {
        name: BUILT_IN_NAME.into(),
        place: "built-in",
        bytes,
        formats: formats(&directory),
        architecture: architecture(&directory),
        path: directory,
    })
}

fn known(release: &Release, cached: &[Repository]) -> Known {
    Known {
        name: release.name,
        repository: release.repository,
        parameters: release.parameters(),
        download_bytes: release.download_bytes(),
        memory_bf16_bytes: release.bf16_memory(),
        memory_q4_k_m_bytes: release.q4_k_m_memory(),
        downloaded: cached
            .iter()
            .any(|repository| repository.as_str() == release.repository),
    }
}

/// The models below a folder: folders with `config.json` or GGUF files. Links to folders are not followed.
fn search(zoo: &Path, folder: &Path, depth: usize, found: &mut Vec<Local>) {
    let name = folder.strip_prefix(zoo).unwrap_or(folder);
    if let Some(model) = describe(name.display().to_string(), "zoo", folder) {
        found.push(model);
        return;
    }
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    let mut folders: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    folders.sort();
    if depth > 0 {
        for folder in folders {
            search(zoo, &folder, depth - 1, found);
        }
    }
}

/// A folder that holds weights.
fn describe(name: String, place: &'static str, folder: &Path) -> Option<Local> {
    let formats = formats(folder);
    (!formats.is_empty()).then(|| Local {
        name,
        place,
        bytes: files(folder)
            .unwrap_or_default()
            .iter()
            .map(|(_, size)| size)
            .sum(),
        formats,
        architecture: architecture(folder),
        path: folder.into(),
    })
}

/// The kinds of weight files in a folder, most usual first.
fn formats(folder: &Path) -> Vec<&'static str> {
    let files = files(folder).unwrap_or_default();
    let ends_with = |endings: &[&str]| {
        files.iter().any(|(path, _)| {
            let name = path.to_string_lossy();
            // Of torch's many `.bin` files, tokenisers and training arguments are not weights.
            !name.ends_with("training_args.bin")
                && endings.iter().any(|ending| name.ends_with(ending))
        })
    };
    [
        ("safetensors", &[".safetensors"][..]),
        ("torch", &[".bin", ".pth"]),
        ("gguf", &[".gguf"]),
    ]
    .into_iter()
    .filter(|(_, endings)| ends_with(endings))
    .map(|(format, _)| format)
    .collect()
}

fn architecture(folder: &Path) -> Option<String> {
    let text = std::fs::read(folder.join("config.json")).ok()?;
    let config: serde_json::Value = serde_json::from_slice(&text).ok()?;
    Some(config.get("architectures")?.get(0)?.as_str()?.to_string())
}

fn table(models: &Models) -> String {
    let mut text = String::new();
    let mut sections: BTreeMap<usize, Vec<[String; 4]>> = BTreeMap::new();
    for model in &models.local {
        let section = match model.place {
            "built-in" => 0,
            "cache" => 1,
            _ => 2,
        };
        sections.entry(section).or_default().push([
            model.name.clone(),
            size(model.bytes),
            model.formats.join(", "),
            match model.place {
                "cache" => model.architecture.clone().unwrap_or_default(),
                _ => model.path.display().to_string(),
            },
        ]);
    }
    for (section, rows) in sections {
        let heading = ["Built in", "Downloaded", "In the model zoo"][section];
        let width = rows.iter().map(|row| row[0].len()).max().unwrap_or(0);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{heading}");
        for [name, size, formats, more] in rows {
            let line = format!("  {name:width$}  {size:>9}  {formats:11}  {more}");
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text.push('\n');
    }
    let _ = writeln!(text, "Releases (mgm models pull NAME)");
    let _ = writeln!(
        text,
        "  {:12}  {:>10}  {:>9}  {:>11}  {:>13}",
        "", "parameters", "download", "memory bf16", "memory Q4_K_M"
    );
    for release in &models.releases {
        let line = format!(
            "  {:12}  {:>8.1} B  {:>9}  {:>11}  {:>13}  {}",
            release.name,
            release.parameters as f64 / 1e9,
            size(release.download_bytes),
            size(release.memory_bf16_bytes),
            size(release.memory_q4_k_m_bytes),
            if release.downloaded { "downloaded" } else { "" }
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn size(bytes: u64) -> String {
    match bytes {
        1_000_000_000.. => format!("{:.1} GB", bytes as f64 / 1e9),
        _ => megabytes(bytes),
    }
}
