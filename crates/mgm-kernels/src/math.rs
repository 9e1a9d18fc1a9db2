//! Branch-free `f32` functions that the compiler can vectorise, and the macro that compiles a loop once per level.
//!
//! `FMA` says whether the enclosing function is compiled with fused multiply-add; without it `mul_add` would be a
//! library call.

use std::f32::consts::FRAC_2_SQRT_PI;

/// `a * b + c`, fused where the instruction exists.
#[inline(always)]
pub(crate) fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `eˣ = p · 2ⁿ` for `-87.33 <= x <= 88.72`, as `(p, n)`.
///
/// Range reduction to `|r| <= ln(2)/2` with ln 2 split in two parts (Cody and Waite), then a polynomial of degree 6.
#[inline(always)]
fn exp_parts<const FMA: bool>(x: f32) -> (f32, i32) {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5·2²³ rounds to the nearest integer, which then sits in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    let shifted = multiply_add::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let whole = shifted - ROUND;
    let r = multiply_add::<FMA>(whole, -LN2_HIGH, x);
    let r = multiply_add::<FMA>(whole, -LN2_LOW, r);
    let mut p = 1.398_199_9e-3;
    p = multiply_add::<FMA>(p, r, 8.333_452e-3);
    p = multiply_add::<FMA>(p, r, 4.166_579_6e-2);
    p = multiply_add::<FMA>(p, r, 1.666_666_5e-1);
    p = multiply_add::<FMA>(p, r, 0.5);
    p = multiply_add::<FMA>(p, r, 1.0);
    p = multiply_add::<FMA>(p, r, 1.0);
    (p, shifted.to_bits() as i32 - ROUND.to_bits() as i32)
}

/// `eˣ`; 0 below -87.3, infinity above 88.7. Relative error below 2e-7 in between.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    let (p, n) = exp_parts::<FMA>(x.clamp(-87.33, 88.72));
    // 2ⁿ in two factors: `n` reaches 128, which one exponent field cannot hold.
    let half = n >> 1;
    let first = f32::from_bits(((half + 127) << 23) as u32);
    let second = f32::from_bits(((n - half + 127) << 23) as u32);
    let value = p * first * second;
    let value = if x > 88.72 { f32::INFINITY } else { value };
    let value = if x < -87.33 { 0.0 } else { value };
    if x.is_nan() { x } else { value }
}

/// `tanh x`. Relative error below 1e-6.
#[inline(always)]
pub(crate) fn tanh<const FMA: bool>(x: f32) -> f32 {
    let a = x.abs();
    // Large: 1 - 2 / (e^2a + 1). Small: odd Taylor-like polynomial, free of cancellation.
    let large = 1.0 - 2.0 / (exp::<FMA>(2.0 * a.min(20.0)) + 1.0);
    let s = x * x;
    let mut p = -5.704_989e-3;
    p = multiply_add::<FMA>(p, s, 2.063_908_6e-2);
    p = multiply_add::<FMA>(p, s, -5.373_971_6e-2);
    p = multiply_add::<FMA>(p, s, 1.333_144_2e-1);
    p = multiply_add::<FMA>(p, s, -3.333_328e-1);
    let small = multiply_add::<FMA>(p * s, x, x);
    let value = if a < 0.625 { small } else { large.copysign(x) };
    if x.is_nan() { x } else { value }
}

/// `eˣ` for `-87.33 <= x <= 88`, in fewer steps than [`exp`]; anything for another `x` but NaN, which passes through.
#[inline(always)]
fn exp_within<const FMA: bool>(x: f32) -> f32 {
    let (p, n) = exp_parts::<FMA>(x);
    // The exponent field is that of a normal number: -126 <= n <= 127.
    p * f32::from_bits(((n + 127) << 23) as u32)
}

/// `eˣ` for `x <= 88`, as [`exp`] gives it.
#[inline(always)]
pub(crate) fn exp_below<const FMA: bool>(x: f32) -> f32 {
    let value = exp_within::<FMA>(if x < -87.33 { -87.33 } else { x });
    if x < -87.33 { 0.0 } else { value }
}

/// `1 / (1 + e⁻ˣ)`; below -88 what it is there, 6e-39.
#[inline(always)]
pub(crate) fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp_within::<FMA>((-x).clamp(-87.33, 88.0)))
}

/// `erfc(a)·e^(a²)` for `a >= 0`, so that the tails keep their relative accuracy.
#[inline(always)]
fn scaled_complement<const FMA: bool>(a: f32) -> f32 {
    // erfc(a)·exp(a²) = t·exp(q(t)) with t = 1 / (1 + a/2); q is a Chebyshev fit of degree 9 for a <= 10.9. Beyond,
    // exp(-a²) is 0 in f32.
    let t = 1.0 / multiply_add::<FMA>(0.5, a, 1.0);
    let mut q = 0.151_551_22;
    q = multiply_add::<FMA>(q, t, -0.716_805_3);
    q = multiply_add::<FMA>(q, t, 1.241_164_2);
    q = multiply_add::<FMA>(q, t, -0.808_233_8);
    q = multiply_add::<FMA>(q, t, 0.011_933_236);
    q = multiply_add::<FMA>(q, t, -0.047_455_08);
    q = multiply_add::<FMA>(q, t, 0.051_060_405);
    q = multiply_add::<FMA>(q, t, 0.383_226_1);
    q = multiply_add::<FMA>(q, t, 0.999_026_2);
    q = multiply_add::<FMA>(q, t, -1.265_467_2);
    t * exp::<FMA>(q)
}

