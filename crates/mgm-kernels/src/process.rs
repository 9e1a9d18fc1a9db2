//! Settings of the whole process that must be made before it has threads.

/// Sets an environment variable for libraries that read their settings from there, unless it has a value already. Returns whether the
/// variable has a value afterwards: nothing is changed when another thread exists or cannot be ruled out (off Linux).
pub fn set_default_variable(name: &str, value: &str) -> bool {
    if std::env::var_os(name).is_some() {
        return true;
    }
    if !single_threaded() {
        return false;
    }
    // SAFETY: no other thread exists, so none can read or write the environment at the same time.
    unsafe { std::env::set_var(name, value) };
    true
}

/// Whether the system shows exactly one thread of this process.
fn single_threaded() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_with_threads_is_left_alone() {
        // The test harness runs this in a thread of its own.
        assert!(!super::set_default_variable("MGM_TEST_UNSET_VARIABLE", "1"));
        assert!(super::set_default_variable("PATH", "never used"));
    }
}
