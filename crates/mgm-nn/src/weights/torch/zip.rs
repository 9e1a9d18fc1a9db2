//! The directory of a zip archive (also zip64) whose entries are stored without compression, as `torch.save` writes them.

use std::collections::HashMap;
use std::ops::Range;

const END: &[u8] = b"PK\x05\x06";
const END_LEN: usize = 22;
const END_64: &[u8] = b"PK\x06\x06";
const END_64_LOCATOR: &[u8] = b"PK\x06\x07";
const END_64_LOCATOR_LEN: usize = 20;
const DIRECTORY_ENTRY: &[u8] = b"PK\x01\x02";
const DIRECTORY_ENTRY_LEN: usize = 46;
const LOCAL: &[u8] = b"PK\x03\x04";
const LOCAL_LEN: usize = 30;
/// Longest comment after the end record.
const MAX_COMMENT: usize = 0xffff;
/// Extra field with the 64-bit sizes.
const ZIP64_EXTRA: u16 = 1;

/// Names of all entries and where in the archive their bytes lie; `None` for a compressed or encrypted one. The error is one line without the file's name.
pub(super) fn directory(bytes: &[u8]) -> Result<HashMap<String, Option<Range<usize>>>, String> {
    let (count, range) = end_record(bytes)?;
    let mut rest = bytes.get(range.clone()).ok_or_else(|| {
        format!(
            "damaged zip archive: its directory at bytes {range:?} is outside the file of {} bytes",
            bytes.len()
        )
    })?;
    let most = rest.len() / DIRECTORY_ENTRY_LEN;
    if count > most as u64 {
        return Err(format!(
            "damaged zip archive: its directory claims {count} entries, it can hold at most {most}"
        ));
    }
    let mut entries = HashMap::with_capacity(count as usize);
    for _ in 0..count {
        let (name, place, len) = directory_entry(bytes, rest)?;
        rest = &rest[len..];
        if entries.insert(name.clone(), place).is_some() {
            return Err(format!("damaged zip archive: two entries named {name}"));
        }
    }
    Ok(entries)
}

/// Number of entries and place of the directory.
fn end_record(bytes: &[u8]) -> Result<(u64, Range<usize>), String> {
    let first = bytes.len().saturating_sub(END_LEN + MAX_COMMENT);
    let at = (first..=bytes.len().saturating_sub(END_LEN))
        .rev()
        .find(|&at| {
            bytes[at..].starts_with(END)
                && u16_at(bytes, at + 20)
                    .is_some_and(|comment| at + END_LEN + comment as usize == bytes.len())
        });
    let Some(at) = at else {
        return Err("truncated: a zip archive without the directory at its end".to_string());
    };
    let damaged = || "damaged zip archive: its end record is cut short".to_string();
    let mut count = u64::from(u16_at(bytes, at + 10).ok_or_else(damaged)?);
    let mut len = u64::from(u32_at(bytes, at + 12).ok_or_else(damaged)?);
    let mut start = u64::from(u32_at(bytes, at + 16).ok_or_else(damaged)?);
    // torch writes the 64-bit records always, other writers where the numbers above do not suffice.
    if let Some(locator) = at.checked_sub(END_64_LOCATOR_LEN)
        && bytes[locator..].starts_with(END_64_LOCATOR)
    {
        let wide = u64_at(bytes, locator + 8)
            .and_then(|wide| usize::try_from(wide).ok())
            .filter(|&wide| {
                bytes
                    .get(wide..)
                    .is_some_and(|tail| tail.starts_with(END_64))
            })
            .ok_or("damaged zip archive: its 64-bit end record is not where it should be")?;
        count = u64_at(bytes, wide.saturating_add(32)).ok_or_else(damaged)?;
        len = u64_at(bytes, wide.saturating_add(40)).ok_or_else(damaged)?;
        start = u64_at(bytes, wide.saturating_add(48)).ok_or_else(damaged)?;
    }
    let range = usize::try_from(start).ok().zip(
        start
            .checked_add(len)
            .and_then(|end| usize::try_from(end).ok()),
    );
    match range {
        Some((start, end)) => Ok((count, start..end)),
        None => Err(format!(
            "damaged zip archive: its directory claims {len} bytes from byte {start}"
        )),
    }
}

