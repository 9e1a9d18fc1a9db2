use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::conversation::Conversation;
use crate::error::{DataError, MaskError};
use crate::index::{ScanError, scan};
use crate::record::{FieldError, Record, id_of_broken};

/// A record larger than this is refused (a conversation of 64 MiB is a broken file).
const RECORD_LIMIT: usize = 64 << 20;

/// What to do with records that break the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InvalidRecords {
    /// The first one is an error that names it.
    #[default]
    Error,
    /// Leave them out; [`Dataset::skipped`] says how many.
    Skip,
}

/// LLaVA-format JSON files, indexed in one pass and checked completely; records are read from disk when asked for.
pub struct Dataset {
    files: Vec<(PathBuf, Mutex<File>)>,
    entries: Vec<Entry>,
    lengths: Vec<i64>,
    skipped: usize,
    fingerprint: u64,
}

struct Entry {
    offset: u64,
    bytes: u32,
    file: u32,
    /// Position in its file.
    index: u32,
}

impl Dataset {
    /// Indexes `paths` (each a JSON array of records, or JSON lines), parsing and checking every record once.
    ///
    /// # Errors
    /// [`DataError`] naming the file and, for a broken record, its index, id and field.
    pub fn open(paths: &[PathBuf], invalid: InvalidRecords) -> Result<Self, DataError> {
        let mut dataset = Self {
            files: Vec::new(),
            entries: Vec::new(),
            lengths: Vec::new(),
            skipped: 0,
            fingerprint: FNV_OFFSET,
        };
        for path in paths {
            dataset.index_file(path, invalid)?;
        }
        if dataset.entries.is_empty() {
            let names: Vec<String> = paths
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            return Err(DataError::Empty(if names.is_empty() {
                "the recipe (no files given)".to_owned()
            } else {
                names.join(", ")
            }));
        }
        Ok(dataset)
    }

    fn index_file(&mut self, path: &Path, invalid: InvalidRecords) -> Result<(), DataError> {
        let read_error = |source| DataError::Read {
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(read_error)?;
        let file_number = u32::try_from(self.files.len()).unwrap_or(u32::MAX);
        let mut index = 0_usize;
        let scanned = scan(&mut file, RECORD_LIMIT, |offset, bytes| {
            let position = index;
            index += 1;
            self.fingerprint = fnv(self.fingerprint, bytes);
            let checked = Record::parse(bytes).and_then(|record| {
                Conversation::from_record(&record).map(|_| record.modality_length())
            });
            match checked {
                Ok(length) => {
                    self.entries.push(Entry {
                        offset,
                        bytes: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
                        file: file_number,
                        index: u32::try_from(position).unwrap_or(u32::MAX),
                    });
                    self.lengths.push(length);
                }
                Err(_) if invalid == InvalidRecords::Skip => self.skipped += 1,
                Err(field_error) => return Err(record_error(path, position, bytes, field_error)),
            }
            Ok(())
        });
        match scanned {
            Ok(()) => {}
            Err(ScanError::Read(source)) => return Err(read_error(source)),
            Err(ScanError::Format(message)) => {
                return Err(DataError::Format {
                    path: path.to_owned(),
                    message,
                });
            }
            Err(ScanError::Visit(error)) => return Err(error),
        }
        self.files.push((path.to_owned(), Mutex::new(file)));
        Ok(())
    }

    /// Number of usable records.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Never true: an empty data set is refused by [`Dataset::open`].
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Records left out under [`InvalidRecords::Skip`].
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// Length of each record in words, negative for text only (see [`Record::modality_length`]).
    pub fn modality_lengths(&self) -> &[i64] {
        &self.lengths
    }

    /// A hash over all record bytes, in order: two data sets with the same value train alike.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Reads record `number`, normalised.
    ///
    /// # Errors
    /// [`DataError`] when the file changed or became unreadable since it was indexed.
    pub fn conversation(&self, number: usize) -> Result<Conversation, DataError> {
        let (path, index, bytes) = self.read(number)?;
        Record::parse(&bytes)
            .and_then(|record| Conversation::from_record(&record))
            .map_err(|field_error| record_error(path, index, &bytes, field_error))
    }

    /// Wraps a masking error with the record's file, index and id.
    pub fn mask_error(&self, number: usize, source: MaskError) -> DataError {
        match self.read(number) {
            Ok((path, index, bytes)) => DataError::Mask {
                path: path.to_owned(),
                index,
                id: id_of_broken(&bytes),
                source,
            },
            Err(error) => error,
        }
    }

    /// A short name of record `number` for messages: file, index and id.
    pub fn describe(&self, number: usize) -> String {
        match self.read(number) {
            Ok((path, index, bytes)) => format!(
                "{}: record {index} (id {})",
                path.display(),
                id_of_broken(&bytes)
            ),
            Err(_) => format!("record {number}"),
        }
    }

    fn read(&self, number: usize) -> Result<(&Path, usize, Vec<u8>), DataError> {
        let entry = &self.entries[number];
        let (path, file) = &self.files[entry.file as usize];
        let mut bytes = vec![0_u8; entry.bytes as usize];
        let mut file = file
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        file.seek(SeekFrom::Start(entry.offset))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|source| DataError::Read {
                path: path.clone(),
                source,
            })?;
        Ok((path, entry.index as usize, bytes))
    }
}

