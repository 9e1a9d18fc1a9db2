//! Convolution, resizing and mining.

use candle_core::{Device, Tensor, Var};

use super::super::*;
use super::{assert_close, check, check_differences, check_equal, random};

#[test]
fn depthwise_has_the_right_gradients() {
    let unlike = DepthwiseParams {
        kernel: 5,
        stride: 2,
        pad_top: 1,
        pad_left: 2,
        pad_bottom: 2,
        pad_right: 1,
    };
    for params in [
        DepthwiseParams::symmetric(3, 1, 1),
        unlike,
        DepthwiseParams::symmetric(7, 1, 3),
    ] {
        let taps = params.kernel * params.kernel;
        let inputs = [
            random(&[2, 9, 10, 6], 33),
            random(&[taps, 6], 34),
            random(&[6], 35),
        ];
        check(
            "depthwise",
            &|t| depthwise(&t[0], &t[1], Some(&t[2]), &params),
            &|t| depthwise::composed(&t[0], &t[1], Some(&t[2]), &params),
            &inputs,
        );
        check_differences(
            "depthwise",
            &|t| depthwise(&t[0], &t[1], None, &params),
            &inputs[..2],
        );
    }
    let small = random(&[1, 2, 2, 6], 36);
    assert!(
        depthwise(
            &small,
            &random(&[49, 6], 37),
            None,
            &DepthwiseParams::symmetric(7, 1, 0)
        )
        .is_err()
    );
}

#[test]
fn bilinear_has_the_right_gradients() {
    for (height, width, out_height, out_width) in
        [(5, 7, 10, 14), (6, 6, 24, 17), (12, 9, 5, 4), (1, 3, 4, 9)]
    {
        let x = [random(&[2, 3, height, width], 38)];
        check(
            "bilinear",
            &|t| bilinear(&t[0], out_height, out_width),
            &|t| bilinear::composed(&t[0], out_height, out_width),
            &x,
        );
    }
    // torch.nn.functional.interpolate([0, 1, 2, 3], size=8, mode="linear", align_corners=False)
    let row = Tensor::new(&[[[[0f32, 1., 2., 3.]]]], &Device::Cpu).unwrap();
    let found = bilinear(&row, 1, 8)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1::<f32>()
        .unwrap();
    assert_eq!(found, [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]);
}

#[test]
fn region_attention_equals_the_official_order_of_operations() {
    let (grid, inner) = (3, 7);
    let stages = [
        random(&[5, 12, 12], 39),
        random(&[8, 6, 6], 40),
        random(&[9, 3, 3], 41),
    ];
    let cells = RegionCells::new(&stages, grid).unwrap();
    let (n, c) = (cells.regions(), cells.channels());
    assert_eq!((n, c, cells.cells_per_region()), (9, 22, 16));

    let inputs = [(random(&[n, c], 42) * 0.5).unwrap(), random(&[n], 43)];
    // The constant's gradient is exactly zero here and rounding noise in the composition.
    let check_region = |name: &str, cells: &RegionCells| {
        check_differences(name, &|t| region_attention(&t[0], &t[1], cells), &inputs);
        check_equal(
            name,
            &|t| region_attention(&t[0], &inputs[1], cells),
            &|t| region::composed(&t[0], &inputs[1], cells),
            &inputs[..1],
            1e-5,
        );
    };
    check_region("region attention", &cells);
    let quarter = CellWindow {
        top: 6,
        left: 3,
        rows: 6,
        columns: 9,
        pool: 1,
    };
    check_region("window", &cells.clone().with_window(quarter).unwrap());
    let overview = CellWindow {
        top: 0,
        left: 0,
        rows: 6,
        columns: 6,
        pool: 2,
    };
    check_region(
        "pooled window",
        &cells.clone().with_window(overview).unwrap(),
    );
    let outside = CellWindow { top: 9, ..quarter };
    assert!(cells.clone().with_window(outside).is_err());

    // The unfolded way: LayerNorm with affine, key and value projections of every cell, softmax, weighted sum.
    let (gain, shift) = (random(&[2, c], 44), random(&[2, c], 45));
    let (key, key_bias) = (random(&[inner, c], 46), random(&[inner], 47));
    let (value, value_bias) = (random(&[inner, c], 48), random(&[inner], 49));
    let query = random(&[n, inner], 50);
    let normalised = region::composed_cells(&cells).unwrap();
    let affine = |i: usize| {
        let scaled = normalised
            .broadcast_mul(&gain.narrow(0, i, 1).unwrap().squeeze(0).unwrap())
            .unwrap();
        scaled
            .broadcast_add(&shift.narrow(0, i, 1).unwrap().squeeze(0).unwrap())
            .unwrap()
    };
    let keys = linear::composed(&affine(0), &key, Some(&key_bias)).unwrap();
    let values = linear::composed(&affine(1), &value, Some(&value_bias)).unwrap();
    let scale = 1.0 / (inner as f64).sqrt();
    let scores = (keys
        .matmul(&query.unsqueeze(2).unwrap())
        .unwrap()
        .squeeze(2)
        .unwrap()
        * scale)
        .unwrap();
    let weights = attention::composed_softmax(&scores).unwrap();
    let expected = weights
        .unsqueeze(1)
        .unwrap()
        .matmul(&values)
        .unwrap()
        .squeeze(1)
        .unwrap();

    let row = |x: &Tensor, i: usize| x.narrow(0, i, 1).unwrap().squeeze(0).unwrap();
    let through_key = (linear_transposed(&query, &key).unwrap() * scale).unwrap();
    let folded_query = through_key.broadcast_mul(&row(&gain, 0)).unwrap();
    let constant = through_key
        .broadcast_mul(&row(&shift, 0))
        .unwrap()
        .sum(1)
        .unwrap();
    let constant = (constant
        + (query.broadcast_mul(&key_bias).unwrap().sum(1).unwrap() * scale).unwrap())
    .unwrap();
    let mined = region_attention(&folded_query, &constant, &cells).unwrap();
    let mined = mined
        .broadcast_mul(&row(&gain, 1))
        .unwrap()
        .broadcast_add(&row(&shift, 1))
        .unwrap();
    let found = linear_bias(&mined, &value, &value_bias).unwrap();
    assert_close("folded mining", &found, &expected, 2e-5);

    let found_weights = region_attention_weights(&folded_query, &constant, &cells).unwrap();
    assert_close("attention weights", &found_weights, &weights, 2e-5);

    assert!(RegionCells::new(&stages, 5).is_err());
    assert!(region_attention(&query, &constant, &cells).is_err());
    let tracked = Var::from_tensor(&stages[0]).unwrap().into_inner();
    assert!(RegionCells::new(&[tracked], 3).is_err());
}
