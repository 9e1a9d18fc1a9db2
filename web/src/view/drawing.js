// Pictures that the model draws: while they come along, and when they are there.

import { element, icon } from '../dom.js';

/** A picture that is being drawn: a frame of its shape, a preview in it, how far it has come. */
export class DrawingView {
  root = element('div', { class: 'drawing', hidden: true });
  #frame = element('div', { class: 'drawing-frame' });
  #bar = element('progress', { 'aria-label': 'Drawing' });
  #words = element('p', { class: 'drawing-words' });
  #prompt = element('p', { class: 'drawn-prompt', dir: 'auto' });
  #preview = '';

  constructor() {
    this.root.append(this.#frame, element('div', { class: 'drawing-state' }, this.#words, this.#bar), this.#prompt);
  }

  /** @param {import('../api/client.js').Progress | undefined} progress undefined while nothing is being drawn */
  show(progress) {
    this.root.hidden = !progress;
    const preview = progress?.preview ?? '';
    if (preview !== this.#preview) {
      this.#preview = preview;
      this.#frame.replaceChildren(...(preview ? [element('img', { src: preview, alt: 'The picture so far' })] : []));
    }
    if (!progress) return;
    const { prompt, size, step, steps } = progress;
    const [width, height] = size.split('x').map(Number);
    this.#frame.style.aspectRatio = width > 0 && height > 0 ? `${width} / ${height}` : '1 / 1';
    this.#words.textContent = steps === null ? 'Drawing\u2026' : step < steps ? `Drawing, step ${step} of ${steps}` : 'Developing the picture\u2026';
    this.#prompt.textContent = prompt;
    if (steps === null || step >= steps) this.#bar.removeAttribute('value');
    else {
      this.#bar.max = steps;
      this.#bar.value = step;
    }
  }
}

/**
 * A drawn picture with its prompt, and what can be done with it.
 * @param {HTMLElement} button that shows it
 * @param {string} id of the picture
 * @param {import('../store/thread.js').Painting | undefined} painting how it was drawn, where that is known
 * @param {import('./message.js').Actions} actions
 */
export function drawnPicture(button, id, painting, actions) {
  const name = painting?.seed ? `drawing-${painting.seed}.png` : 'drawing.png';
  const download = element('a', { class: 'icon-button', download: name, 'aria-label': 'Download the picture', title: 'Download the picture' }, icon('download'));
  const ask = element('button', { type: 'button', class: 'button', onclick: () => actions.onask(id) }, icon('ask'), 'Ask about this picture');
  const tools = element('div', { class: 'drawn-tools' }, ask, download);
  actions.pictureUrl(id).then((url) => {
    if (url) download.href = url;
    else tools.remove();
  });
  const facts = [painting?.seed === null || !painting ? '' : `Seed ${painting.seed}`, painting?.size.replace('x', ' \u00d7 ') ?? ''].filter(Boolean);
  const caption = painting
    ? element('figcaption', {}, element('p', { class: 'drawn-prompt', dir: 'auto' }, painting.prompt), element('p', { class: 'drawn-facts' }, facts.join(' \u00b7 ')))
    : null;
  return element('figure', { class: 'drawn' }, button, caption, tools);
}
