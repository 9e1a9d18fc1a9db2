//! Attention against a double-precision reference, and its gradients against finite differences.

use mgm_kernels::attention::{
    AttentionShape, BLOCK_POSITIONS, HeadsLayout, PagedSequence, PagedShape, attention_at,
    attention_backward_at, attention_bf16_at, paged_attention_at, paged_attention_bf16_at,
};
use mgm_kernels::level::{Level, available, has_avx512_bf16};

struct Random(u64);

impl Random {
    fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|_| {
                self.0 = self
                    .0
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (self.0 >> 33) as f32 / (1u64 << 30) as f32 - 1.0
            })
            .collect()
    }
}

fn at(l: HeadsLayout, head: usize, row: usize) -> usize {
    head * l.head_stride + row * l.row_stride
}

/// Plain softmax attention in `f64`, `[heads, query_len, head_dim]`.
fn reference(
    s: &AttentionShape,
    q: &[f32],
    ql: HeadsLayout,
    k: &[f32],
    kl: HeadsLayout,
    v: &[f32],
    vl: HeadsLayout,
) -> Vec<f64> {
    let mut out = Vec::new();
    for head in 0..s.heads {
        let kv = head / (s.heads / s.kv_heads);
        for i in 0..s.query_len {
            let seen = s
                .causal_offset
                .map_or(s.key_len, |o| (o + i + 1).min(s.key_len));
            let scores: Vec<f64> = (0..seen)
                .map(|j| {
                    (0..s.head_dim)
                        .map(|d| {
                            f64::from(q[at(ql, head, i) + d]) * f64::from(k[at(kl, kv, j) + d])
                        })
                        .sum::<f64>()
                        * f64::from(s.scale)
                })
                .collect();
            let maximum = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|x| (x - maximum).exp()).sum();
            for d in 0..s.head_dim {
                let sum: f64 = scores
                    .iter()
                    .enumerate()
                    .map(|(j, x)| (x - maximum).exp() * f64::from(v[at(vl, kv, j) + d]))
                    .sum();
                out.push(if seen == 0 { 0.0 } else { sum / total });
            }
        }
    }
    out
}

/// `[heads, rows, d]` and `[rows, heads, d]` with a gap after each row.
fn layouts(heads: usize, rows: usize, d: usize) -> [(HeadsLayout, usize); 2] {
    [
        (
            HeadsLayout {
                head_stride: rows * d,
                row_stride: d,
            },
            heads * rows * d,
        ),
        (
            HeadsLayout {
                head_stride: d,
                row_stride: heads * d + 3,
            },
            rows * (heads * d + 3),
        ),
    ]
}

fn shapes() -> Vec<AttentionShape> {
    let shape = |heads, kv_heads, head_dim, query_len, key_len, causal_offset| AttentionShape {
        heads,
        kv_heads,
        head_dim,
        query_len,
        key_len,
        scale: 1.3 / (head_dim as f32).sqrt(),
        causal_offset,
    };
    vec![
        shape(2, 1, 32, 5, 7, None),
        shape(9, 3, 64, 60, 60, Some(0)),
        shape(4, 4, 80, 33, 70, Some(37)),
        shape(6, 2, 64, 1, 300, Some(299)),
        shape(2, 2, 256, 70, 281, None),
        shape(1, 1, 5, 3, 600, Some(590)),
        shape(3, 1, 48, 113, 113, Some(0)),
        shape(2, 1, 16, 10, 4, Some(0)),
    ]
}

#[test]
fn forward_matches_the_reference() {
    let mut random = Random(5);
    for level in available() {
        for s in shapes() {
            for choice in 0..2 {
                let (ql, q_len) = layouts(s.heads, s.query_len, s.head_dim)[choice];
                let (kl, k_len) = layouts(s.kv_heads, s.key_len, s.head_dim)[choice];
                let (vl, v_len) = layouts(s.kv_heads, s.key_len, s.head_dim)[1 - choice];
                let (ol, o_len) = layouts(s.heads, s.query_len, s.head_dim)[1 - choice];
                let q: Vec<f32> = random.values(q_len).iter().map(|x| x * 3.0).collect();
                let (k, v) = (random.values(k_len), random.values(v_len));
                let mut out = vec![f32::NAN; o_len];
                attention_at(level, &s, &q, ql, &k, kl, &v, vl, &mut out, ol);
                let want = reference(&s, &q, ql, &k, kl, &v, vl);
                for head in 0..s.heads {
                    for row in 0..s.query_len {
                        for d in 0..s.head_dim {
                            let got = f64::from(out[at(ol, head, row) + d]);
                            let want = want[(head * s.query_len + row) * s.head_dim + d];
                            assert!(
                                (got - want).abs() < 5e-6,
                                "{level:?} {s:?} {head} {row} {d}: {got} {want}"
                            );
                        }
                    }
                }
            }
        }
    }
}