/// Error function.
#[inline(always)]
pub(crate) fn erf<const FMA: bool>(x: f32) -> f32 {
    let a = x.abs();
    let large = 1.0 - scaled_complement::<FMA>(a) * exp::<FMA>(-a * a);
    // Maclaurin series, converged for |x| < 0.9.
    let s = x * x;
    let mut p = FRAC_2_SQRT_PI / 9360.0;
    p = multiply_add::<FMA>(p, -s, FRAC_2_SQRT_PI / 1320.0);
    p = multiply_add::<FMA>(p, -s, FRAC_2_SQRT_PI / 216.0);
    p = multiply_add::<FMA>(p, -s, FRAC_2_SQRT_PI / 42.0);
    p = multiply_add::<FMA>(p, -s, FRAC_2_SQRT_PI / 10.0);
    p = multiply_add::<FMA>(p, -s, FRAC_2_SQRT_PI / 3.0);
    p = multiply_add::<FMA>(p, -s, FRAC_2_SQRT_PI);
    let small = p * x;
    if a < 0.5 { small } else { large.copysign(x) }
}

/// `Φ(x) = (1 + erf(x/√2)) / 2`, accurate in the left tail too.
///
/// The tail `Φ(-a)` is `exp(-a²/2)` times a function that falls slowly from 1/2 on: a polynomial of degree 8 in `1 / (1 + 0.3a)`, of least
/// relative error (6e-8) for `a <= 13.3`; beyond, the exponential is 0.
#[inline(always)]
pub(crate) fn normal_cdf<const FMA: bool>(x: f32) -> f32 {
    let a = x.abs();
    let t = 1.0 / multiply_add::<FMA>(0.3, a, 1.0);
    let mut p = 3.831_154_6e-2;
    p = multiply_add::<FMA>(p, t, -1.688_412_7e-1);
    p = multiply_add::<FMA>(p, t, 2.279_880_7e-1);
    p = multiply_add::<FMA>(p, t, -7.573_665e-2);
    p = multiply_add::<FMA>(p, t, 1.420_028_3e-1);
    p = multiply_add::<FMA>(p, t, 9.491_091e-2);
    p = multiply_add::<FMA>(p, t, 1.218_620_2e-1);
    p = multiply_add::<FMA>(p, t, 1.194_958_9e-1);
    p = multiply_add::<FMA>(p, t, 6.686_178_7e-6);
    let tail = p * exp_within::<FMA>((-0.5 * x * x).max(-87.33));
    if x < 0.0 { tail } else { 1.0 - tail }
}

/// `f16` bits to `f32`, exact for every value including subnormals.
#[inline(always)]
pub(crate) fn widen_half(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let sign = (bits & 0x8000) << 16;
    let magnitude = bits & 0x7fff;
    // Exponent and mantissa moved into place, then scaled by 2^112 to correct the bias; subnormals come out right too.
    let value = f32::from_bits(magnitude << 13) * f32::from_bits((254 - 15) << 23);
    let value = if magnitude >= 0x7c00 {
        f32::from_bits(0x7f80_0000 | (magnitude & 0x3ff) << 13)
    } else {
        value
    };
    f32::from_bits(value.to_bits() | sign)
}

/// `f16` bits of `value`, rounded to nearest even, infinite beyond the largest; a NaN stays one.
#[inline(always)]
pub(crate) fn narrow_half(value: f32) -> u16 {
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    // Out of range becomes infinite, in range nothing changes: ·2¹¹²·2⁻¹¹⁰, with the factor 4 in the bias below.
    let scaled =
        f32::from_bits(magnitude) * f32::from_bits(0x7780_0000) * f32::from_bits(0x0880_0000);
    // Adding a power of two 2¹³ times as large as the last place of the result rounds the sum there, subnormals included.
    let exponent = (magnitude & 0x7f80_0000).max(0x3880_0000);
    let sum = (f32::from_bits(exponent + 0x0780_0000) + scaled).to_bits();
    let rounded = (sum >> 13 & 0x7c00) + (sum & 0x0fff);
    let rounded = if magnitude > 0x7f80_0000 {
        0x7e00
    } else {
        rounded
    };
    (rounded | bits >> 16 & 0x8000) as u16
}

/// Compiles one loop for each level and calls the best one.
///
/// `multiversion!(level, name::<FMA>(arguments))` with `#[inline(always)] fn name<const FMA: bool>(...)`.
macro_rules! multiversion {
    ($vis:vis fn $name:ident($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $vis fn $name(level: $crate::level::Level, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { $body::<true>($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { $body::<true>($($arg),*) }
                match $crate::level::clamp(level) {
                    $crate::level::Level::Avx512 | $crate::level::Level::Amx => {
                        // SAFETY: `clamp` returns this level only where the processor reports these features.
                        return unsafe { avx512($($arg),*) };
                    }
                    $crate::level::Level::Avx2 => {
                        // SAFETY: as above.
                        return unsafe { avx2($($arg),*) };
                    }
                    $crate::level::Level::Portable => {}
                }
            }
            let _ = level;
            $body::<false>($($arg),*)
        }
    };
}
pub(crate) use multiversion;
