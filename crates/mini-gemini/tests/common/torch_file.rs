//! Writes torch files the way `torch.save` does (zip with stored entries, a protocol-2 pickle of a plain dictionary), so that tests can turn any
//! checkpoint into one. That the reader agrees with torch itself is tested against files that torch wrote, in mgm-nn.

use std::fs;
use std::path::Path;

use candle_core::{DType, Tensor};

/// Where torch puts the bytes of a storage: at a multiple of this.
const ALIGNMENT: usize = 64;

/// A state dictionary of contiguous tensors as `path`.
pub(crate) fn save(path: &Path, tensors: &[(&str, &Tensor)]) {
    let mut archive = Archive::default();
    archive.add("data.pkl", &pickle(tensors));
    archive.add("byteorder", b"little");
    for (index, (_, tensor)) in tensors.iter().enumerate() {
        archive.add(&format!("data/{index}"), &bytes(tensor));
    }
    archive.add("version", b"3\n");
    fs::write(path, archive.finish()).unwrap();
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    let flat = tensor.flatten_all().unwrap();
    fn of<const N: usize>(values: impl Iterator<Item = [u8; N]>) -> Vec<u8> {
        values.flatten().collect()
    }
    match tensor.dtype() {
        DType::F32 => of(flat
            .to_vec1::<f32>()
            .unwrap()
            .iter()
            .map(|x| x.to_le_bytes())),
        DType::F16 => of(flat
            .to_vec1::<half::f16>()
            .unwrap()
            .iter()
            .map(|x| x.to_le_bytes())),
        DType::BF16 => of(flat
            .to_vec1::<half::bf16>()
            .unwrap()
            .iter()
            .map(|x| x.to_le_bytes())),
        other => panic!("no torch storage for {other:?}"),
    }
}

fn pickle(tensors: &[(&str, &Tensor)]) -> Vec<u8> {
    let mut out = b"\x80\x02}(".to_vec();
    for (index, (name, tensor)) in tensors.iter().enumerate() {
        text(&mut out, name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        let storage = match tensor.dtype() {
            DType::F32 => "FloatStorage",
            DType::F16 => "HalfStorage",
            _ => "BFloat16Storage",
        };
        out.extend(format!("ctorch\n{storage}\n").bytes());
        text(&mut out, &index.to_string());
        text(&mut out, "cpu");
        integer(&mut out, tensor.elem_count());
        // End of the storage's tuple, persistent id, offset.
        out.extend(b"tQ");
        integer(&mut out, 0);
        for sizes in [tensor.dims(), tensor.stride()] {
            out.push(b'(');
            sizes.iter().for_each(|&size| integer(&mut out, size));
            out.push(b't');
        }
        // No gradient, no hooks; call.
        out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u.");
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.bytes());
}

fn integer(out: &mut Vec<u8>, value: usize) {
    out.push(b'J');
    out.extend((value as i32).to_le_bytes());
}

#[derive(Default)]
struct Archive {
    out: Vec<u8>,
    directory: Vec<u8>,
    entries: u16,
}

impl Archive {
    fn add(&mut self, name: &str, content: &[u8]) {
        let name = format!("archive/{name}");
        let offset = self.out.len() as u32;
        let start = offset as usize + 30 + name.len();
        // An extra field, of four bytes at least, brings the content to its place.
        let padding = (start + 4).next_multiple_of(ALIGNMENT) - start - 4;
        let mut fields = Vec::new();
        fields.extend([0u8; 2].iter()); // flags
        fields.extend([0u8; 2].iter()); // stored
        fields.extend([0u8; 4].iter()); // time
        fields.extend(crc32(content).to_le_bytes());
        fields.extend((content.len() as u32).to_le_bytes());
        fields.extend((content.len() as u32).to_le_bytes());
        fields.extend((name.len() as u16).to_le_bytes());
        self.out.extend(b"PK\x03\x04\x14\x00");
        self.out.extend(&fields);
        self.out.extend(((padding + 4) as u16).to_le_bytes());
        self.out.extend(name.bytes());
        self.out.extend(b"FB");
        self.out.extend((padding as u16).to_le_bytes());
        self.out.extend(std::iter::repeat_n(b'Z', padding));
        self.out.extend(content);
        self.directory.extend(b"PK\x01\x02\x14\x00\x14\x00");
        self.directory.extend(&fields);
        self.directory.extend([0u8; 12].iter()); // extra, comment, disk, attributes
        self.directory.extend(offset.to_le_bytes());
        self.directory.extend(name.bytes());
        self.entries += 1;
    }

    fn finish(mut self) -> Vec<u8> {
        let offset = self.out.len() as u32;
        self.out.extend(&self.directory);
        self.out.extend(b"PK\x05\x06\0\0\0\0");
        self.out.extend(self.entries.to_le_bytes());
        self.out.extend(self.entries.to_le_bytes());
        self.out.extend((self.directory.len() as u32).to_le_bytes());
        self.out.extend(offset.to_le_bytes());
        self.out.extend([0u8; 2].iter());
        self.out
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & 0u32.wrapping_sub(crc & 1))
        })
    })
}
