//! Quantises raw little-endian `f32` values of a file, for comparison with other quantisers.
//!
//! `quantize_blocks TYPE ROW_LEN VALUES OUT [IMPORTANCE]`, `TYPE` such as `Q4_K`. Prints the seconds it took.

use std::error::Error;
use std::fs;
use std::time::Instant;

use mgm_kernels::quant::{QuantType, quantize, quantize_weighted};

fn floats(path: &str) -> Result<Vec<f32>, Box<dyn Error>> {
    let bytes = fs::read(path).map_err(|error| format!("{path}: {error}"))?;
    let (values, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(format!("{path}: {} bytes are not whole floats", bytes.len()).into());
    }
    Ok(values
        .iter()
        .map(|&value| f32::from_le_bytes(value))
        .collect())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (name, row_len, values, out, importance) = match arguments.as_slice() {
        [name, row_len, values, out] => (name, row_len, values, out, None),
        [name, row_len, values, out, importance] => (name, row_len, values, out, Some(importance)),
        _ => return Err("usage: quantize_blocks TYPE ROW_LEN VALUES OUT [IMPORTANCE]".into()),
    };
    let quant_type = QuantType::ALL
        .into_iter()
        .find(|t| t.name() == name)
        .ok_or_else(|| format!("unknown type {name}"))?;
    let row_len: usize = row_len.parse()?;
    let values = floats(values)?;
    if row_len == 0
        || !row_len.is_multiple_of(quant_type.block_len())
        || values.len() % row_len != 0
    {
        return Err(format!(
            "{} values are not rows of {row_len} in whole blocks",
            values.len()
        )
        .into());
    }
    let importance = importance.map(|path| floats(path)).transpose()?;
    let start = Instant::now();
    let blocks = match &importance {
        None => quantize(quant_type, &values),
        Some(importance) => quantize_weighted(quant_type, &values, row_len, importance),
    };
    println!("{:.6}", start.elapsed().as_secs_f64());
    fs::write(out, blocks).map_err(|error| format!("{out}: {error}"))?;
    Ok(())
}
