// Where a question is written: text, pictures, send and stop. Also used for editing an earlier question.

import { element, icon, iconButton } from '../dom.js';
import { pictureFiles, takePicture } from '../picture/intake.js';
import { announce } from './announce.js';
import { cameraAvailable, photograph } from './camera.js';

const TALLEST = 0.4;
let count = 0;

/**
 * @typedef {{text: string, pictures: (import('../picture/intake.js').TakenPicture & {id?: string})[]}} Draft
 *   a picture that is already kept has its id
 */

export class Composer {
  #field;
  #pictures = [];
  #list = element('ul', { class: 'attachments', 'aria-label': 'Pictures of this question' });
  #note = element('p', { class: 'composer-note', role: 'alert' });
  #send;
  #draw;
  #options;
  #running = false;
  #reading = 0;

  /**
   * @param {{id?: string, label: string, placeholder?: string, editing?: boolean, limits: () => object,
   *   onsend: (draft: Draft & {draw: boolean}) => void, onstop?: () => void, oncancel?: () => void, onchange?: () => void, onup?: () => void}} options
   */
  constructor(options) {
    this.#options = options;
    const id = options.id ?? `edit-${(count += 1)}`;
    this.#field = element('textarea', {
      id,
      rows: '1',
      dir: 'auto',
      'aria-label': options.label,
      placeholder: options.placeholder ?? '',
      oninput: () => this.#changed(),
      onkeydown: (event) => this.#key(event),
      onpaste: (event) => this.#paste(event),
    });
    // A phone's chooser offers its camera by itself, a desktop's does not.
    const files = element('input', { type: 'file', accept: 'image/*', multiple: true, hidden: true, onchange: () => this.#chosen(files) });
    const shot = element('input', { type: 'file', accept: 'image/*', capture: 'environment', hidden: true, onchange: () => this.#chosen(shot) });
    const phone = matchMedia('(pointer: coarse)').matches;
    const camera = async () => {
      if (phone) return shot.click();
      const picture = await photograph();
      if (picture) this.#add(picture);
      this.focus();
    };
    this.#draw = element(
      'button',
      { type: 'button', class: 'toggle', hidden: true, 'aria-pressed': 'false', onclick: () => this.#toggleDraw() },
      icon('brush'),
      'Draw',
    );
    this.#send = element('button', { type: 'submit', class: 'send' });
    this.root = element(
      'form',
      { class: options.editing ? 'composer editing' : 'composer', onsubmit: (event) => this.#submit(event) },
      this.#list,
      this.#field,
      element(
        'div',
        { class: 'composer-bar' },
        iconButton('picture', 'Add pictures', () => files.click()),
        phone || cameraAvailable() ? iconButton('camera', 'Take a photograph', camera) : null,
        this.#draw,
        files,
        shot,
        element('span', { class: 'grow' }),
        options.editing ? element('button', { type: 'button', class: 'button', onclick: options.oncancel }, 'Cancel') : null,
        this.#send,
      ),
      this.#note,
    );
    this.#showButtons();
    this.#showPictures();
  }

  focus() {
    this.#field.focus();
  }

  /** @returns {Draft} what stands in it now */
  get draft() {
    return { text: this.#field.value, pictures: this.#pictures.map(({ url: _url, ...picture }) => picture) };
  }

  get empty() {
    return !this.#field.value.trim() && !this.#pictures.length;
  }

  /** @param {Draft} draft */
  set({ text, pictures }) {
    this.#field.value = text;
    for (const picture of this.#pictures) release(picture);
    this.#pictures = pictures.map((picture) => ({ ...picture, url: URL.createObjectURL(picture.blob) }));
    this.#note.textContent = '';
    this.#showPictures();
    this.#fit();
    this.#showButtons();
  }

  /** While an answer runs, the button stops it. */
  setRunning(running) {
    if (this.#running === running) return;
    this.#running = running;
    this.#showButtons();
  }

  /** Whether the server paints. */
  setPainting(painting) {
    this.#draw.hidden = !painting;
    if (!painting) this.#draw.setAttribute('aria-pressed', 'false');
  }

  /** Whether the next question asks for a picture. */
  setDrawing(drawing) {
    this.#draw.setAttribute('aria-pressed', String(drawing && !this.#draw.hidden));
  }

  /**
   * Adds a picture that is already kept.
   * @param {import('../picture/intake.js').TakenPicture & {id: string}} picture
   */
  attach(picture) {
    this.#note.textContent = '';
    const most = this.#options.limits().images ?? Infinity;
    if (this.#pictures.length >= most) this.#note.textContent = `The server takes at most ${most} pictures with a request.`;
    else if (!this.#pictures.some(({ id }) => id === picture.id)) this.#add(picture);
    this.focus();
  }

  /** Adds picture files, with a word about each that cannot be used. */
  async addFiles(files) {
    const limits = this.#options.limits();
    this.#note.textContent = '';
    this.#reading += files.length;
    this.#showPictures();
    for (const file of files) {
      try {
        const most = limits.images ?? Infinity;
        if (this.#pictures.length >= most) throw new Error(`The server takes at most ${most} pictures with a request.`);
        this.#add(await takePicture(file, limits));
      } catch (error) {
        this.#note.textContent = error.message;
      } finally {
        this.#reading -= 1;
        this.#showPictures();
      }
    }
    this.focus();
  }

  #add(picture) {
    this.#pictures.push({ ...picture, url: URL.createObjectURL(picture.blob) });
    this.#showPictures();
    this.#showButtons();
    announce(`${this.#pictures.length === 1 ? '1 picture' : `${this.#pictures.length} pictures`} added`);
  }

  #remove(picture) {
    const at = this.#pictures.indexOf(picture);
    this.#pictures.splice(at, 1);
    release(picture);
    this.#showPictures();
    this.#showButtons();
    announce('Picture removed');
    const next = this.#list.querySelectorAll('button')[Math.min(at, this.#pictures.length - 1)];
    (next ?? this.#field).focus();
  }

  #chosen(input) {
    const files = [...input.files];
    // The same file may be chosen again.
    input.value = '';
    if (files.length) this.addFiles(files);
  }

  #paste(event) {
    const files = pictureFiles(event.clipboardData);
    if (!files.length) return;
    event.preventDefault();
    event.stopPropagation();
    this.addFiles(files);
  }

  #key(event) {
    if (event.isComposing) return;
    const touch = matchMedia('(pointer: coarse) and (hover: none)').matches;
    if (event.key === 'Enter' && !event.shiftKey && !event.altKey && (!touch || event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      if (!this.#running) this.root.requestSubmit();
    } else if (event.key === 'Escape') {
      if (this.#options.oncancel) this.#options.oncancel();
      else if (this.#running) this.#options.onstop();
    } else if (event.key === 'ArrowUp' && this.empty && !this.#running) {
      this.#options.onup?.();
    }
  }

  #submit(event) {
    event.preventDefault();
    if (this.#running) return this.#options.onstop();
    if (this.empty || this.#reading) return this.focus();
    const { text, pictures } = this.draft;
    this.set({ text: '', pictures: [] });
    this.#options.onsend({ text: text.trim(), pictures, draw: this.#draw.getAttribute('aria-pressed') === 'true' });
  }

  #toggleDraw() {
    const on = this.#draw.getAttribute('aria-pressed') !== 'true';
    this.#draw.setAttribute('aria-pressed', String(on));
  }

  #changed() {
    this.#fit();
    this.#showButtons();
    this.#options.onchange?.();
  }

  /** As tall as its text, up to a part of the window. */
  #fit() {
    this.#field.style.height = 'auto';
    if (this.#field.scrollHeight) this.#field.style.height = `${Math.min(this.#field.scrollHeight, innerHeight * TALLEST)}px`;
  }

  /** To be called once the form stands in the page. */
  shown() {
    this.#fit();
    this.#field.setSelectionRange(this.#field.value.length, this.#field.value.length);
  }

  #showButtons() {
    const label = this.#running ? 'Stop' : 'Send';
    const idle = !this.#running && this.empty;
    this.#send.setAttribute('aria-label', label);
    this.#send.title = this.#running ? 'Stop (Esc)' : 'Send (Enter)';
    // Not `disabled`: that would lose the focus of whoever stands on it.
    this.#send.setAttribute('aria-disabled', String(idle));
    this.#send.classList.toggle('stop', this.#running);
    this.#send.replaceChildren(icon(this.#running ? 'stop' : 'send'));
  }

  #showPictures() {
    this.#list.hidden = !this.#pictures.length && !this.#reading;
    const shown = this.#pictures.map((picture, index) =>
      element(
        'li',
        {},
        element('img', { src: picture.url, alt: picture.name, width: '72', height: '72' }),
        iconButton('close', `Remove picture ${index + 1}, ${picture.name}`, () => this.#remove(picture)),
      ),
    );
    const waiting = Array.from({ length: this.#reading }, () => element('li', { class: 'waiting', 'aria-label': 'Reading a picture' }));
    this.#list.replaceChildren(...shown, ...waiting);
  }
}

function release(picture) {
  URL.revokeObjectURL(picture.url);
}
