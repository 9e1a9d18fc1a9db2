//! `cargo run --release -p mini-gemini --example ask -- MODEL QUESTION [PICTURE…]`: the public interface in one page.

use std::io::Write;

use mini_gemini::{Control, Event, GenerateOptions, LoadOptions, MiniGemini, ModelSource};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(model), Some(question)) = (arguments.next(), arguments.next()) else {
        return Err("usage: ask MODEL QUESTION [PICTURE…]".into());
    };
    let model = MiniGemini::load(&ModelSource::parse(&model), &LoadOptions::default())?;
    let pictures = arguments
        .map(|path| mgm_image::open(path, &mgm_image::Limits::default()))
        .collect::<Result<Vec<_>, _>>()?;
    let options = GenerateOptions::default();
    let answer = model
        .session()
        .ask(&question, pictures, &options, &mut |event| {
            if let Event::Text(piece) = event {
                print!("{piece}");
                // A failed flush only delays the text.
                let _ = std::io::stdout().flush();
            }
            Control::Continue
        })?;
    println!("\n{} tokens, {:?}", answer.new_tokens, answer.timings);
    Ok(())
}
