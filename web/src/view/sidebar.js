// The list of conversations: choose, find, rename, delete.

import { element, icon, iconButton } from '../dom.js';
import { matches, titleOf } from '../store/thread.js';

const DAY = 24 * 60 * 60 * 1000;

/**
 * @param {{library: import('../store/library.js').Library, current: () => string, onnew: () => void,
 *   onrename: (id: string, title: string) => void, ondelete: (id: string) => void, onsettings: () => void, onchoose: () => void,
 *   isRunning: (id: string) => boolean}} context
 */
export class Sidebar {
  #context;
  #list = element('nav', { class: 'conversations', 'aria-label': 'Conversations' });
  #search;
  #renaming = false;

  constructor(root, context) {
    this.#context = context;
    this.#search = element('input', {
      type: 'search',
      id: 'search',
      placeholder: 'Search conversations',
      'aria-label': 'Search conversations',
      autocomplete: 'off',
      oninput: () => this.render(),
    });
    root.append(
      element('div', { class: 'sidebar-head' }, element('p', { class: 'brand' }, element('img', { src: 'icon.svg', alt: '', width: '24', height: '24' }), 'mini-gemini')),
      element('button', { type: 'button', class: 'button new', id: 'new', onclick: context.onnew }, icon('plus'), 'New conversation'),
      element('div', { class: 'search' }, icon('search'), this.#search),
      this.#list,
      element(
        'div',
        { class: 'sidebar-foot' },
        element('button', { type: 'button', class: 'row-button', id: 'settings', onclick: context.onsettings }, icon('settings'), 'Settings'),
      ),
    );
  }

  render() {
    // What is being typed there must not be taken away.
    if (this.#renaming && this.#list.contains(document.activeElement)) return;
    const query = this.#search.value;
    const all = this.#context.library.list();
    const found = all.filter((conversation) => matches(conversation, query));
    if (!found.length) {
      const words = all.length ? 'No conversation says that.' : 'Conversations are kept in this browser and appear here.';
      this.#list.replaceChildren(element('p', { class: 'hint' }, words));
      return;
    }
    const focused = document.activeElement?.closest('[data-conversation]')?.dataset;
    const groups = Map.groupBy(found, (conversation) => age(conversation.updated));
    this.#list.replaceChildren(
      ...[...groups].flatMap(([name, conversations]) => [
        element('h2', {}, name),
        element('ul', {}, ...conversations.map((conversation) => this.#item(conversation))),
      ]),
    );
    if (focused) this.focusItem(focused.conversation);
  }

  /** Puts the focus on a conversation of the list; on the button for a new one when there is none. */
  focusItem(id) {
    const link = id && this.#list.querySelector(`[data-conversation="${CSS.escape(id)}"] a`);
    (link || document.getElementById('new')).focus();
  }

  /** The conversation after `id` in the list as it is shown, or the one before it. */
  neighbour(id) {
    const ids = [...this.#list.querySelectorAll('[data-conversation]')].map((item) => item.dataset.conversation);
    const at = ids.indexOf(id);
    return ids[at + 1] ?? ids[at - 1] ?? null;
  }

  #item(conversation) {
    const { id } = conversation;
    const title = titleOf(conversation);
    const current = this.#context.current() === id;
    const running = this.#context.isRunning(id) && element('span', { class: 'busy' }, element('span', { class: 'visually-hidden' }, ' (answering)'));
    return element(
      'li',
      { 'data-conversation': id, class: current ? 'current' : null },
      element('a', { href: `#${id}`, 'aria-current': current ? 'page' : null, title, onclick: this.#context.onchoose }, title, running),
      element(
        'div',
        { class: 'item-actions' },
        iconButton('edit', `Rename \u201c${title}\u201d`, ({ currentTarget }) => this.#rename(currentTarget.closest('li'), id, title)),
        iconButton('trash', `Delete \u201c${title}\u201d`, () => this.#context.ondelete(id)),
      ),
    );
  }

  #rename(item, id, title) {
    const field = element('input', { type: 'text', value: title, maxlength: '200', 'aria-label': 'New title' });
    const done = (keep) => {
      if (!this.#renaming) return;
      this.#renaming = false;
      const renamed = field.value.trim();
      const hadFocus = document.activeElement === field;
      if (keep && renamed && renamed !== title) this.#context.onrename(id, renamed);
      this.render();
      if (hadFocus) this.focusItem(id);
    };
    field.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && !event.isComposing) done(true);
      if (event.key === 'Escape') {
        event.stopPropagation();
        done(false);
      }
    });
    field.addEventListener('blur', () => done(true));
    this.#renaming = true;
    item.replaceChildren(field);
    field.focus();
    field.select();
  }
}

function age(updated) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (updated >= midnight) return 'Today';
  if (updated >= midnight - DAY) return 'Yesterday';
  if (updated >= midnight - 7 * DAY) return 'Previous 7 days';
  return 'Older';
}
