//! Geometry, image operations and decoding against OpenCV, Clipper and rapidocr (tools/fixtures/ocr_geometry.py).

use std::sync::LazyLock;

use mgm_image::RgbImage;
use serde::Deserialize;

use crate::crop::cut_line;
use crate::detect::{ProbabilityMap, regions, thick_mask};
use crate::geometry::{Point, Quad, borders, fill, grow, in_reading_order, smallest_rectangle};
use crate::order::{Placed, reading_order};
use crate::recognise::decode;
use crate::resize::resize;

#[derive(Deserialize)]
struct Fixture {
    masks: Vec<Mask>,
    rectangles: Vec<PointSet>,
    offsets: Vec<Offset>,
    fills: Vec<Fill>,
    resizes: Vec<Resize>,
    crops: Crops,
    maps: Vec<Map>,
    orders: Vec<Order>,
    decodings: Vec<Decoding>,
}

#[derive(Deserialize)]
struct Mask {
    width: usize,
    height: usize,
    mask: String,
    borders: Vec<Vec<(i32, i32)>>,
    thick: String,
}

#[derive(Deserialize)]
struct PointSet {
    points: Vec<(i32, i32)>,
    short_side: f32,
    corners: [[f32; 2]; 4],
}

#[derive(Deserialize)]
struct Offset {
    quad: [[f64; 2]; 4],
    distance: f64,
    outline: Vec<(i32, i32)>,
}

#[derive(Deserialize)]
struct Fill {
    width: usize,
    height: usize,
    quad: [(i64, i64); 4],
    mask: String,
}

#[derive(Deserialize)]
struct Resize {
    width: u32,
    height: u32,
    pixels: String,
    to_width: u32,
    to_height: u32,
    resized: String,
}

#[derive(Deserialize)]
struct Crops {
    width: u32,
    height: u32,
    pixels: String,
    crops: Vec<Crop>,
}

#[derive(Deserialize)]
struct Crop {
    corners: [[f64; 2]; 4],
    width: u32,
    height: u32,
    pixels: String,
}

#[derive(Deserialize)]
struct Map {
    width: usize,
    height: usize,
    map: String,
    picture: [u32; 2],
    regions: Vec<ExpectedRegion>,
}

#[derive(Deserialize)]
struct ExpectedRegion {
    corners: [[f64; 2]; 4],
    score: f64,
}

#[derive(Deserialize)]
struct Order {
    boxes: Vec<[[f64; 2]; 4]>,
    ordered: Vec<[[f64; 2]; 4]>,
}

#[derive(Deserialize)]
struct Decoding {
    probabilities: Vec<Vec<f32>>,
    text: String,
    confidence: f32,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../tests/fixtures/geometry.json")).unwrap()
});

fn quad(corners: [[f64; 2]; 4]) -> Quad {
    corners.map(|[x, y]| Point::new(x, y))
}

fn bits(text: &str) -> Vec<u8> {
    text.bytes().map(|digit| digit - b'0').collect()
}

fn bytes(hexadecimal: &str) -> Vec<u8> {
    hexadecimal
        .as_bytes()
        .chunks_exact(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Largest and mean difference of two pictures.
fn difference(found: &[u8], expected: &[u8]) -> (u8, f64) {
    assert_eq!(found.len(), expected.len());
    let differences = found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b));
    let sum: f64 = differences.clone().map(f64::from).sum();
    (differences.max().unwrap(), sum / found.len() as f64)
}

fn farthest(found: &Quad, expected: &Quad) -> f64 {
    let distances = found.iter().zip(expected).map(|(a, b)| a.distance(*b));
    distances.fold(0.0, f64::max)
}

#[test]
fn borders_are_those_of_find_contours() {
    for case in &FIXTURE.masks {
        let sorted = |mut borders: Vec<Vec<(i32, i32)>>| {
            borders.iter_mut().for_each(|border| border.sort_unstable());
            borders.sort_unstable();
            borders
        };
        assert_eq!(
            sorted(borders(&bits(&case.mask), case.width, case.height)),
            sorted(case.borders.clone()),
            "{} of {} columns",
            case.mask,
            case.width
        );
    }
}

#[test]
fn masks_are_thickened_as_by_dilate() {
    for case in &FIXTURE.masks {
        let map = ProbabilityMap {
            width: case.width,
            height: case.height,
            values: bits(&case.mask).into_iter().map(f32::from).collect(),
        };
        assert_eq!(thick_mask(&map), bits(&case.thick));
    }
}

