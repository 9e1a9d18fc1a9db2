//! Pictures in the terminal, for terminals that can: kitty's and iTerm2's protocols, sixel, or two colours a character.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};

use mgm_image::{Filter, RgbImage, resize};

/// How a picture is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Display {
    /// The best way the terminal has, by what it says about itself
    Auto,
    /// Not at all
    Never,
    /// kitty's graphics protocol (kitty, Ghostty, Konsole)
    Kitty,
    /// iTerm2's inline pictures (iTerm2, WezTerm)
    Iterm,
    /// Sixel graphics (foot, mlterm, xterm with sixel)
    Sixel,
    /// Half blocks in 24-bit colour
    Blocks,
}

/// Most columns a picture takes in half blocks, and most pixels along a side in sixels.
const MOST_COLUMNS: u32 = 64;
const MOST_SIXELS: u32 = 512;

impl Display {
    /// Shows the picture, whose PNG file may be at hand, on stderr. Nothing is shown where stderr is no terminal, unless a way was asked for by name. That it cannot be shown
    /// is no failure.
    pub(crate) fn show(self, image: &RgbImage, png: Option<&[u8]>) {
        let way = match self {
            Self::Auto if !std::io::stderr().is_terminal() => return,
            Self::Auto => detect(|name| std::env::var(name).unwrap_or_default()),
            way => way,
        };
        let encoded = || match png {
            Some(png) => png.to_vec(),
            None => mgm_image::encode_png(image, &[]).unwrap_or_default(),
        };
        let text = match way {
            Self::Auto | Self::Never => return,
            Self::Kitty => kitty(&encoded()),
            Self::Iterm => iterm(&encoded()),
            Self::Sixel => sixel(&fit(image, MOST_SIXELS)),
            Self::Blocks => blocks(&fit(image, MOST_COLUMNS)),
        };
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }
}

/// What the environment says the terminal can do.
fn detect(variable: impl Fn(&str) -> String) -> Display {
    let (term, program) = (variable("TERM"), variable("TERM_PROGRAM"));
    let has = |name: &str| !variable(name).is_empty();
    // Multiplexers pass pictures on only when set up for it.
    if has("TMUX") || term.starts_with("screen") || term == "dumb" {
        return match variable("COLORTERM").as_str() {
            "truecolor" | "24bit" if term != "dumb" => Display::Blocks,
            _ => Display::Never,
        };
    }
    if has("KITTY_WINDOW_ID")
        || term.contains("kitty")
        || term.contains("ghostty")
        || has("KONSOLE_VERSION")
    {
        Display::Kitty
    } else if program == "iTerm.app" || program == "WezTerm" {
        Display::Iterm
    } else if term.contains("sixel") || term.starts_with("foot") || term.starts_with("mlterm") {
        Display::Sixel
    } else if ["truecolor", "24bit"].contains(&variable("COLORTERM").as_str()) {
        Display::Blocks
    } else {
        Display::Never
    }
}

/// The picture with sides of at most `most` pixels.
fn fit(image: &RgbImage, most: u32) -> RgbImage {
    let largest = image.width.max(image.height);
    if largest <= most {
        return image.clone();
    }
    let scale = |side: u32| (u64::from(side) * u64::from(most) / u64::from(largest)).max(1) as u32;
    resize(
        image,
        scale(image.width),
        scale(image.height),
        Filter::Bicubic,
    )
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().enumerate().fold(0u32, |word, (index, &byte)| {
            word | u32::from(byte) << (16 - 8 * index)
        });
        for digit in 0..4 {
            text.push(match digit <= chunk.len() {
                true => DIGITS[(word >> (18 - 6 * digit) & 63) as usize] as char,
                false => '=',
            });
        }
    }
    text
}

