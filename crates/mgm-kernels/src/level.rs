//! Instruction-set levels: what the machine can run and which one the kernels use.

use std::sync::OnceLock;

/// Instruction-set level of a kernel, in rising order of speed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// Rust code compiled for the baseline target.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL, DQ and VNNI. BF16 products are a separate property, see [`has_avx512_bf16`].
    Avx512,
    /// [`Level::Avx512`] and the AMX tile unit, bf16 and int8.
    Amx,
}

impl Level {
    /// The level that a value of `MGM_KERNEL_LEVEL` names.
    pub fn from_name(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "portable" => Some(Self::Portable),
            "avx2" => Some(Self::Avx2),
            "avx512" => Some(Self::Avx512),
            "amx" => Some(Self::Amx),
            _ => None,
        }
    }

    /// The name that [`Level::from_name`] takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        }
    }
}

struct State {
    available: Vec<Level>,
    level: Level,
    avx512_bf16: bool,
    error: Option<String>,
}

static STATE: OnceLock<State> = OnceLock::new();

fn state() -> &'static State {
    STATE.get_or_init(|| match std::env::var("MGM_KERNEL_LEVEL") {
        Err(_) => State::capped(None, None),
        Ok(value) => match Level::from_name(&value) {
            Some(cap) => State::capped(Some(cap), None),
            None => State::capped(None, Some(value)),
        },
    })
}

impl State {
    /// What the machine has up to a level; `unknown` is a value of the environment variable that names none.
    fn capped(cap: Option<Level>, unknown: Option<String>) -> Self {
        let (available, avx512_bf16) = detect();
        let below = |&level: &Level| cap.is_none_or(|cap| level <= cap);
        let level = available.iter().copied().filter(below).max();
        let level = level.unwrap_or(Level::Portable);
        let error = unknown.map(|value| {
            format!(
                "MGM_KERNEL_LEVEL: expected portable, avx2, avx512 or amx, found {value:?}; using {}",
                level.name()
            )
        });
        Self {
            available,
            level,
            avx512_bf16,
            error,
        }
    }
}

/// Caps the level of this process, in place of `MGM_KERNEL_LEVEL`. Must come before anything asks for the level.
///
/// # Errors
/// The level in use, when it has been asked for already.
pub fn cap(cap: Level) -> Result<(), Level> {
    STATE
        .set(State::capped(Some(cap), None))
        .map_err(|_| level())
}

#[cfg(target_arch = "x86_64")]
fn detect() -> (Vec<Level>, bool) {
    let mut available = vec![Level::Portable];
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vnni");
    let bf16 = avx512 && is_x86_feature_detected!("avx512bf16");
    if avx2 {
        available.push(Level::Avx2);
    }
    if avx512 {
        available.push(Level::Avx512);
        if crate::amx::usable() {
            available.push(Level::Amx);
        }
    }
    (available, bf16)
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> (Vec<Level>, bool) {
    (vec![Level::Portable], false)
}

/// The level in use: the best one the machine has, capped by `MGM_KERNEL_LEVEL`. Detected once per process.
pub fn level() -> Level {
    state().level
}

/// All levels this machine can run, in rising order.
pub fn available() -> Vec<Level> {
    state().available.clone()
}

/// Whether AVX-512 BF16 dot products exist at [`Level::Avx512`] on this machine.
pub fn has_avx512_bf16() -> bool {
    state().avx512_bf16
}

/// Whether bf16 weights multiply faster than f32 ones at the level in use: AMX tiles or AVX-512 BF16 dot products.
pub fn has_fast_bf16() -> bool {
    match level() {
        Level::Amx => true,
        Level::Avx512 => has_avx512_bf16(),
        Level::Avx2 | Level::Portable => false,
    }
}

/// One line about an unusable value of `MGM_KERNEL_LEVEL`, if it had one.
pub fn level_error() -> Option<&'static str> {
    state().error.as_deref()
}

/// Lowers a requested level to one that the machine can run, so that a forced level is always safe to execute.
pub(crate) fn clamp(requested: Level) -> Level {
    state()
        .available
        .iter()
        .copied()
        .filter(|&l| l <= requested)
        .max()
        .unwrap_or(Level::Portable)
}
