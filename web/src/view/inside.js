// Look inside: the picture with its patches; for the chosen patch, which high-resolution cells of its region the model mined.

import { element } from '../dom.js';
import { describePatch, heat, heatPixels, intensity, patchLabel, patchName } from '../picture/mining.js';
import { openDialog } from './dialog.js';

/** Regions with more cells than this are shown without numbers. */
const MOST_NUMBERS = 8;
const LENS_PIXELS = 640;

/**
 * Opens a kept picture, and the account of its mining when the server gives one.
 * @param {string} url of the picture, to show it
 * @param {string} name
 * @param {((signal: AbortSignal) => Promise<{views: import('../api/client.js').MiningView[]}>) | null} load null when the model has nothing to show
 */
export async function openPicture(url, name, load) {
  const image = element('img', { src: url, alt: name });
  const leave = new AbortController();
  const body = element('div', { class: 'inside' }, element('div', { class: 'plain-picture' }, image));
  const title = load ? 'Look inside' : name;
  openDialog(title, { class: 'inside-dialog', onclose: () => leave.abort() }, body);
  if (!load) return;
  const words = element('p', { class: 'hint', role: 'status' }, 'Asking the model what it looked at\u2026');
  body.append(words);
  const ask = async () => {
    try {
      const [{ views }] = await Promise.all([load(leave.signal), image.decode()]);
      const inside = new Inside(image, views);
      body.replaceChildren(...inside.parts);
      inside.focus();
    } catch (error) {
      if (leave.signal.aborted) return;
      const again = () => {
        words.textContent = 'Asking the model what it looked at\u2026';
        ask();
      };
      words.replaceChildren(error.message, ' ', element('button', { type: 'button', class: 'button', onclick: again }, 'Try again'));
    }
  };
  await ask();
}

class Inside {
  #image;
  #views;
  #view;
  #chosen = 0;
  /** The patch under the pointer; what leaves it falls back to the chosen one. */
  #hovered = null;
  #all = false;
  #opacity = 0.8;
  #heat = element('canvas', { class: 'heat', 'aria-hidden': 'true' });
  #grid = element('div', { class: 'patches', role: 'grid', 'aria-label': 'Patches of the picture' });
  #outline = element('div', { class: 'outline', 'aria-hidden': 'true' });
  #stage = element('div', { class: 'stage' });
  #lens = element('canvas', { class: 'lens-picture', width: String(LENS_PIXELS), height: String(LENS_PIXELS), 'aria-hidden': 'true' });
  #table = element('table', { class: 'lens-cells' });
  #name = element('h3');
  #words = element('p', { class: 'inside-words' });

