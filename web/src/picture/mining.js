// Reading the mining attention: which high-resolution cells a patch took its details from, in numbers, colours and words.

/**
 * @typedef {import('../api/client.js').MiningView} MiningView
 * @typedef {{cells: number, even: number, largest: number, row: number, column: number, topThree: number, breadth: number}} Summary
 *   shares in [0, 1]; `even` is the share that every cell would have without a preference; `row` and `column` of the largest count from 0;
 *   `breadth` is the number of equally weighted cells that would be as undecided (the exponential of the entropy)
 */

/**
 * @param {number[]} weights of one patch; they sum to one
 * @param {number} columns cells in a row of the region
 * @returns {Summary}
 */
export function summarise(weights, columns) {
  let best = 0;
  let entropy = 0;
  weights.forEach((weight, cell) => {
    if (weight > weights[best]) best = cell;
    if (weight > 0) entropy -= weight * Math.log(weight);
  });
  const sorted = [...weights].sort((a, b) => b - a);
  return {
    cells: weights.length,
    even: 1 / weights.length,
    largest: weights[best],
    row: Math.floor(best / columns),
    column: best % columns,
    topThree: sorted.slice(0, 3).reduce((sum, weight) => sum + weight, 0),
    breadth: Math.min(Math.exp(entropy), weights.length),
  };
}

/** A sentence or two on what a patch mined. */
export function describePatch(view, patch) {
  const columns = view.cell_columns;
  const { cells, even, largest, row, column, topThree, breadth } = summarise(view.weights[patch], columns);
  if (largest < even * 1.15) return `It took details from all ${cells} cells of its region about equally.`;
  const where = placeInRegion(row, column, view.cell_rows, columns);
  return (
    `Its strongest cell, ${where}, gave ${percent(largest)} of the detail, against ${percent(even)} if all ${cells} counted the same. ` +
    `The three strongest gave ${percent(topThree)}. It was as selective as if it had used ${count(breadth)} of ${cells} cells.`
  );
}

/** What a patch is called in the grid. */
export function patchName(view, patch) {
  return `Row ${Math.floor(patch / view.columns) + 1}, column ${(patch % view.columns) + 1}`;
}

/** The short form that is read out when a patch gets the focus. */
export function patchLabel(view, patch) {
  const { largest, row, column } = summarise(view.weights[patch], view.cell_columns);
  return `${patchName(view, patch)}: strongest cell ${placeInRegion(row, column, view.cell_rows, view.cell_columns)}, ${percent(largest)}`;
}

function placeInRegion(row, column, rows, columns) {
  return `row ${row + 1} of ${rows}, column ${column + 1} of ${columns}`;
}

export function percent(share) {
  const value = share * 100;
  return `${value >= 10 || value === 0 ? Math.round(value) : value.toFixed(1)} %`;
}

function count(number) {
  return number < 10 ? number.toFixed(1) : String(Math.round(number));
}

/**
 * How strongly a cell is coloured, in [0, 1]. It depends on the ratio to an even share alone, so that patches, pictures and models with
 * other region sizes can be compared: an even share is faint, four times of it is nearly full.
 * @param {number} weight @param {number} cells of the region
 */
export function intensity(weight, cells) {
  const ratio = weight * cells;
  return ratio ** 2 / (ratio ** 2 + 2.25);
}

/** Colours from cold to hot, dark to light, so that the order survives without hue. */
const STOPS = [
  [34, 10, 70],
  [110, 20, 110],
  [190, 50, 85],
  [240, 120, 40],
  [253, 200, 70],
  [255, 250, 190],
];

/**
 * The heat colour of an intensity in [0, 1].
 * @returns {[number, number, number]}
 */
export function heat(value) {
  const at = Math.min(Math.max(value, 0), 1) * (STOPS.length - 1);
  const low = Math.min(Math.floor(at), STOPS.length - 2);
  const share = at - low;
  return STOPS[low].map((channel, index) => Math.round(channel + (STOPS[low + 1][index] - channel) * share));
}

/**
 * The cells as pixels, RGBA, row by row over the whole view: those of one patch, or all.
 * @param {MiningView} view
 * @param {number | null} patch null for all patches
 * @param {number} opacity of the hottest cell, in [0, 1]
 */
export function heatPixels(view, patch, opacity) {
  const width = view.columns * view.cell_columns;
  const height = view.rows * view.cell_rows;
  const pixels = new Uint8ClampedArray(width * height * 4);
  const patches = patch === null ? view.weights.keys() : [patch];
  for (const index of patches) {
    const weights = view.weights[index];
    const top = Math.floor(index / view.columns) * view.cell_rows;
    const left = (index % view.columns) * view.cell_columns;
    weights.forEach((weight, cell) => {
      const strength = intensity(weight, weights.length);
      const at = ((top + Math.floor(cell / view.cell_columns)) * width + left + (cell % view.cell_columns)) * 4;
      pixels.set(heat(strength), at);
      pixels[at + 3] = 255 * opacity * (0.1 + 0.9 * strength);
    });
  }
  return { pixels, width, height };
}
