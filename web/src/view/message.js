// One message of the conversation: a question or an answer, with what can be done with it.

import { element, icon, iconButton } from '../dom.js';
import { MarkdownView } from '../markdown/render.js';
import { drewNothing, picturesOf, shownText } from '../store/thread.js';
import { copyButton } from './copy.js';
import { DrawingView, drawnPicture } from './drawing.js';

/**
 * @typedef {import('../store/thread.js').Message} Message
 * @typedef {{pictureUrl: (id: string) => Promise<string | null>, canLookInside: () => boolean, onpicture: (id: string) => void,
 *   progress: (id: string) => import('../api/client.js').Progress | undefined, onask: (id: string) => void, ondraw: (message: Message) => void,
 *   onretry: (message: Message) => void, onedit: (message: Message) => void, onversion: (message: Message) => void,
 *   onremedy: (remedy: 'key' | 'settings' | 'edit', message?: Message) => void}} Actions
 */

export class MessageView {
  #message;
  #actions;
  /** @type {(text: string) => void} */
  #showText;
  #pictures = element('div', { class: 'pictures', hidden: true });
  #shownPictures = '';
  #drawing = new DrawingView();
  #note = element('div', { class: 'note', hidden: true });
  #foot = element('footer');
  #signature = '';
  #text = null;

