//! Borders of the connected regions of a mask, after Suzuki and Abe, "Topological structural analysis of digitized binary images by
//! border following" (1985), algorithm 1 without the hierarchy: what OpenCV's `findContours` does with `RETR_LIST`.

/// The eight neighbours, counter-clockwise from the right as seen on the screen.
const NEIGHBOURS: [(isize, isize); 8] = [
    (1, 0),
    (1, -1),
    (0, -1),
    (-1, -1),
    (-1, 0),
    (-1, 1),
    (0, 1),
    (1, 1),
];

/// A pixel of a region that no border has passed yet.
const UNSEEN: i8 = 1;
/// A border has passed, and the pixel to the right was not examined as background.
const SEEN: i8 = 2;
/// A border has passed with background to the right.
const RIGHT_EDGE: i8 = -2;

/// The outer borders and hole borders of the 8-connected regions of `mask` (`[height, width]`, a region where not zero), each as its
/// pixels in order. Hole borders run over the region's pixels around the hole.
///
/// # Panics
/// If `mask` does not hold `width * height` pixels.
pub(crate) fn borders(mask: &[u8], width: usize, height: usize) -> Vec<Vec<(i32, i32)>> {
    assert_eq!(mask.len(), width * height, "a mask of {width}x{height}");
    // A frame of background saves every bounds check of the neighbourhood.
    let stride = width + 2;
    let mut labels = vec![0i8; stride * (height + 2)];
    if width == 0 || height == 0 {
        return Vec::new();
    }
    for (row, framed) in mask
        .chunks_exact(width)
        .zip(labels[stride..].chunks_exact_mut(stride))
    {
        for (pixel, label) in row.iter().zip(&mut framed[1..]) {
            *label = i8::from(*pixel != 0);
        }
    }
    let mut found = Vec::new();
    for y in 1..=height {
        let mut left = 0;
        for x in 1..=width + 1 {
            let position = y * stride + x;
            let label = labels[position];
            if label == left {
                continue;
            }
            if left == 0 && label == UNSEEN {
                found.push(follow(&mut labels, stride, position, 4));
            } else if label == 0 && left >= UNSEEN {
                found.push(follow(&mut labels, stride, position - 1, 0));
            }
            left = labels[position];
        }
    }
    found
}

/// Follows the border that begins at `start`, whose neighbour in direction `background` is background.
fn follow(labels: &mut [i8], stride: usize, start: usize, background: usize) -> Vec<(i32, i32)> {
    let step = |position: usize, direction: usize| {
        let (x, y) = NEIGHBOURS[direction];
        position.wrapping_add_signed(y * stride as isize + x)
    };
    let point = |position: usize| {
        (
            (position % stride) as i32 - 1,
            (position / stride) as i32 - 1,
        )
    };
    let last = (1..8)
        .map(|turn| (background + 8 - turn) % 8)
        .find(|direction| labels[step(start, *direction)] != 0);
    let Some(mut direction) = last else {
        labels[start] = RIGHT_EDGE;
        return vec![point(start)];
    };
    let before_start = step(start, direction);
    let mut border = Vec::new();
    let mut position = start;
    loop {
        let came_from = direction;
        // One of the eight is where we came from, so this ends.
        direction = (1..=8)
            .map(|turn| (came_from + turn) % 8)
            .find(|direction| labels[step(position, *direction)] != 0)
            .unwrap_or(came_from);
        // Passed over the right neighbour, which is background, on the way round.
        if direction > 0 && direction <= came_from {
            labels[position] = RIGHT_EDGE;
        } else if labels[position] == UNSEEN {
            labels[position] = SEEN;
        }
        border.push(point(position));
        let next = step(position, direction);
        if next == start && position == before_start {
            return border;
        }
        position = next;
        direction = (direction + 4) % 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rows: &[&str]) -> Vec<usize> {
        let mask: Vec<u8> = rows
            .iter()
            .flat_map(|row| row.bytes().map(|b| u8::from(b == b'#')))
            .collect();
        let mut lengths: Vec<usize> = borders(&mask, rows[0].len(), rows.len())
            .iter()
            .map(Vec::len)
            .collect();
        lengths.sort_unstable();
        lengths
    }

    #[test]
    fn regions_touching_the_frame_dots_and_holes() {
        assert_eq!(of(&["."]), [0usize; 0]);
        assert_eq!(of(&["#"]), [1]);
        assert_eq!(of(&["#.#", "...", "##."]), [1, 1, 2]);
        // A ring: its outside and its inside.
        assert_eq!(of(&["###", "#.#", "###"]), [4, 8]);
    }
}