#[test]
fn rectangles_are_those_of_min_area_rect() {
    for case in &FIXTURE.rectangles {
        let found = smallest_rectangle(&case.points);
        // Bit for bit, up to which of several equally small rectangles stands for them.
        let corners =
            in_reading_order(found.corners).map(|corner| [corner.x as f32, corner.y as f32]);
        assert_eq!(corners, case.corners, "{:?}", case.points);
        assert_eq!(found.short_side as f32, case.short_side);
    }
}

#[test]
fn outlines_are_those_of_clipper() {
    for case in &FIXTURE.offsets {
        let mut found = grow(&quad(case.quad), case.distance);
        // Clipper begins anywhere and leaves out points that repeat or lie on an edge.
        let mut expected = case.outline.clone();
        found.sort_unstable();
        found.dedup();
        expected.sort_unstable();
        assert!(
            expected.iter().all(|point| found.contains(point)),
            "{:?}: {found:?} lacks some of {expected:?}",
            case.quad
        );
        let (found, expected) = (smallest_rectangle(&found), smallest_rectangle(&expected));
        assert!((found.short_side - expected.short_side).abs() < 1e-4);
        let corners = in_reading_order(found.corners);
        assert!(farthest(&corners, &in_reading_order(expected.corners)) < 1e-3);
    }
}

#[test]
fn quadrilaterals_are_filled_as_by_fill_poly() {
    for case in &FIXTURE.fills {
        let found: Vec<u8> = fill(&case.quad, case.width, case.height)
            .into_iter()
            .map(u8::from)
            .collect();
        assert_eq!(found, bits(&case.mask), "{:?}", case.quad);
    }
}

#[test]
fn pictures_are_resized_as_by_opencv() {
    for case in &FIXTURE.resizes {
        let image = RgbImage::new(case.width, case.height, bytes(&case.pixels)).unwrap();
        let found = resize(&image, case.to_width, case.to_height);
        let (largest, mean) = difference(&found.data, &bytes(&case.resized));
        // OpenCV's vector code rounds a weight differently now and then.
        assert!(
            largest <= 1 && mean < 0.02,
            "{}x{} to {}x{}: {largest}, {mean}",
            case.width,
            case.height,
            case.to_width,
            case.to_height
        );
    }
}

#[test]
fn lines_are_cut_as_by_warp_perspective() {
    let pixels = bytes(&FIXTURE.crops.pixels);
    let image = RgbImage::new(FIXTURE.crops.width, FIXTURE.crops.height, pixels).unwrap();
    for case in &FIXTURE.crops.crops {
        let found = cut_line(&image, &quad(case.corners)).unwrap();
        let found = found.turned(usize::from(found.is_upright()));
        assert_eq!(
            (found.image.width, found.image.height),
            (case.width, case.height)
        );
        let (largest, mean) = difference(&found.image.data, &bytes(&case.pixels));
        assert!(
            largest <= 1 && mean < 0.01,
            "{:?}: {largest}, {mean}",
            case.corners
        );
    }
}

#[test]
fn regions_are_those_of_rapidocr() {
    for case in &FIXTURE.maps {
        let map = ProbabilityMap {
            width: case.width,
            height: case.height,
            values: bytes(&case.map)
                .into_iter()
                .map(|value| f32::from(value) / 255.0)
                .collect(),
        };
        let found = regions(&map, case.picture[0], case.picture[1]);
        assert_eq!(found.len(), case.regions.len());
        for expected in &case.regions {
            let corners = quad(expected.corners);
            let nearest = found
                .iter()
                .min_by(|a, b| {
                    farthest(&a.corners, &corners).total_cmp(&farthest(&b.corners, &corners))
                })
                .unwrap();
            assert!(
                farthest(&nearest.corners, &corners) <= 1.5,
                "{nearest:?}, {corners:?}"
            );
            // OpenCV draws an outline that leaves the map a little differently.
            assert!(
                (nearest.score - expected.score).abs() < 5e-3,
                "{nearest:?} scores {}",
                expected.score
            );
        }
    }
}

#[test]
fn upright_pages_are_read_in_pp_ocrs_order() {
    for case in &FIXTURE.orders {
        let placed: Vec<Placed> = case
            .boxes
            .iter()
            .map(|corners| Placed {
                corners: quad(*corners),
                confidence: 1.0,
            })
            .collect();
        let ordered: Vec<_> = reading_order(&placed, 0.0)
            .into_iter()
            .map(|index| case.boxes[index])
            .collect();
        assert_eq!(ordered, case.ordered);
    }
}

#[test]
fn columns_are_decoded_as_by_rapidocr() {
    let characters: Vec<String> = "abcdef ".chars().map(String::from).collect();
    for case in &FIXTURE.decodings {
        let reading = decode(&case.probabilities.concat(), &characters);
        assert_eq!(reading.text, case.text);
        assert!((reading.confidence - case.confidence).abs() < 1e-4);
    }
}
