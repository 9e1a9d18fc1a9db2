//! `POST /v1/mining`: what every patch of a picture mined, which no other server tells.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use mgm_engine::{MinedView, MiningAttention};
use serde::Serialize;

use crate::app::App;
use crate::around::json;
use crate::body::read_json;
use crate::error::ApiError;
use crate::generation::{decoding_limits, refusal};
use crate::pictures;
use crate::wire::tokens::MiningRequest;

#[derive(Serialize)]
struct Mining<'a> {
    object: &'static str,
    model: &'a str,
    image: Size,
    views: Vec<View>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patches: Option<&'a [usize]>,
}

#[derive(Serialize)]
struct Size {
    width: u32,
    height: u32,
}

/// A view of the picture: a grid of patches, each of which mined a grid of cells.
#[derive(Serialize)]
struct View {
    name: &'static str,
    region: Region,
    rows: usize,
    columns: usize,
    cell_rows: usize,
    cell_columns: usize,
    weights: Vec<Vec<f64>>,
}

/// In pixels of the picture.
#[derive(Serialize)]
struct Region {
    x: f32,
    y: f32,
    width: f32,
    height: f32,
}

/// Looks inside.
pub(super) async fn mine(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (request, share): (MiningRequest, _) =
        read_json(request, &app.options.limits, &app.bodies).await?;
    let model = app.model_named(request.model.as_deref())?;
    if !model.info.vision.is_some_and(|vision| vision.mines) {
        return Err(ApiError::unsupported(
            "model",
            "this model has no high-resolution tower: there is no mining to look at",
        ));
    }
    let image_url = request
        .image_url
        .ok_or_else(|| ApiError::invalid("image_url", "a request without an `image_url`"))?;
    let file = pictures::obtain(&app, image_url.address("image_url".into())?).await?;
    let permit = Arc::clone(&app.decoders).acquire_owned().await;
    let (state, engine) = (Arc::clone(&app), model.engine.clone());
    let attention = tokio::task::spawn_blocking(move || {
        let _held = (permit, share);
        let bytes = file.into_bytes(state.options.limits.image_bytes)?;
        engine
            .mining_attention(&bytes, &decoding_limits(&state))
            .map_err(|error| refusal(error).with_param("image_url"))
    });
    let attention = attention
        .await
        .map_err(|_| ApiError::internal("looking inside failed"))??;
    let patches = request.patches.map(|patches| patches.0);
    let views = views(&attention, patches.as_deref())?;
    Ok(json(&Mining {
        object: "mining",
        model: &model.info.name,
        image: Size {
            width: attention.width,
            height: attention.height,
        },
        views,
        patches: patches.as_deref(),
    }))
}

fn views(attention: &MiningAttention, patches: Option<&[usize]>) -> Result<Vec<View>, ApiError> {
    const NAMES: [&str; 5] = [
        "top left",
        "top right",
        "bottom left",
        "bottom right",
        "overview",
    ];
    let several = attention.views.len() > 1;
    let named = attention.views.iter().enumerate();
    named
        .map(|(index, view)| {
            let name = match several {
                true => NAMES.get(index).copied().unwrap_or("view"),
                false => "picture",
            };
            Ok(View {
                name,
                region: Region {
                    x: view.left,
                    y: view.top,
                    width: view.side,
                    height: view.side,
                },
                rows: view.patches,
                columns: view.patches,
                cell_rows: view.cells,
                cell_columns: view.cells,
                weights: weights(view, patches)?,
            })
        })
        .collect()
}

/// The weights of the patches asked for, or of all, to four decimals.
fn weights(view: &MinedView, patches: Option<&[usize]>) -> Result<Vec<Vec<f64>>, ApiError> {
    let cells = view.cells * view.cells;
    let count = view.patches * view.patches;
    let rounded = |weight: &f32| (f64::from(*weight) * 1e4).round() / 1e4;
    let row = |patch: usize| {
        let row = view.weights.get(patch * cells..(patch + 1) * cells);
        row.filter(|_| patch < count)
            .map(|row| row.iter().map(rounded).collect())
            .ok_or_else(|| {
                ApiError::invalid(
                    "patches",
                    format!(
                        "there is no patch {patch}: they are numbered from 0 to {}",
                        count.saturating_sub(1)
                    ),
                )
            })
    };
    match patches {
        Some(patches) => patches.iter().map(|patch| row(*patch)).collect(),
        None => (0..count).map(row).collect(),
    }
}