/// Kitty's protocol: a PNG file in pieces of at most 4096 characters.
fn kitty(png: &[u8]) -> String {
    let data = base64(png);
    let mut text = String::with_capacity(data.len() + 64);
    let mut rest = data.as_str();
    let mut first = true;
    loop {
        let (piece, after) = rest.split_at(rest.len().min(4096));
        let more = u8::from(!after.is_empty());
        let keys = if first { "a=T,f=100," } else { "" };
        let _ = write!(text, "\x1b_G{keys}m={more};{piece}\x1b\\");
        if after.is_empty() {
            break;
        }
        (rest, first) = (after, false);
    }
    text.push('\n');
    text
}

fn iterm(png: &[u8]) -> String {
    format!(
        "\x1b]1337;File=inline=1;size={}:{}\x07\n",
        png.len(),
        base64(png)
    )
}

/// Two rows of pixels a line, as the colours of an upper half block and what is behind it.
fn blocks(image: &RgbImage) -> String {
    let mut text = String::new();
    for y in (0..image.height).step_by(2) {
        let upper = image.row(y);
        let lower = (y + 1 < image.height).then(|| image.row(y + 1));
        for x in 0..image.width as usize {
            let pixel = &upper[3 * x..3 * x + 3];
            let _ = write!(text, "\x1b[38;2;{};{};{}m", pixel[0], pixel[1], pixel[2]);
            if let Some(lower) = lower {
                let pixel = &lower[3 * x..3 * x + 3];
                let _ = write!(text, "\x1b[48;2;{};{};{}m", pixel[0], pixel[1], pixel[2]);
            }
            text.push('▀');
        }
        text.push_str("\x1b[0m\n");
    }
    text
}

/// Levels of each colour in sixels: 6·6·6 colours fit every terminal's 256 registers.
const LEVELS: u16 = 6;

/// Sixels: bands of six rows, each colour of a band drawn by itself, runs abbreviated. Errors of rounding are spread (Floyd and Steinberg).
fn sixel(image: &RgbImage) -> String {
    let (width, height) = (image.width as usize, image.height as usize);
    let colours = dither(image);
    let mut text = format!("\x1bPq\"1;1;{width};{height}");
    for index in 0..LEVELS.pow(3) {
        let percent = |level: u16| level * 100 / (LEVELS - 1);
        let (red, green, blue) = (index / 36, index / 6 % 6, index % 6);
        let _ = write!(
            text,
            "#{index};2;{};{};{}",
            percent(red),
            percent(green),
            percent(blue)
        );
    }
    for top in (0..height).step_by(6) {
        let rows = 6.min(height - top);
        let band = &colours[top * width..(top + rows) * width];
        let mut used: Vec<u8> = band.to_vec();
        used.sort_unstable();
        used.dedup();
        for colour in used {
            let _ = write!(text, "#{colour}");
            let bits = |x: usize| {
                (0..rows).fold(0u8, |bits, row| {
                    bits | u8::from(band[row * width + x] == colour) << row
                })
            };
            let mut x = 0;
            while x < width {
                let value = bits(x);
                let run = (x..width).take_while(|&x| bits(x) == value).count();
                let letter = (63 + value) as char;
                match run {
                    1..=3 => (0..run).for_each(|_| text.push(letter)),
                    _ => {
                        let _ = write!(text, "!{run}{letter}");
                    }
                }
                x += run;
            }
            text.push('$');
        }
        text.push('-');
    }
    text.push_str("\x1b\\\n");
    text
}

