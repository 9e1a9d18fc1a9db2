//! Ctrl-C (and SIGTERM).
//!
//! Work that can stop in good order runs inside [`watch`]: the first Ctrl-C raises its flag, a second one ends the process. Outside
//! such work the first Ctrl-C ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::failure::{Failure, INTERRUPTED};

static WATCHED: AtomicBool = AtomicBool::new(false);
static STOP: AtomicBool = AtomicBool::new(false);

/// Takes over Ctrl-C. Called once.
pub(crate) fn install() -> Result<(), Failure> {
    ctrlc::set_handler(|| {
        if !WATCHED.load(Ordering::SeqCst) || STOP.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(INTERRUPTED));
        }
    })
    .map_err(|error| Failure::failed(format!("Ctrl-C cannot be handled: {error}")))
}

/// While this lives, Ctrl-C raises a flag.
#[derive(Debug)]
pub(crate) struct Watch(());

/// Starts watching; the flag starts lowered.
pub(crate) fn watch() -> Watch {
    STOP.store(false, Ordering::SeqCst);
    WATCHED.store(true, Ordering::SeqCst);
    Watch(())
}

impl Watch {
    /// The flag, for libraries that look at it themselves.
    pub(crate) fn flag(&self) -> &'static AtomicBool {
        &STOP
    }

    /// Raises the flag from within.
    pub(crate) fn raise(&self) {
        STOP.store(true, Ordering::SeqCst);
    }

    /// Whether Ctrl-C was pressed.
    pub(crate) fn stopped(&self) -> bool {
        STOP.load(Ordering::SeqCst)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        WATCHED.store(false, Ordering::SeqCst);
    }
}
