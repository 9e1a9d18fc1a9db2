//! One common form of all block formats for integer products: unsigned byte codes and, for each 16 values, a scale and an
//! offset, `value = scale · code + offset`.

use super::QuantType;
use super::blocks::{half_at, scale_min};

/// Values decoded at a time.
pub(crate) const CHUNK: usize = 256;

/// A decoded stretch of a row.
#[repr(align(64))]
pub(crate) struct Codes {
    /// Codes.
    pub(crate) codes: [u8; CHUNK],
    /// Scale for each 16 values.
    pub(crate) scales: [f32; CHUNK / 16],
    /// Offset for each 16 values.
    pub(crate) offsets: [f32; CHUNK / 16],
}

impl Codes {
    pub(crate) fn new() -> Self {
        Self {
            codes: [0; CHUNK],
            scales: [0.0; CHUNK / 16],
            offsets: [0.0; CHUNK / 16],
        }
    }

    #[inline(always)]
    fn set(&mut self, block: usize, scale: f32, offset: f32) {
        self.scales[2 * block] = scale;
        self.scales[2 * block + 1] = scale;
        self.offsets[2 * block] = offset;
        self.offsets[2 * block + 1] = offset;
    }

    /// Decodes up to 256 values of whole blocks; returns how many.
    #[inline(always)]
    pub(crate) fn decode(&mut self, t: QuantType, data: &[u8]) -> usize {
        match t {
            QuantType::Q8_0 => self.small::<34>(data, |_, block, out| {
                for (o, &q) in out.iter_mut().zip(&block[2..]) {
                    *o = q ^ 0x80;
                }
                let d = half_at(block, 0);
                (d, -128.0 * d)
            }),
            QuantType::Q4_0 => self.small::<18>(data, |_, block, out| {
                nibbles(&block[2..18], out);
                let d = half_at(block, 0);
                (d, -8.0 * d)
            }),
            QuantType::Q4_1 => self.small::<20>(data, |_, block, out| {
                nibbles(&block[4..20], out);
                (half_at(block, 0), half_at(block, 2))
            }),
            QuantType::Q5_0 => self.small::<22>(data, |_, block, out| {
                nibbles(&block[6..22], out);
                fifth_bits(&block[2..6], out);
                let d = half_at(block, 0);
                (d, -16.0 * d)
            }),
            QuantType::Q5_1 => self.small::<24>(data, |_, block, out| {
                nibbles(&block[8..24], out);
                fifth_bits(&block[4..8], out);
                (half_at(block, 0), half_at(block, 2))
            }),
            QuantType::Q4K | QuantType::Q5K => {
                self.scaled_minima(t, data);
                CHUNK
            }
            QuantType::Q6K => {
                self.six_bits(data);
                CHUNK
            }
        }
    }

    /// The formats of 32 values; `f(index, block, codes)` returns scale and offset.
    #[inline(always)]
    fn small<const BYTES: usize>(
        &mut self,
        data: &[u8],
        f: impl Fn(usize, &[u8; BYTES], &mut [u8; 32]) -> (f32, f32),
    ) -> usize {
        let mut values = 0;
        for (index, block) in data
            .as_chunks::<BYTES>()
            .0
            .iter()
            .take(CHUNK / 32)
            .enumerate()
        {
            let (scale, offset) = f(index, block, &mut self.codes.as_chunks_mut::<32>().0[index]);
            self.set(index, scale, offset);
            values += 32;
        }
        values
    }

    /// Q4_K and Q5_K.
    #[inline(always)]
    fn scaled_minima(&mut self, t: QuantType, data: &[u8]) {
        let (d, min) = (half_at(data, 0), half_at(data, 2));
        for block in 0..8 {
            let (s, m) = scale_min(block, &data[4..16]);
            self.set(block, d * f32::from(s), -min * f32::from(m));
        }
        let five = t == QuantType::Q5K;
        let low = if five { &data[48..176] } else { &data[16..144] };
        for pair in 0..4 {
            let low = &low[32 * pair..][..32];
            let out = &mut self.codes[64 * pair..][..64];
            if five {
                let high = &data[16..48];
                for l in 0..32 {
                    let high = high[l] >> (2 * pair);
                    out[l] = (low[l] & 15) | (high & 1) << 4;
                    out[l + 32] = (low[l] >> 4) | (high & 2) << 3;
                }
            } else {
                for l in 0..32 {
                    out[l] = low[l] & 15;
                    out[l + 32] = low[l] >> 4;
                }
            }
        }
    }

    #[inline(always)]
    fn six_bits(&mut self, data: &[u8]) {
        let d = half_at(data, 208);
        for part in 0..16 {
            let scale = d * f32::from(data[192 + part] as i8);
            self.scales[part] = scale;
            self.offsets[part] = -32.0 * scale;
        }
        for half in 0..2 {
            let low = &data[64 * half..][..64];
            let high = &data[128 + 32 * half..][..32];
            let out = &mut self.codes[128 * half..][..128];
            for l in 0..32 {
                out[l] = (low[l] & 15) | (high[l] & 3) << 4;
                out[l + 32] = (low[l + 32] & 15) | (high[l] >> 2 & 3) << 4;
                out[l + 64] = (low[l] >> 4) | (high[l] >> 4 & 3) << 4;
                out[l + 96] = (low[l + 32] >> 4) | (high[l] >> 6) << 4;
            }
        }
    }
}

#[inline(always)]
fn nibbles(data: &[u8], out: &mut [u8; 32]) {
    for j in 0..16 {
        out[j] = data[j] & 15;
        out[j + 16] = data[j] >> 4;
    }
}

/// Adds the fifth bits: bit `j` of the word belongs to value `j`.
#[inline(always)]
fn fifth_bits(word: &[u8], out: &mut [u8; 32]) {
    for (j, o) in out.iter_mut().enumerate() {
        *o |= (word[j / 8] >> (j % 8) & 1) << 4;
    }
}
