//! Loading the model that the flags name.

use mini_gemini::{GemmaNumerics, LoadEvent, LoadOptions, MiniGemini, ModelSource, Precision};

use crate::cli::{DeviceChoice, DtypeChoice, GemmaNumericsChoice, ModelArgs, ModelFiles};
use crate::failure::Failure;
use crate::meter;

/// Sets the number of CPU threads; must come before any other work.
pub(crate) fn set_threads(threads: Option<std::num::NonZeroUsize>) -> Result<(), Failure> {
    let Some(threads) = threads else {
        return Ok(());
    };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.get())
        .build_global()
        .map_err(|error| Failure::failed(format!("{threads} threads cannot be started: {error}")))
}

/// What `--device` and `--dtype` mean on this build.
fn precision(args: &ModelArgs) -> Result<Precision, Failure> {
    let device = match args.device {
        DeviceChoice::Auto | DeviceChoice::Cpu => None,
        DeviceChoice::Cuda => Some("CUDA"),
        DeviceChoice::Metal => Some("Metal"),
    };
    if let Some(device) = device {
        return Err(
            Failure::failed(format!("this build has no {device} support")).hint("use --device cpu"),
        );
    }
    match args.dtype {
        DtypeChoice::Auto => Ok(Precision::Auto),
        DtypeChoice::F32 => Ok(Precision::F32),
        DtypeChoice::Bf16 => Ok(Precision::Bf16),
        DtypeChoice::F16 => Ok(Precision::F16),
        DtypeChoice::Int8 => Ok(Precision::Int8),
    }
}

/// Checks the flags that need no file, and sets the threads.
pub(crate) fn prepare(args: &ModelArgs) -> Result<(), Failure> {
    precision(args)?;
    set_threads(args.threads)
}

/// What the flags say about finding and loading the model.
pub(crate) fn options(args: &ModelArgs, template: Option<&str>) -> Result<LoadOptions, Failure> {
    Ok(LoadOptions {
        precision: precision(args)?,
        template: template.map(str::to_string),
        keep_packed: args.keep_packed,
        ..args.files.load_options()
    })
}

impl ModelFiles {
    /// The part of the load options that says where files are.
    pub(crate) fn load_options(&self) -> LoadOptions {
        LoadOptions {
            model_zoo: self.model_zoo.clone(),
            base: self.model_base.clone(),
            adapter: self.adapter.clone(),
            mmproj: self.mmproj.clone(),
            gemma_numerics: self.gemma_numerics.map(|choice| match choice {
                GemmaNumericsChoice::V4_38 => GemmaNumerics::Erf,
                GemmaNumericsChoice::V4_39 => GemmaNumerics::Tanh,
            }),
            ..LoadOptions::default()
        }
    }
}

/// Loads the model, under a spinner that says how far it is.
pub(crate) fn load(args: &ModelArgs, template: Option<&str>) -> Result<MiniGemini, Failure> {
    let options = options(args, template)?;
    let spinner = meter::spinner(format!("loading {}", args.model));
    let source = ModelSource::parse(&args.model);
    let model = MiniGemini::load_with_progress(&source, &options, &mut |event| match event {
        LoadEvent::Note(text) => spinner.suspend(|| note!("{text}")),
        LoadEvent::Layer { done, total } => {
            spinner.set_message(format!("loading {}: layer {done} of {total}", args.model));
        }
        LoadEvent::Vision => spinner.set_message(format!("loading {}: towers", args.model)),
        LoadEvent::Keeping => spinner.set_message(format!("keeping {} packed", args.model)),
    });
    spinner.finish_and_clear();
    Ok(model?)
}