fn record_error(
    path: &Path,
    index: usize,
    bytes: &[u8],
    (field, message): FieldError,
) -> DataError {
    DataError::Record {
        path: path.to_owned(),
        index,
        id: id_of_broken(bytes),
        field,
        message,
    }
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, 64 bits.
fn fnv(mut state: u64, bytes: &[u8]) -> u64 {
    for &byte in bytes {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    const GOOD: &str = r#"[
 {"id":"cap-17","image":"a.jpg","conversations":[{"from":"human","value":"<image>\nSay what."},{"from":"gpt","value":"A grey cat."}]},
 {"id":"text-8","conversations":[{"from":"human","value":"Draw. <GEN>"},{"from":"gpt","value":"Sure."}]}
]"#;

    #[test]
    fn several_files_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let first = write(&folder, "first.json", GOOD);
        let second = write(&folder, "second.json", &GOOD.replace("cat", "dog"));
        let dataset =
            Dataset::open(&[first.clone(), second.clone()], InvalidRecords::Error).unwrap();
        assert_eq!(dataset.len(), 4);
        // `<image>` counts as one word, as in the official code.
        assert_eq!(dataset.modality_lengths(), [6, -3, 6, -3]);
        assert_eq!(
            dataset.conversation(2).unwrap().messages[1].1,
            "A grey dog."
        );
        assert_eq!(
            dataset.conversation(3).unwrap().messages[0].1,
            "Draw. <GEN>"
        );
        assert!(
            dataset
                .describe(3)
                .ends_with("second.json: record 1 (id \"text-8\")")
        );
        let swapped = Dataset::open(&[second, first], InvalidRecords::Error).unwrap();
        assert_ne!(dataset.fingerprint(), swapped.fingerprint());
    }

    #[test]
    fn errors_name_file_record_and_field() {
        let folder = tempfile::tempdir().unwrap();
        let broken = write(
            &folder,
            "broken.json",
            &GOOD.replace(
                "\"from\":\"gpt\",\"value\":\"Sure.\"",
                "\"from\":\"robot\",\"value\":\"Sure.\"",
            ),
        );
        let message = Dataset::open(std::slice::from_ref(&broken), InvalidRecords::Error)
            .err()
            .unwrap()
            .to_string();
        assert!(
            message.ends_with(r#"broken.json: record 1 (id "text-8"): conversations[1].from: expected "human" or "gpt", found "robot""#),
            "{message}"
        );
        let lenient = Dataset::open(&[broken], InvalidRecords::Skip).unwrap();
        assert_eq!((lenient.len(), lenient.skipped()), (1, 1));
        let cut = write(&folder, "cut.json", &GOOD[..GOOD.len() - 40]);
        assert!(
            Dataset::open(&[cut], InvalidRecords::Error)
                .err()
                .unwrap()
                .to_string()
                .contains("the file ends inside record 1")
        );
        let missing = Dataset::open(&[folder.path().join("none.json")], InvalidRecords::Error)
            .err()
            .unwrap()
            .to_string();
        assert!(
            missing.starts_with("cannot read ") && missing.contains("none.json"),
            "{missing}"
        );
        let empty = write(&folder, "empty.json", "[]");
        assert!(matches!(
            Dataset::open(&[empty], InvalidRecords::Error),
            Err(DataError::Empty(_))
        ));
    }
}
