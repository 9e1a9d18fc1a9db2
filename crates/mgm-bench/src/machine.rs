//! What the figures were measured on.

use mgm_kernels::level;
use serde::{Deserialize, Serialize};

/// The machine, and what of it is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Name of the processor as the system gives it.
    pub processor: String,
    /// Logical cores.
    pub cores: usize,
    /// Threads used.
    pub threads: usize,
    /// Instruction-set level of the kernels.
    pub level: String,
    /// Whether that level multiplies bf16.
    pub bf16_products: bool,
    /// Memory in bytes, where the system tells.
    pub memory: Option<u64>,
}

impl Machine {
    /// Looks at this one.
    pub fn this() -> Self {
        let read = |file: &str, field: &str| {
            let text = std::fs::read_to_string(file).ok()?;
            let line = text.lines().find(|line| line.starts_with(field))?;
            Some(line.split_once(':')?.1.trim().to_string())
        };
        let memory = read("/proc/meminfo", "MemTotal")
            .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        Self {
            processor: read("/proc/cpuinfo", "model name")
                .unwrap_or_else(|| std::env::consts::ARCH.to_string()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads: rayon::current_num_threads(),
            level: level::level().name().to_string(),
            bf16_products: level::has_fast_bf16(),
            memory: memory.map(|kibibytes| kibibytes * 1024),
        }
    }
}

/// The most memory this process has held so far, in bytes, where the system tells.
pub(crate) fn peak_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}