  /** @param {Message} message @param {Actions} actions */
  constructor(message, actions) {
    this.#message = message;
    this.#actions = actions;
    this.root = element('li', { class: `message ${message.role}`, 'data-message': message.id });
    const heading = element('h2', { class: 'visually-hidden' }, message.role === 'user' ? 'You' : (message.model ?? 'Answer'));
    if (message.role === 'user') {
      // A question is shown as it was typed.
      const bubble = element('div', { class: 'bubble', dir: 'auto' });
      this.#showText = (text) => {
        bubble.textContent = text;
        bubble.hidden = !text;
      };
      this.root.append(heading, this.#pictures, bubble, this.#foot);
    } else {
      const prose = new MarkdownView();
      this.#showText = (text) => prose.show(text);
      this.root.append(heading, prose.root, this.#pictures, this.#drawing.root, this.#note, this.#foot);
    }
  }

  /**
   * Shows the message as it is now.
   * @param {Message[]} versions of it, oldest first
   * @param {boolean} last whether it ends the conversation
   */
  update(message, versions, last) {
    this.#message = message;
    const text = shownText(message);
    const progress = this.#actions.progress(message.id);
    if (text !== this.#text) {
      this.#text = text;
      this.#showText(text);
    }
    this.#showPictures();
    this.#drawing.show(progress);
    const running = message.status === 'running';
    const signature = JSON.stringify([message.status, message.failure, versions.map((version) => version.id), running && !text && !progress, last, drewNothing(message)]);
    if (signature === this.#signature) return;
    this.#signature = signature;
    this.root.classList.toggle('running', running);
    if (running) this.root.setAttribute('aria-busy', 'true');
    else this.root.removeAttribute('aria-busy');
    this.#showNote(running && !text && !progress);
    this.#showFoot(versions, last);
  }

  #showPictures() {
    const ids = picturesOf(this.#message);
    if (ids.join() === this.#shownPictures) return;
    this.#shownPictures = ids.join();
    this.#pictures.hidden = !ids.length;
    const parts = this.#message.parts.filter((part) => part.type === 'picture');
    this.#pictures.replaceChildren(
      ...parts.map(({ picture, painting }, index) => {
        const button = this.#picture(picture, index, ids.length);
        return this.#message.role === 'user' ? button : drawnPicture(button, picture, painting, this.#actions);
      }),
    );
  }

  #picture(id, index, count) {
    const name = `${this.#message.role === 'user' ? 'Picture' : 'Drawn picture'}${count > 1 ? ` ${index + 1} of ${count}` : ''}`;
    const image = element('img', { alt: name, decoding: 'async' });
    const open = element('button', { type: 'button', class: 'picture', onclick: () => this.#actions.onpicture(id) }, image);
    const inside = this.#actions.canLookInside() && element('span', { class: 'picture-label' }, icon('inside'), 'Look inside');
    open.setAttribute('aria-label', inside ? `${name}: look inside` : `${name}: enlarge`);
    if (inside) open.append(inside);
    this.#actions.pictureUrl(id).then((url) => {
      if (url) image.src = url;
      else open.replaceWith(element('p', { class: 'hint' }, 'This picture is not kept any more.'));
    });
    return open;
  }

  #showNote(thinking) {
    const { status, failure, usage } = this.#message;
    const children = [];
    this.#note.className = 'note';
    if (thinking) {
      children.push(element('span', { class: 'thinking' }, element('i'), element('i'), element('i')), element('span', { class: 'visually-hidden' }, 'Answering'));
    } else if (drewNothing(this.#message)) {
      this.#note.className = 'note undrawn';
      const draw = element('button', { type: 'button', class: 'button', onclick: () => this.#actions.ondraw(this.#message) }, icon('brush'), 'Draw my words');
      children.push(element('p', {}, 'The model wrote no picture prompt, so nothing was drawn.'), draw);
    } else if (status === 'stopped') children.push('Stopped.');
    else if (status === 'length') children.push(`The answer was cut off at ${usage?.completion ? `${usage.completion} tokens` : 'its longest'}. Settings can allow more.`);
    else if (status === 'failed') {
      this.#note.className = 'note failure';
      children.push(...this.#failure(failure));
    }
    this.#note.hidden = !children.length;
    this.#note.replaceChildren(...children);
  }

  #failure({ message, detail, remedy }) {
    const again = element('button', { type: 'button', class: 'button', onclick: () => this.#actions.onretry(this.#message) }, icon('retry'), 'Try again');
    const remedies = {
      key: element('button', { type: 'button', class: 'button primary', onclick: () => this.#actions.onremedy('key') }, 'Enter the API key'),
      settings: element('button', { type: 'button', class: 'button', onclick: () => this.#actions.onremedy('settings') }, 'Open settings'),
      edit: element('button', { type: 'button', class: 'button', onclick: () => this.#actions.onremedy('edit', this.#message) }, icon('edit'), 'Edit the question'),
    };
    return [
      element('p', { class: 'failure-words' }, icon('warning'), element('strong', {}, message)),
      detail && detail !== message ? element('p', { class: 'failure-detail' }, `The server said: ${detail}`) : '',
      // What cannot succeed is not offered again.
      element('div', { class: 'failure-actions' }, remedies[remedy] ?? '', remedy === 'edit' ? '' : again),
    ];
  }

  #showFoot(versions, last) {
    const message = this.#message;
    this.#foot.hidden = message.status === 'running';
    const buttons = [];
    if (versions.length > 1) buttons.push(this.#versions(versions));
    if (shownText(message)) buttons.push(copyButton(() => shownText(this.#message), message.role === 'user' ? 'Copy question' : 'Copy answer'));
    if (message.role === 'user') buttons.push(iconButton('edit', 'Edit and ask again', () => this.#actions.onedit(this.#message)));
    else if (message.status !== 'failed') buttons.push(iconButton('retry', 'Answer again', () => this.#actions.onretry(this.#message)));
    const account = accountOf(message);
    this.#foot.classList.toggle('last', last);
    this.#foot.replaceChildren(element('div', { class: 'actions' }, ...buttons), account ? element('p', { class: 'account' }, account) : '');
  }

  #versions(versions) {
    const at = versions.findIndex((version) => version.id === this.#message.id);
    const step = (name, label, target) =>
      iconButton(name, label, () => this.#actions.onversion(versions[target]), { 'aria-disabled': String(!versions[target]) });
    return element(
      'div',
      { class: 'versions', role: 'group', 'aria-label': 'Versions' },
      step('left', 'Earlier version', at - 1),
      element('span', {}, `${at + 1} / ${versions.length}`),
      step('right', 'Later version', at + 1),
    );
  }
}

/** The tokens and the time of an answer, in a line. */
export function accountOf({ usage, times, model, status }) {
  if (!times || status === 'running' || (status === 'failed' && times.first === null)) return '';
  const facts = [];
  if (model) facts.push(model);
  if (usage) {
    facts.push(`${usage.prompt.toLocaleString('en')} tokens in${usage.cached ? ` (${usage.cached.toLocaleString('en')} reused)` : ''}`);
    facts.push(`${usage.completion.toLocaleString('en')} out`);
  }
  if (times.first !== null) {
    facts.push(`first after ${seconds(times.first)}`);
    const rest = ((times.said ?? times.total) - times.first) / 1000;
    if (usage?.completion > 8 && rest > 0.05) facts.push(`${((usage.completion - 1) / rest).toFixed(1)} tokens/s`);
  }
  facts.push(`${seconds(times.total)} in all`);
  return facts.join(' \u00b7 ');
}

function seconds(milliseconds) {
  return `${(milliseconds / 1000).toFixed(milliseconds < 9995 ? 2 : 1)} s`;
}
