//! The environment variable that caps the level, seen from a child process.

use std::process::Command;

use mgm_kernels::level::{Level, available, cap, has_avx512_bf16, level, level_error};

/// Not a check of its own: the child of the tests below prints what it sees.
#[test]
fn child_report() {
    if let Ok(name) = std::env::var("LEVEL_TEST_CAP") {
        cap(Level::from_name(&name).unwrap()).unwrap();
    }
    println!("level={} error={:?}", level().name(), level_error());
    println!("late={:?}", cap(Level::Portable));
}

fn child(value: &str) -> String {
    child_with(&[("MGM_KERNEL_LEVEL", value)])
}

fn child_with(variables: &[(&str, &str)]) -> String {
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program)
        .args(["--exact", "child_report", "--nocapture"])
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_cap_set_by_the_program_wins_when_it_comes_first() {
    let best = available().into_iter().max().unwrap();
    let report = child_with(&[
        ("MGM_KERNEL_LEVEL", best.name()),
        ("LEVEL_TEST_CAP", "portable"),
    ]);
    assert!(report.contains("level=portable error=None"), "{report}");
    // Later than the first question it is refused, and says what is in use.
    assert!(report.contains("late=Err(Portable)"), "{report}");
}

#[test]
fn the_variable_caps_the_level() {
    for cap in [Level::Portable, Level::Avx2, Level::Avx512, Level::Amx] {
        let expected = available().into_iter().filter(|&l| l <= cap).max().unwrap();
        let report = child(cap.name());
        assert!(
            report.contains(&format!("level={} error=None", expected.name())),
            "{cap:?}: {report}"
        );
    }
    assert!(child("PORTABLE").contains("level=portable error=None"));
}

#[test]
fn an_unknown_value_is_reported_in_one_line() {
    let best = available().into_iter().max().unwrap();
    let report = child("sse9");
    assert!(
        report.contains(&format!("level={} error=Some(", best.name())),
        "{report}"
    );
    assert!(
        report.contains("MGM_KERNEL_LEVEL: expected portable, avx2, avx512 or amx"),
        "{report}"
    );
}

#[test]
fn levels_are_ordered_and_consistent() {
    let levels = available();
    assert_eq!(levels[0], Level::Portable);
    assert!(levels.is_sorted());
    assert!(!has_avx512_bf16() || levels.contains(&Level::Avx512));
    for l in [Level::Portable, Level::Avx2, Level::Avx512, Level::Amx] {
        assert_eq!(Level::from_name(l.name()), Some(l));
    }
    assert_eq!(Level::from_name("neon"), None);
}
