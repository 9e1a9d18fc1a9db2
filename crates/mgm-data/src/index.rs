//! One pass over a JSON file that finds where each record begins and ends, holding one record in memory at a time.

use std::io::Read;

/// What the scan of a file ran into.
#[derive(Debug)]
pub(crate) enum ScanError<E> {
    Read(std::io::Error),
    Format(String),
    Visit(E),
}

/// Calls `visit(offset, bytes)` for every top-level object of a JSON array of objects, or of a plain sequence of objects (JSON lines).
///
/// Only the nesting is checked here; `visit` parses each record. Memory is bounded by the largest record and `record_limit`.
pub(crate) fn scan<R: Read, E>(
    mut reader: R,
    record_limit: usize,
    mut visit: impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<(), ScanError<E>> {
    let mut chunk = vec![0_u8; 1 << 20];
    let mut record = Vec::new();
    let mut scanner = Scanner::default();
    let mut base = 0_u64;
    loop {
        let filled = reader.read(&mut chunk).map_err(ScanError::Read)?;
        if filled == 0 {
            break;
        }
        let bytes = &chunk[..filled];
        // Where the part of the current record that lies in this chunk starts.
        let mut kept_from = 0;
        for (position, &byte) in bytes.iter().enumerate() {
            match scanner.step(byte) {
                Ok(Found::Nothing) => {}
                Ok(Found::Start) => {
                    scanner.start = base + position as u64;
                    kept_from = position;
                    record.clear();
                }
                Ok(Found::End) => {
                    record.extend_from_slice(&bytes[kept_from..=position]);
                    scanner.records += 1;
                    visit(scanner.start, &record).map_err(ScanError::Visit)?;
                }
                Err(expected) => {
                    let found = char::from(byte);
                    return Err(ScanError::Format(format!(
                        "byte {}: expected {expected}, found {found:?} (after {} records)",
                        base + position as u64,
                        scanner.records
                    )));
                }
            }
        }
        if scanner.depth > 0 {
            record.extend_from_slice(&bytes[kept_from..]);
            if record.len() > record_limit {
                return Err(ScanError::Format(format!(
                    "record {} is larger than {record_limit} bytes",
                    scanner.records
                )));
            }
        }
        base += filled as u64;
    }
    match scanner.place {
        _ if scanner.depth > 0 => Err(ScanError::Format(format!(
            "the file ends inside record {}",
            scanner.records
        ))),
        Place::Outside { array: true } | Place::AfterComma => Err(ScanError::Format(format!(
            "the file ends before the closing ']' (after {} records)",
            scanner.records
        ))),
        _ => Ok(()),
    }
}

enum Found {
    Nothing,
    Start,
    End,
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// Nothing but white space so far.
    Begin,
    /// Between records; `array` is false in a file of JSON lines.
    Outside { array: bool },
    /// After a comma of the array.
    AfterComma,
    /// After the opening bracket.
    AfterOpening,
    /// After the closing bracket.
    Finished,
}

struct Scanner {
    place: Place,
    depth: u32,
    in_string: bool,
    escaped: bool,
    start: u64,
    records: usize,
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            place: Place::Begin,
            depth: 0,
            in_string: false,
            escaped: false,
            start: 0,
            records: 0,
        }
    }
}

impl Scanner {
    #[inline]
    fn step(&mut self, byte: u8) -> Result<Found, &'static str> {
        if self.in_string {
            if self.escaped {
                self.escaped = false;
            } else if byte == b'\\' {
                self.escaped = true;
            } else if byte == b'"' {
                self.in_string = false;
            }
            return Ok(Found::Nothing);
        }
        if self.depth > 0 {
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Ok(Found::End);
                    }
                }
                _ => {}
            }
            return Ok(Found::Nothing);
        }
        if byte.is_ascii_whitespace() {
            return Ok(Found::Nothing);
        }
        match (self.place, byte) {
            (Place::Begin, b'[') => self.place = Place::AfterOpening,
            (Place::Begin | Place::Outside { array: false }, b'{') => {
                self.place = Place::Outside { array: false };
                self.depth = 1;
                return Ok(Found::Start);
            }
            (Place::AfterOpening | Place::AfterComma, b'{') => {
                self.place = Place::Outside { array: true };
                self.depth = 1;
                return Ok(Found::Start);
            }
            (Place::Outside { array: true }, b',') => self.place = Place::AfterComma,
            (Place::AfterOpening | Place::Outside { array: true }, b']') => {
                self.place = Place::Finished
            }
            (Place::Begin, _) => return Err("a JSON array of records"),
            (Place::Outside { array: true }, _) => return Err("',' or ']'"),
            (Place::Finished, _) => return Err("the end of the file"),
            _ => return Err("a record in braces"),
        }
        Ok(Found::Nothing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands out the text a few bytes at a time, so that records cross chunk borders.
    struct Dribble<'a>(&'a [u8], usize);
    impl Read for Dribble<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let count = self.1.min(self.0.len()).min(buffer.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    fn records(text: &str, step: usize) -> Result<Vec<(u64, String)>, String> {
        let mut found = Vec::new();
        let result = scan(Dribble(text.as_bytes(), step), 1 << 20, |offset, bytes| {
            found.push((offset, String::from_utf8(bytes.to_vec()).unwrap()));
            Ok::<(), ()>(())
        });
        match result {
            Ok(()) => Ok(found),
            Err(ScanError::Format(message)) => Err(message),
            Err(_) => Err("other".into()),
        }
    }

    #[test]
    fn offsets_are_right_however_the_bytes_arrive() {
        let text = "  [ {\"a\": \"}]\\\"{\"} ,\n{\"b\":[{},[1]]}]\n";
        for step in 1..text.len() + 1 {
            let found = records(text, step).unwrap();
            assert_eq!(found.len(), 2);
            for (offset, record) in found {
                let start = usize::try_from(offset).unwrap();
                assert_eq!(&text[start..start + record.len()], record);
            }
        }
    }

    #[test]
    fn json_lines_and_empty_array() {
        assert_eq!(records("{\"a\":1}\n{\"a\":2}\n", 3).unwrap().len(), 2);
        assert_eq!(records("[]", 3).unwrap().len(), 0);
    }

    #[test]
    fn broken_files() {
        assert!(
            records("[{\"a\":1}", 4)
                .unwrap_err()
                .contains("closing ']'")
        );
        assert!(
            records("[{\"a\":1},", 4)
                .unwrap_err()
                .contains("closing ']'")
        );
        assert!(
            records("[{\"a\":1},{\"b\"", 4)
                .unwrap_err()
                .contains("inside record 1")
        );
        assert!(
            records("[{\"a\":1} {\"b\":1}]", 4)
                .unwrap_err()
                .contains("',' or ']'")
        );
        assert!(records("hello", 4).unwrap_err().contains("a JSON array"));
        assert!(
            records("[1]", 4)
                .unwrap_err()
                .contains("a record in braces")
        );
        assert!(records("[] x", 4).unwrap_err().contains("end of the file"));
    }
}