/// Name, place of the content in the archive (`None` if it is not stored as it is), and length of the directory entry at the
/// beginning of `rest`.
type DirectoryEntry = (String, Option<Range<usize>>, usize);

fn directory_entry(bytes: &[u8], rest: &[u8]) -> Result<DirectoryEntry, String> {
    let cut = || "damaged zip archive: its directory is cut short".to_string();
    if !rest.starts_with(DIRECTORY_ENTRY) {
        return Err("damaged zip archive: expected an entry of its directory".to_string());
    }
    let flags = u16_at(rest, 8).ok_or_else(cut)?;
    let method = u16_at(rest, 10).ok_or_else(cut)?;
    let mut stored = u64::from(u32_at(rest, 20).ok_or_else(cut)?);
    let mut size = u64::from(u32_at(rest, 24).ok_or_else(cut)?);
    let name_len = usize::from(u16_at(rest, 28).ok_or_else(cut)?);
    let extra_len = usize::from(u16_at(rest, 30).ok_or_else(cut)?);
    let comment_len = usize::from(u16_at(rest, 32).ok_or_else(cut)?);
    let mut local = u64::from(u32_at(rest, 42).ok_or_else(cut)?);
    let name = rest
        .get(DIRECTORY_ENTRY_LEN..DIRECTORY_ENTRY_LEN + name_len)
        .ok_or_else(cut)?;
    let name = std::str::from_utf8(name)
        .map_err(|_| "damaged zip archive: an entry's name is not UTF-8")?
        .to_string();
    let extra_start = DIRECTORY_ENTRY_LEN + name_len;
    let extra = rest
        .get(extra_start..extra_start + extra_len)
        .ok_or_else(cut)?;
    let len = extra_start + extra_len + comment_len;
    if len > rest.len() {
        return Err(cut());
    }
    if let Some(wide) = extra_field(extra, ZIP64_EXTRA) {
        // Holds, in this order, the numbers that did not fit above.
        let mut position = 0;
        for value in [&mut size, &mut stored, &mut local] {
            if *value == u64::from(u32::MAX) {
                *value = u64_at(wide, position).ok_or_else(cut)?;
                position += 8;
            }
        }
    }
    if flags & 1 != 0 || method != 0 {
        return Ok((name, None, len));
    }
    if stored != size {
        return Err(format!(
            "damaged zip archive: entry {name} of {size} bytes takes {stored} bytes uncompressed"
        ));
    }
    let place = content(bytes, local, size).ok_or_else(|| {
        format!(
            "truncated or damaged: entry {name} of {size} bytes at byte {local} is not inside the file of {} bytes",
            bytes.len()
        )
    })?;
    Ok((name, Some(place), len))
}

/// The `size` bytes after the local header at `local`.
fn content(bytes: &[u8], local: u64, size: u64) -> Option<Range<usize>> {
    let header = bytes.get(usize::try_from(local).ok()?..)?;
    if !header.starts_with(LOCAL) {
        return None;
    }
    let skipped = LOCAL_LEN + usize::from(u16_at(header, 26)?) + usize::from(u16_at(header, 28)?);
    let size = usize::try_from(size).ok()?;
    let start = bytes.len() - header.len() + skipped;
    let end = start.checked_add(size)?;
    (end <= bytes.len()).then_some(start..end)
}

fn extra_field(mut extra: &[u8], id: u16) -> Option<&[u8]> {
    while let (Some(found), Some(len)) = (u16_at(extra, 0), u16_at(extra, 2)) {
        let field = extra.get(4..4 + usize::from(len))?;
        if found == id {
            return Some(field);
        }
        extra = &extra[4 + field.len()..];
    }
    None
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|value| u16::from_le_bytes(*value))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|value| u32::from_le_bytes(*value))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|value| u64::from_le_bytes(*value))
}
