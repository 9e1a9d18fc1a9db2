//! The `mgm` command.
fn main() {}