/// Indices into the 216 colours.
fn dither(image: &RgbImage) -> Vec<u8> {
    let (width, height) = (image.width as usize, image.height as usize);
    let mut values: Vec<f32> = image.data.iter().map(|&v| f32::from(v)).collect();
    let mut colours = Vec::with_capacity(width * height);
    let step = 255.0 / f32::from(LEVELS - 1);
    for y in 0..height {
        for x in 0..width {
            let mut index = 0u8;
            for channel in 0..3 {
                let at = (y * width + x) * 3 + channel;
                let level = (values[at] / step)
                    .round()
                    .clamp(0.0, f32::from(LEVELS - 1));
                let error = values[at] - level * step;
                index = index * LEVELS as u8 + level as u8;
                let mut spread = |dx: isize, dy: usize, share: f32| {
                    let to = x as isize + dx;
                    if (0..width as isize).contains(&to) && y + dy < height {
                        values[((y + dy) * width + to as usize) * 3 + channel] +=
                            error * share / 16.0;
                    }
                };
                spread(1, 0, 7.0);
                spread(-1, 1, 3.0);
                spread(0, 1, 5.0);
                spread(1, 1, 1.0);
            }
            colours.push(index);
        }
    }
    colours
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Display {
        detect(|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map_or_else(String::new, |(_, value)| value.to_string())
        })
    }

    #[test]
    fn terminals_are_known_by_what_they_say() {
        assert_eq!(with(&[("TERM", "xterm-kitty")]), Display::Kitty);
        assert_eq!(
            with(&[("TERM_PROGRAM", "iTerm.app"), ("COLORTERM", "truecolor")]),
            Display::Iterm
        );
        assert_eq!(with(&[("TERM", "foot")]), Display::Sixel);
        assert_eq!(
            with(&[("TERM", "xterm-256color"), ("COLORTERM", "truecolor")]),
            Display::Blocks
        );
        assert_eq!(with(&[("TERM", "xterm-256color")]), Display::Never);
        assert_eq!(
            with(&[("TERM", "xterm-kitty"), ("TMUX", "1")]),
            Display::Never
        );
        assert_eq!(
            with(&[("TERM", "dumb"), ("COLORTERM", "truecolor")]),
            Display::Never
        );
    }

    #[test]
    fn base64_of_every_rest() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn kitty_pieces_are_marked() {
        let text = kitty(&[7; 4000]);
        assert!(text.starts_with("\x1b_Ga=T,f=100,m=1;"));
        assert_eq!(text.matches("\x1b_G").count(), 2);
        assert!(text.contains("\x1b_Gm=0;"));
    }

    #[test]
    fn half_blocks_hold_two_rows() {
        let image = RgbImage::new(1, 3, vec![1, 2, 3, 4, 5, 6, 7, 8, 9]).unwrap();
        assert_eq!(
            blocks(&image),
            "\x1b[38;2;1;2;3m\x1b[48;2;4;5;6m▀\x1b[0m\n\x1b[38;2;7;8;9m▀\x1b[0m\n"
        );
    }

    /// Draws the sixels again.
    #[test]
    fn sixels_draw_the_dithered_picture() {
        let data: Vec<u8> = (0..13 * 9 * 3).map(|i| (i * 53 % 256) as u8).collect();
        let image = RgbImage::new(13, 9, data).unwrap();
        let text = sixel(&image);
        let body = text
            .strip_prefix("\x1bPq\"1;1;13;9")
            .unwrap()
            .strip_suffix("\x1b\\\n")
            .unwrap();
        let mut drawn = vec![None; 13 * 9];
        let (mut x, mut top, mut colour) = (0, 0, 0u8);
        let mut characters = body.chars().peekable();
        let number = |characters: &mut std::iter::Peekable<std::str::Chars>| {
            let mut value = 0usize;
            while let Some(digit) = characters.peek().and_then(|c| c.to_digit(10)) {
                value = value * 10 + digit as usize;
                characters.next();
            }
            value
        };
        while let Some(character) = characters.next() {
            let mut run = 1;
            let mut letter = character;
            match character {
                '#' => {
                    colour = number(&mut characters) as u8;
                    while characters.peek() == Some(&';') {
                        characters.next();
                        number(&mut characters);
                    }
                    continue;
                }
                '$' => {
                    x = 0;
                    continue;
                }
                '-' => {
                    (x, top) = (0, top + 6);
                    continue;
                }
                '!' => {
                    run = number(&mut characters);
                    letter = characters.next().unwrap();
                }
                _ => {}
            }
            for _ in 0..run {
                let bits = letter as u8 - 63;
                (0..6)
                    .filter(|row| bits >> row & 1 == 1)
                    .for_each(|row| drawn[(top + row) * 13 + x] = Some(colour));
                x += 1;
            }
        }
        let expected: Vec<Option<u8>> = dither(&image).into_iter().map(Some).collect();
        assert_eq!(drawn, expected);
    }
}
