// The messages of the shown conversation, and the place in it that is looked at.

import { element, icon } from '../dom.js';
import { path, versions } from '../store/thread.js';
import { MessageView } from './message.js';

/** How far from the end, in pixels, still counts as reading the end. */
const NEAR_END = 80;

export class ConversationView {
  #scroller;
  #list = element('ol', { class: 'messages', 'aria-label': 'Messages' });
  #views = new Map();
  #actions;
  #follow = true;
  #latest;
  #pending = 0;
  #editing = null;

  /**
   * @param {HTMLElement} scroller
   * @param {import('./message.js').Actions} actions
   */
  constructor(scroller, actions) {
    this.#scroller = scroller;
    this.#actions = actions;
    this.#latest = element(
      'button',
      { type: 'button', class: 'latest', hidden: true, 'aria-label': 'To the end of the conversation', onclick: () => this.toEnd() },
      icon('down'),
    );
    scroller.append(this.#list);
    scroller.after(this.#latest);
    scroller.addEventListener('scroll', () => {
      this.#follow = this.#list.hidden || this.#atEnd();
      this.#latest.hidden = this.#follow;
    });
    // Pictures that arrive late and a keyboard that opens move the end.
    new ResizeObserver(() => this.#follow && this.#jump()).observe(this.#list);
    new ResizeObserver(() => this.#follow && this.#jump()).observe(scroller);
  }

  /** Shows a conversation from its end. */
  open(conversation) {
    this.#views.clear();
    this.#list.replaceChildren();
    this.#editing = null;
    this.#follow = true;
    this.#latest.hidden = true;
    this.render(conversation);
  }

  /** Redraws at most once a frame, however fast tokens come. */
  schedule(conversation) {
    if (this.#pending) return;
    this.#pending = requestAnimationFrame(() => {
      this.#pending = 0;
      this.render(conversation());
    });
    // Hidden tabs get no frames.
    if (document.hidden) {
      cancelAnimationFrame(this.#pending);
      this.#pending = 0;
      this.render(conversation());
    }
  }

  render(conversation) {
    const messages = conversation ? path(conversation) : [];
    const shown = new Set(messages.map((message) => message.id));
    for (const [id, view] of this.#views) {
      if (shown.has(id)) continue;
      view.root.remove();
      this.#views.delete(id);
    }
    messages.forEach((message, index) => {
      let view = this.#views.get(message.id);
      if (!view) {
        view = new MessageView(message, this.#actions);
        this.#views.set(message.id, view);
      }
      if (this.#list.children[index] !== view.root) this.#list.insertBefore(view.root, this.#list.children[index] ?? null);
      view.update(message, versions(conversation, message), index === messages.length - 1);
    });
    this.#list.hidden = !messages.length;
    if (this.#follow) this.#jump();
  }

  /** Puts a form in the place of a message's content, until `stopEditing`. */
  edit(id, composer) {
    this.stopEditing();
    const view = this.#views.get(id);
    if (!view) return;
    this.#editing = { view, composer };
    view.root.classList.add('edited');
    view.root.append(composer.root);
    composer.shown();
    composer.focus();
  }

  stopEditing() {
    if (!this.#editing) return;
    const { view, composer } = this.#editing;
    this.#editing = null;
    const focused = composer.root.contains(document.activeElement);
    view.root.classList.remove('edited');
    composer.root.remove();
    if (focused) view.root.querySelector('[aria-label^="Edit"]')?.focus();
  }

  /** Puts the focus back on the switch between versions after it was redrawn with another message. */
  focusVersions(id) {
    const buttons = this.#views.get(id)?.root.querySelectorAll('.versions button') ?? [];
    [...buttons].find((button) => button.getAttribute('aria-disabled') === 'false')?.focus();
  }

  toEnd() {
    this.#follow = true;
    this.#latest.hidden = true;
    this.#jump();
  }

  #atEnd() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroller;
    return scrollHeight - scrollTop - clientHeight < NEAR_END;
  }

  #jump() {
    this.#scroller.scrollTop = this.#scroller.scrollHeight;
  }
}
