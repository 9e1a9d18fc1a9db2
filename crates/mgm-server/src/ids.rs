//! Names for requests and answers.

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// 24 hexadecimal digits that no other call of this or another process gives: a counter hashed with keys that the system draws at start.
pub(crate) fn unique() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    static KEYS: OnceLock<(RandomState, RandomState)> = OnceLock::new();
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let (first, second) = KEYS.get_or_init(|| (RandomState::new(), RandomState::new()));
    let process = std::process::id();
    format!(
        "{:016x}{:08x}",
        first.hash_one((number, process)),
        second.hash_one(number) as u32
    )
}

/// A seed nobody chose, short enough to be typed.
pub(crate) fn seed() -> u64 {
    RandomState::new().hash_one(0_u8) & 0xffff_ffff
}

/// The id that a client gave its request, if it is fit for logs and headers.
pub(crate) fn acceptable(id: &str) -> bool {
    let fit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !id.is_empty() && id.len() <= 128 && id.bytes().all(fit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_and_have_one_form() {
        let ids: std::collections::HashSet<String> = (0..1000).map(|_| unique()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(
            ids.iter()
                .all(|id| id.len() == 24 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
        );
    }

    #[test]
    fn foreign_ids_cannot_forge_a_log_line() {
        assert!(acceptable("req-1.b_C"));
        for bad in ["", "a b", "a\nb", "é", &"x".repeat(129)] {
            assert!(!acceptable(bad), "{bad:?}");
        }
    }
}
