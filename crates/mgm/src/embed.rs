//! `mgm embed`: the visual tokens of a picture, in a file.

use safetensors::tensor::{Dtype, TensorView};

use crate::cli::EmbedArgs;
use crate::failure::Failure;
use crate::{meter, model};

/// Runs the command.
pub(crate) fn run(args: EmbedArgs) -> Result<(), Failure> {
    model::prepare(&args.model)?;
    let picture = args.image.load()?;
    let model = model::load(&args.model, None)?;
    let spinner = meter::spinner("looking at the picture");
    let features = model.tower_features(&model.prepare(&picture)?)?;
    let tokens = model.visual_tokens(&features)?;
    let (count, width) = tokens.dims2().map_err(mini_gemini::Error::from)?;
    let values: Vec<f32> = tokens
        .flatten_all()
        .and_then(|values| values.to_vec1())
        .map_err(mini_gemini::Error::from)?;
    spinner.finish_and_clear();

    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let failure =
        |message: String| Failure::failed(message).about(&args.output.display().to_string());
    let view = TensorView::new(Dtype::F32, vec![count, width], &bytes)
        .map_err(|error| failure(error.to_string()))?;
    let file = safetensors::serialize([("visual_tokens", view)], None)
        .map_err(|error| failure(error.to_string()))?;
    std::fs::write(&args.output, file).map_err(|error| failure(error.to_string()))?;
    note!(
        "{count} visual tokens of {width} numbers written to {}",
        args.output.display()
    );
    Ok(())
}