  constructor(image, views) {
    this.#image = image;
    this.#views = views;
    this.#stage.append(image, this.#heat, this.#outline, this.#grid);
    this.#grid.addEventListener('keydown', (event) => this.#key(event));
    this.#grid.addEventListener('focusin', ({ target }) => target.dataset.patch && this.#choose(Number(target.dataset.patch)));
    this.#grid.addEventListener('pointermove', (event) => this.#point(event));
    this.#grid.addEventListener('pointerleave', () => this.#hover(null));
    this.#grid.addEventListener('click', (event) => {
      const patch = this.#patchAt(event);
      this.#chosen = patch;
      this.#cell(patch).focus({ preventScroll: true });
      this.#draw();
    });
    this.#show(0);
    this.parts = [
      element('div', { class: 'stage-frame' }, this.#stage),
      element(
        'div',
        { class: 'inside-panel' },
        element('div', { class: 'inside-patch' }, this.#name, element('div', { class: 'lens' }, this.#lens, this.#table), legend(), this.#words),
        this.#controls(),
        this.#introduction(),
      ),
    ];
  }

  /** The arrow keys work at once. */
  focus() {
    this.#cell(this.#chosen).focus();
  }

  #introduction() {
    const { rows, columns, cell_rows: cellRows, cell_columns: cellColumns } = this.#view;
    const pointing = matchMedia('(pointer: coarse)').matches ? 'Tap a patch' : 'Point at a patch, or go through them with the arrow keys,';
    return element(
      'p',
      { class: 'hint' },
      `The model sees ${rows} \u00d7 ${columns} patches. Each one asks a finer view of its own region, ${cellRows} \u00d7 ${cellColumns} cells, for details. ` +
        `${pointing} to see which cells it took them from.`,
    );
  }

  #controls() {
    const mode = (label, all) => {
      const input = element('input', { type: 'radio', name: 'inside-mode', checked: this.#all === all, onchange: () => ((this.#all = all), this.#draw()) });
      return element('label', {}, input, element('span', {}, label));
    };
    const opacity = element('input', { type: 'range', min: '0', max: '1', step: '0.05', value: String(this.#opacity), id: 'inside-opacity' });
    opacity.addEventListener('input', () => {
      this.#opacity = Number(opacity.value);
      this.#draw();
    });
    const views = element('select', { id: 'inside-view', onchange: () => this.#show(Number(views.value)) });
    views.append(...this.#views.map(({ name }, index) => element('option', { value: String(index) }, name || `View ${index + 1}`)));
    return element(
      'div',
      { class: 'inside-controls' },
      this.#views.length > 1 ? element('div', { class: 'field' }, element('label', { for: 'inside-view' }, 'View'), views) : '',
      element('fieldset', { class: 'segments' }, element('legend', { class: 'visually-hidden' }, 'Show the cells of'), mode('One patch', false), mode('All patches', true)),
      element('div', { class: 'field inline' }, element('label', { for: 'inside-opacity' }, 'Colour'), opacity),
    );
  }

  /** Shows a view: the picture placed so that the view's region fills the stage, and its patches over it. */
  #show(index) {
    this.#view = this.#views[index];
    const { region, rows, columns } = this.#view;
    const { naturalWidth: width, naturalHeight: height } = this.#image;
    this.#stage.style.aspectRatio = `${region.width} / ${region.height}`;
    this.#stage.style.setProperty('--aspect', String(region.width / region.height));
    place(this.#image, -region.x / region.width, -region.y / region.height, width / region.width, height / region.height);
    this.#grid.style.gridTemplateRows = `repeat(${rows}, 1fr)`;
    this.#grid.style.gridTemplateColumns = `repeat(${columns}, 1fr)`;
    this.#grid.setAttribute('aria-rowcount', String(rows));
    this.#grid.setAttribute('aria-colcount', String(columns));
    this.#grid.classList.toggle('fine', columns > 12);
    this.#grid.replaceChildren(
      ...Array.from({ length: rows }, (_, row) =>
        element('div', { role: 'row' }, ...Array.from({ length: columns }, (_unused, column) => this.#patch(row * columns + column))),
      ),
    );
    // Begins where there is most to see.
    this.#chosen = mostSelective(this.#view);
    this.#draw();
  }

  #patch(patch) {
    return element('div', { role: 'gridcell', tabindex: '-1', 'data-patch': String(patch), 'aria-label': patchLabel(this.#view, patch) });
  }

  #cell(patch) {
    return this.#grid.querySelector(`[data-patch="${patch}"]`);
  }

  #key(event) {
    const { rows, columns } = this.#view;
    const row = Math.floor(this.#chosen / columns);
    const column = this.#chosen % columns;
    const moves = {
      ArrowLeft: [row, Math.max(column - 1, 0)],
      ArrowRight: [row, Math.min(column + 1, columns - 1)],
      ArrowUp: [Math.max(row - 1, 0), column],
      ArrowDown: [Math.min(row + 1, rows - 1), column],
      Home: [event.ctrlKey ? 0 : row, 0],
      End: [event.ctrlKey ? rows - 1 : row, columns - 1],
    };
    const to = moves[event.key];
    if (!to) return;
    event.preventDefault();
    this.#hovered = null;
    this.#cell(to[0] * columns + to[1]).focus();
  }

  #choose(patch) {
    this.#chosen = patch;
    this.#draw();
  }

  #point(event) {
    this.#hover(this.#patchAt(event));
  }

  #hover(patch) {
    if (patch === this.#hovered) return;
    this.#hovered = patch;
    this.#draw();
  }

  #patchAt({ clientX, clientY }) {
    const { rows, columns } = this.#view;
    const box = this.#grid.getBoundingClientRect();
    const row = Math.min(Math.max(Math.floor(((clientY - box.top) / box.height) * rows), 0), rows - 1);
    const column = Math.min(Math.max(Math.floor(((clientX - box.left) / box.width) * columns), 0), columns - 1);
    return row * columns + column;
  }

  #draw() {
    const view = this.#view;
    const patch = this.#hovered ?? this.#chosen;
    for (const cell of this.#grid.querySelectorAll('[tabindex="0"]')) cell.setAttribute('tabindex', '-1');
    this.#cell(this.#chosen).setAttribute('tabindex', '0');
    this.#stage.classList.toggle('one', !this.#all);
    this.#drawHeat(heatPixels(view, this.#all ? null : patch, this.#opacity));
    const row = Math.floor(patch / view.columns);
    const column = patch % view.columns;
    place(this.#outline, column / view.columns, row / view.rows, 1 / view.columns, 1 / view.rows);
    this.#name.textContent = patchName(view, patch);
    this.#words.textContent = describePatch(view, patch);
    this.#drawLens(patch, row, column);
  }

  #drawHeat({ pixels, width, height }) {
    if (this.#heat.width !== width || this.#heat.height !== height) Object.assign(this.#heat, { width, height });
    this.#heat.getContext('2d').putImageData(new ImageData(pixels, width, height), 0, 0);
  }

  /** The region of the patch, enlarged, with the share of every cell. */
  #drawLens(patch, row, column) {
    const { region, rows, columns, cell_rows: cellRows, cell_columns: cellColumns, weights } = this.#view;
    const context = this.#lens.getContext('2d');
    const width = region.width / columns;
    const height = region.height / rows;
    context.fillStyle = '#7a7468';
    context.fillRect(0, 0, LENS_PIXELS, LENS_PIXELS);
    drawClipped(context, this.#image, region.x + column * width, region.y + row * height, width, height, LENS_PIXELS);
    const numbers = Math.max(cellRows, cellColumns) <= MOST_NUMBERS;
    const caption = element('caption', { class: 'visually-hidden' }, `Share of the detail that each cell gave, in percent: ${patchName(this.#view, patch)}`);
    const body = element('tbody');
    for (let cellRow = 0; cellRow < cellRows; cellRow += 1) {
      const cells = Array.from({ length: cellColumns }, (_, cellColumn) => {
        const weight = weights[patch][cellRow * cellColumns + cellColumn];
        return this.#lensCell(weight, weights[patch].length, numbers);
      });
      body.append(element('tr', {}, ...cells));
    }
    this.#table.classList.toggle('dense', cellColumns > 5);
    this.#table.replaceChildren(caption, body);
  }

  #lensCell(weight, count, numbers) {
    const strength = intensity(weight, count);
    const [red, green, blue] = heat(strength);
    const cell = element('td', {}, element('span', { class: numbers ? null : 'visually-hidden' }, String(Math.round(weight * 100))));
    cell.style.backgroundColor = `rgb(${red} ${green} ${blue} / ${(this.#opacity * (0.1 + 0.75 * strength)).toFixed(3)})`;
    return cell;
  }
}

/** Draws a part of the picture, which may reach over its edges, into a square. */
function drawClipped(context, image, x, y, width, height, side) {
  const left = Math.max(x, 0);
  const top = Math.max(y, 0);
  const right = Math.min(x + width, image.naturalWidth);
  const bottom = Math.min(y + height, image.naturalHeight);
  if (right <= left || bottom <= top) return;
  const [scaleX, scaleY] = [side / width, side / height];
  context.drawImage(image, left, top, right - left, bottom - top, (left - x) * scaleX, (top - y) * scaleY, (right - left) * scaleX, (bottom - top) * scaleY);
}

/** Places an element in its parent; all in parts of the parent's size. */
function place(node, left, top, width, height) {
  node.style.left = `${left * 100}%`;
  node.style.top = `${top * 100}%`;
  node.style.width = `${width * 100}%`;
  node.style.height = `${height * 100}%`;
}

/** The patch in the middle half of a view, where the eye is, whose largest weight is largest. */
function mostSelective({ rows, columns, weights }) {
  const middle = (at, size) => Math.abs((at + 0.5) / size - 0.5) <= 0.25;
  let best = 0;
  let most = -1;
  weights.forEach((row, patch) => {
    const largest = Math.max(...row);
    if (largest > most && middle(patch % columns, columns) && middle(Math.floor(patch / columns), rows)) {
      most = largest;
      best = patch;
    }
  });
  return best;
}

function legend() {
  const bar = element('canvas', { class: 'legend-bar', width: '64', height: '1', 'aria-hidden': 'true' });
  const context = bar.getContext('2d');
  for (let at = 0; at < 64; at += 1) {
    const [red, green, blue] = heat(at / 63);
    context.fillStyle = `rgb(${red} ${green} ${blue})`;
    context.fillRect(at, 0, 1, 1);
  }
  return element('div', { class: 'legend' }, element('span', {}, 'ignored'), bar, element('span', {}, 'taken most'));
}