/// Products of bf16 values where the machine has them, the `f32` ones elsewhere: near the reference on every level.
#[test]
fn bf16_products_stay_near_the_reference() {
    let mut random = Random(21);
    let wide = |heads, kv_heads, head_dim, query_len, key_len, causal_offset| AttentionShape {
        heads,
        kv_heads,
        head_dim,
        query_len,
        key_len,
        scale: 1.0 / (head_dim as f32).sqrt(),
        causal_offset,
    };
    let mut all = shapes();
    all.extend([
        wide(3, 3, 64, 130, 77, None),
        wide(2, 2, 32, 61, 301, None),
        wide(4, 2, 96, 70, 70, Some(0)),
        wide(1, 1, 512, 9, 600, None),
    ]);
    for s in all {
        // Without a gap after each row the values can be packed as they lie.
        for gap in [0, 3] {
            let layout = |heads: usize| HeadsLayout {
                head_stride: s.head_dim,
                row_stride: heads * s.head_dim + gap,
            };
            let (ql, kl) = (layout(s.heads), layout(s.kv_heads));
            let (q_len, k_len) = (s.query_len * ql.row_stride, s.key_len * kl.row_stride);
            let (q, k, v) = (
                random.values(q_len),
                random.values(k_len),
                random.values(k_len),
            );
            let want = reference(&s, &q, ql, &k, kl, &v, kl);
            for level in available() {
                let mut out = vec![f32::NAN; q_len];
                attention_bf16_at(level, &s, &q, ql, &k, kl, &v, kl, &mut out, ql);
                let mut index = 0;
                for head in 0..s.heads {
                    for row in 0..s.query_len {
                        for d in 0..s.head_dim {
                            let got = out[at(ql, head, row) + d];
                            assert!(
                                (f64::from(got) - want[index]).abs() < 1.5e-2,
                                "{level:?} {s:?}: got {got}, expected {}",
                                want[index]
                            );
                            index += 1;
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let s = AttentionShape {
        heads: 1,
        kv_heads: 1,
        head_dim: 32,
        query_len: 20,
        key_len: 300,
        scale: 1.0,
        causal_offset: None,
    };
    let mut random = Random(8);
    let l = HeadsLayout {
        head_stride: 0,
        row_stride: 32,
    };
    let q: Vec<f32> = random.values(20 * 32).iter().map(|x| x * 200.0).collect();
    let (k, v) = (random.values(300 * 32), random.values(300 * 32));
    for level in available() {
        let mut out = vec![0.0; 20 * 32];
        attention_at(level, &s, &q, l, &k, l, &v, l, &mut out, l);
        for (got, want) in out.iter().zip(reference(&s, &q, l, &k, l, &v, l)) {
            // Scores near 1000 keep about four digits after the exponential.
            assert!((f64::from(*got) - want).abs() < 2e-3, "{got} {want}");
        }
    }
}

#[test]
fn a_query_without_keys_gives_zeros() {
    let s = AttentionShape {
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        query_len: 4,
        key_len: 0,
        scale: 1.0,
        causal_offset: None,
    };
    let l = HeadsLayout {
        head_stride: 32,
        row_stride: 8,
    };
    for level in available() {
        let mut out = vec![1.0; 64];
        attention_at(level, &s, &[1.0; 64], l, &[], l, &[], l, &mut out, l);
        assert_eq!(out, vec![0.0; 64]);
        let mut dq = vec![1.0; 64];
        attention_backward_at(
            level,
            &s,
            &[1.0; 64],
            l,
            &[],
            l,
            &[],
            l,
            &out,
            l,
            &[1.0; 64],
            l,
            &mut dq,
            &mut [],
            &mut [],
        );
        assert_eq!(dq, vec![0.0; 64]);
    }
}

#[test]
fn backward_matches_finite_differences() {
    let mut random = Random(21);
    for level in available() {
        for s in shapes() {
            for choice in 0..2 {
                let (ql, q_len) = layouts(s.heads, s.query_len, s.head_dim)[choice];
                let (kl, k_len) = layouts(s.kv_heads, s.key_len, s.head_dim)[choice];
                let (vl, v_len) = layouts(s.kv_heads, s.key_len, s.head_dim)[1 - choice];
                let (ol, o_len) = layouts(s.heads, s.query_len, s.head_dim)[1 - choice];
                let (gl, g_len) = layouts(s.heads, s.query_len, s.head_dim)[choice];
                let (q, k, v, g) = (
                    random.values(q_len),
                    random.values(k_len),
                    random.values(v_len),
                    random.values(g_len),
                );
                let mut out = vec![0.0; o_len];
                attention_at(level, &s, &q, ql, &k, kl, &v, vl, &mut out, ol);
                let (mut dq, mut dk, mut dv) =
                    (vec![7.0; q_len], vec![7.0; k_len], vec![7.0; v_len]);
                attention_backward_at(
                    level, &s, &q, ql, &k, kl, &v, vl, &out, ol, &g, gl, &mut dq, &mut dk, &mut dv,
                );
                // A directional derivative along a random direction of each input, in f64 from the reference.
                let loss = |q: &[f32], k: &[f32], v: &[f32]| -> f64 {
                    let out = reference(&s, q, ql, k, kl, v, vl);
                    let mut sum = 0.0;
                    for head in 0..s.heads {
                        for row in 0..s.query_len {
                            for d in 0..s.head_dim {
                                sum += out[(head * s.query_len + row) * s.head_dim + d]
                                    * f64::from(g[at(gl, head, row) + d]);
                            }
                        }
                    }
                    sum
                };
                let h = 2f32.powi(-9);
                for input in 0..3 {
                    let (values, gradient, l, heads, rows) = match input {
                        0 => (&q, &dq, ql, s.heads, s.query_len),
                        1 => (&k, &dk, kl, s.kv_heads, s.key_len),
                        _ => (&v, &dv, vl, s.kv_heads, s.key_len),
                    };
                    let direction = random.values(values.len());
                    let moved = |sign: f32| -> Vec<f32> {
                        values
                            .iter()
                            .zip(&direction)
                            .map(|(&x, &t)| x + sign * h * t)
                            .collect()
                    };
                    let (plus, minus) = (moved(1.0), moved(-1.0));
                    let difference = match input {
                        0 => loss(&plus, &k, &v) - loss(&minus, &k, &v),
                        1 => loss(&q, &plus, &v) - loss(&q, &minus, &v),
                        _ => loss(&q, &k, &plus) - loss(&q, &k, &minus),
                    };
                    let mut want = 0.0f64;
                    let mut size = 0.0f64;
                    for head in 0..heads {
                        for row in 0..rows {
                            for d in 0..s.head_dim {
                                let i = at(l, head, row) + d;
                                let step = f64::from(plus[i]) - f64::from(minus[i]);
                                want += f64::from(gradient[i]) * step;
                                size += (f64::from(gradient[i]) * step).powi(2);
                            }
                        }
                    }
                    let tolerance = 5e-3 * size.sqrt() + 1e-7;
                    assert!(
                        (difference - want).abs() < tolerance,
                        "{level:?} {s:?} input {input}: {difference} vs {want} (tolerance {tolerance})"
                    );
                }
            }
        }
    }
}

/// A sequence in blocks; what is not written holds rubbish that must not matter.
struct Paged {
    shape: PagedShape,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl Paged {
    /// `k` and `v` are `[positions, kv_heads, head_dim]`.
    fn new(shape: PagedShape, k: &[f32], v: &[f32]) -> Self {
        let width = shape.kv_heads * shape.head_dim;
        let positions = k.len() / width;
        let blocks = positions.div_ceil(BLOCK_POSITIONS) + 1;
        let mut keys = vec![vec![1e30; shape.block_len()]; blocks];
        let mut values = vec![vec![-1e30; shape.block_len()]; blocks];
        for (position, (key, value)) in k.chunks(width).zip(v.chunks(width)).enumerate() {
            let (block, slot) = (position / BLOCK_POSITIONS, position % BLOCK_POSITIONS);
            shape.write(&mut keys[block], &mut values[block], slot, key, value);
        }
        Self {
            shape,
            keys,
            values,
        }
    }
}

fn slices(pages: &[Vec<f32>]) -> Vec<&[f32]> {
    pages.iter().map(Vec::as_slice).collect()
}

/// Attention of several parts `(sequence, positions seen before, new rows)` in one call; the rows' queries are cut from `q`
/// (`[positions, heads, head_dim]` of each sequence).
fn paged(
    level: mgm_kernels::level::Level,
    bf16: bool,
    parts: &[(&Paged, &[f32], usize, usize)],
    scale: f32,
) -> Vec<f32> {
    let shape = parts[0].0.shape;
    let width = shape.heads * shape.head_dim;
    let stored: Vec<_> = parts
        .iter()
        .map(|(sequence, ..)| (slices(&sequence.keys), slices(&sequence.values)))
        .collect();
    let sequences: Vec<PagedSequence> = parts
        .iter()
        .zip(&stored)
        .map(|((_, _, before, rows), (keys, values))| PagedSequence {
            keys,
            values,
            key_len: before + rows,
            query_len: *rows,
        })
        .collect();
    let q: Vec<f32> = parts
        .iter()
        .flat_map(|(_, q, before, rows)| &q[before * width..(before + rows) * width])
        .copied()
        .collect();
    let mut out = vec![f32::NAN; q.len()];
    let attend = match bf16 {
        true => paged_attention_bf16_at,
        false => paged_attention_at,
    };
    attend(level, &shape, scale, &sequences, &q, &mut out);
    out
}

#[test]
fn paged_attention_matches_the_reference_and_does_not_depend_on_the_division() {
    check_paged(false);
}

#[test]
fn paged_attention_in_bf16_stays_close_and_does_not_depend_on_the_division() {
    check_paged(true);
}

fn check_paged(bf16: bool) {
    let mut random = Random(91);
    for (heads, kv_heads, head_dim) in [(9, 3, 64), (4, 4, 40), (8, 1, 16), (1, 1, 128)] {
        let shape = PagedShape {
            heads,
            kv_heads,
            head_dim,
        };
        let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        let scale = 1.0 / (head_dim as f32).sqrt();
        for level in available() {
            let mut made = Vec::new();
            for positions in [1usize, 31, 33, 300, 530] {
                let q = random.values(positions * width);
                let (k, v) = (
                    random.values(positions * kv_width),
                    random.values(positions * kv_width),
                );
                let sequence = Paged::new(shape, &k, &v);
                let whole = paged(level, bf16, &[(&sequence, &q, 0, positions)], scale);
                let rounds = bf16 && level >= Level::Avx512 && has_avx512_bf16();
                let rounds = rounds && head_dim % 32 == 0;
                let full = paged(level, false, &[(&sequence, &q, 0, positions)], scale);
                assert_eq!(whole != full, rounds, "{level:?} {shape:?} {positions}");
                let tolerance = if rounds { 1e-2 } else { 2e-5 };
                let s = AttentionShape {
                    heads,
                    kv_heads,
                    head_dim,
                    query_len: positions,
                    key_len: positions,
                    scale,
                    causal_offset: Some(0),
                };
                let layout = |width: usize| HeadsLayout {
                    head_stride: head_dim,
                    row_stride: width,
                };
                let want = reference(
                    &s,
                    &q,
                    layout(width),
                    &k,
                    layout(kv_width),
                    &v,
                    layout(kv_width),
                );
                for head in 0..heads {
                    for row in 0..positions {
                        for d in 0..head_dim {
                            let got = f64::from(whole[row * width + head * head_dim + d]);
                            let want = want[(head * positions + row) * head_dim + d];
                            assert!(
                                (got - want).abs() < tolerance,
                                "{level:?} {shape:?} {positions}: {got} {want}"
                            );
                        }
                    }
                }
                // Divided over calls in any way, the bits are the same.
                for step in [1usize, 2, 3, 7, 64, 257] {
                    let mut divided = Vec::new();
                    for before in (0..positions).step_by(step) {
                        let rows = step.min(positions - before);
                        divided.extend(paged(level, bf16, &[(&sequence, &q, before, rows)], scale));
                    }
                    assert_eq!(divided, whole, "{level:?} {shape:?} {positions} by {step}");
                }
                made.push((sequence, q, positions, whole));
            }
            // Together with others the bits are the same.
            let parts: Vec<(&Paged, &[f32], usize, usize)> = made
                .iter()
                .map(|(sequence, q, positions, _)| {
                    let before = positions / 2;
                    (sequence, q.as_slice(), before, positions - before)
                })
                .collect();
            let together = paged(level, bf16, &parts, scale);
            let alone: Vec<f32> = made
                .iter()
                .flat_map(|(_, _, positions, whole)| &whole[positions / 2 * width..])
                .copied()
                .collect();
            assert_eq!(together, alone, "{level:?} {shape:?}");
        }
    }
}
