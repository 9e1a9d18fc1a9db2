//! A conversation on a real terminal.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use support::{command, example};

/// Waits this long for anything expected.
const PATIENCE: Duration = Duration::from_secs(120);

/// The program on a pseudo terminal.
struct Terminal {
    child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    seen: String,
    _state: tempfile::TempDir,
}

impl Terminal {
    fn start(arguments: &[&str]) -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new())
            .unwrap()
            .into_string()
            .unwrap();
        let side = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(&name)
                .unwrap()
        };
        let state = tempfile::tempdir().unwrap();
        let child = command(arguments)
            .env("TERM", "xterm")
            .env("XDG_STATE_HOME", state.path())
            .stdin(Stdio::from(side()))
            .stdout(Stdio::from(side()))
            .stderr(Stdio::from(side()))
            .spawn()
            .unwrap();
        let keyboard = File::from(controller);
        let mut reader = keyboard.try_clone().unwrap();
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Reading fails when the program has closed its side.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            keyboard,
            screen,
            seen: String::new(),
            _state: state,
        }
    }

    fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until `text` has appeared since the last call, and returns everything up to and with it.
    #[track_caller]
    fn expect(&mut self, text: &str) -> String {
        let started = Instant::now();
        loop {
            if let Some(start) = self.seen.find(text) {
                let rest = self.seen.split_off(start + text.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            let left = PATIENCE.saturating_sub(started.elapsed());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("{text:?} did not appear in {:?}", self.seen),
            }
        }
    }

    #[track_caller]
    fn leaves_with(mut self, code: i32) {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert_eq!(status.code(), Some(code), "{:?}", self.seen);
                return;
            }
            assert!(started.elapsed() < PATIENCE, "still there: {:?}", self.seen);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

#[test]
fn commands_pictures_and_leaving() {
    let mut terminal = Terminal::start(&["chat", "--max-new-tokens", "24"]);
    terminal.expect("Ctrl-D leaves");
    terminal.type_in("/help\r");
    terminal.expect("/reset");
    terminal.expect("Ctrl-C stops an answer");
    terminal.type_in("/nonsense\r");
    terminal.expect("means nothing here");
    terminal.type_in("/image no-such.png\r");
    terminal.expect("error: ");
    terminal.expect("no-such.png");
    terminal.type_in(&format!(
        "/image {} {}\r",
        example("cat.jpg"),
        example("coffee.jpg")
    ));
    terminal.expect("2 pictures go with the next question");
    terminal.type_in("/reset\r");
    terminal.expect("forgotten");
    terminal.type_in(&format!("/image {}\r", example("cat.jpg")));
    terminal.expect("1 picture goes with the next question");
    terminal.type_in("What is in the picture?\r");
    terminal.expect("looking at the picture");
    terminal.expect("cat");
    terminal.expect("> ");
    terminal.type_in("\x04");
    terminal.leaves_with(0);
}

#[test]
fn pasted_and_continued_lines_are_one_question() {
    let mut terminal = Terminal::start(&["chat", "--max-new-tokens", "4", "--timings"]);
    terminal.expect("Ctrl-D leaves");
    terminal.type_in("\x1b[200~/image\nno-such-1.png\nno-such-2.png\x1b[201~");
    terminal.type_in("\r");
    // All three lines belong to one command: its first file is the one complained of, once.
    terminal.expect("no-such-1.png:");
    terminal.type_in("/image \\\r");
    terminal.type_in("no-such-3.png\r");
    let between = terminal.expect("no-such-3.png:");
    assert!(!between.contains("usage: /image"), "{between:?}");
    terminal.type_in("/exit\r");
    terminal.leaves_with(0);
}

#[test]
fn ctrl_c_stops_the_answer_and_the_conversation_goes_on() {
    let sampling = [
        "--temperature",
        "3",
        "--top-k",
        "40000",
        "--seed",
        "5",
        "--max-new-tokens",
        "7000",
    ];
    let mut terminal = Terminal::start(&[&["chat"], &sampling[..]].concat());
    terminal.expect("Ctrl-D leaves");
    terminal.type_in("Tell a very long story.\r");
    terminal.expect("reading");
    std::thread::sleep(Duration::from_secs(2));
    let process = rustix::process::Pid::from_child(&terminal.child);
    rustix::process::kill_process(process, rustix::process::Signal::INT).unwrap();
    terminal.expect("(stopped)");
    // At the prompt Ctrl-C is a key.
    terminal.expect("> ");
    terminal.type_in("\x03");
    terminal.expect("/exit leaves");
    terminal.type_in("/exit\r");
    terminal.leaves_with(0);
}

#[test]
fn what_was_read_in_a_picture_is_told_once() {
    let named = std::env::var_os(mgm_ocr::MODELS_VARIABLE).map(std::path::PathBuf::from);
    if let Err(error) = mgm_ocr::ModelFiles::find(named.as_deref()) {
        // Written past the test harness's capture, so that a skipped check is never silent.
        let message = format!("\nSKIPPED: {error}\n");
        std::io::stderr().write_all(message.as_bytes()).unwrap();
        return;
    }
    let picture = support::root().join("crates/mgm-ocr/tests/fixtures/strip.png");
    let picture = picture.display().to_string();
    let mut terminal = Terminal::start(&["chat", "--ocr", "--max-new-tokens", "4"]);
    terminal.expect("Ctrl-D leaves");
    terminal.type_in(&format!("/image {picture}\r"));
    terminal.expect("1 picture goes with the next question");
    terminal.type_in("What does it say?\r");
    terminal.expect("\x1b[2mread: One long line of a ticker: 4.25");
    terminal.expect("> ");
    terminal.type_in("And what else?\r");
    let between = terminal.expect("> ");
    assert!(!between.contains("read: "), "{between:?}");
    terminal.type_in("/exit\r");
    terminal.leaves_with(0);
}
