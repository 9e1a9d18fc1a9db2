// All conversations of this browser, in memory and in the database, with word of every change: to this page by events, to other tabs by
// a channel.

import { openDatabase } from './database.js';
import { path } from './thread.js';

/** How long a growing answer may stay unsaved, in milliseconds. */
const SAVE_EVERY = 1000;

/**
 * Events: `list` (a conversation came, went or changed its title), `conversation` (detail: id; what it says changed) and
 * `trouble` (detail: a sentence; it could not be saved).
 */
export class Library extends EventTarget {
  #database;
  #conversations = new Map();
  #urls = new Map();
  #channel = 'BroadcastChannel' in window ? new BroadcastChannel('mini-gemini') : null;
  /** Conversations that this tab is writing; what other tabs say about them is older. */
  #busy = new Set();
  #saveTimers = new Map();

  static async open() {
    const library = new Library();
    library.#database = await openDatabase();
    for (const conversation of await library.#database.conversations()) library.#conversations.set(conversation.id, settle(conversation));
    library.#channel?.addEventListener('message', ({ data }) => library.#heard(data));
    // Nothing is lost when the tab closes in the middle of an answer.
    addEventListener('pagehide', () => library.#flush());
    return library;
  }

  /** Whether what is kept survives a reload. */
  get persistent() {
    return this.#database.persistent;
  }

  /** @returns {import('./thread.js').Conversation[]} the last used first */
  list() {
    return [...this.#conversations.values()].sort((a, b) => b.updated - a.updated);
  }

  get(id) {
    return this.#conversations.get(id);
  }

  /**
   * Keeps a conversation as it is now, with pictures that are new in it.
   * @param {import('./thread.js').Conversation} conversation
   * @param {import('./database.js').Picture[]} [pictures]
   */
  async save(conversation, pictures = []) {
    clearTimeout(this.#saveTimers.get(conversation.id));
    this.#saveTimers.delete(conversation.id);
    this.#conversations.set(conversation.id, conversation);
    this.#announce('conversation', conversation.id);
    this.#announce('list');
    try {
      await this.#database.put(conversation, pictures);
      this.#channel?.postMessage({ changed: conversation.id });
    } catch (error) {
      this.#announce('trouble', saveTrouble(error));
    }
  }

  /** Tells the page that something about a conversation changed that is not kept. */
  touch(conversation) {
    this.#announce('conversation', conversation.id);
  }

  /** Tells the page at once that an answer grew, and the database within a second. */
  grew(conversation) {
    this.#announce('conversation', conversation.id);
    if (this.#saveTimers.has(conversation.id)) return;
    this.#saveTimers.set(
      conversation.id,
      setTimeout(() => {
        this.#saveTimers.delete(conversation.id);
        this.#database.put(conversation).catch((error) => this.#announce('trouble', saveTrouble(error)));
      }, SAVE_EVERY),
    );
  }

  /** Marks a conversation as being written by this tab, or not any more. */
  setBusy(id, busy) {
    if (busy) this.#busy.add(id);
    else this.#busy.delete(id);
  }

  /**
   * Removes a conversation and its pictures.
   * @returns {{gone: Promise<unknown>, restore: () => void}} `gone` when they are; `restore` brings them back
   */
  remove(id) {
    const conversation = this.#conversations.get(id);
    this.#conversations.delete(id);
    clearTimeout(this.#saveTimers.get(id));
    this.#saveTimers.delete(id);
    this.#announce('list');
    const gone = this.#forget(id).catch((error) => {
      this.#announce('trouble', saveTrouble(error));
      return [];
    });
    const restore = () => {
      this.#conversations.set(id, conversation);
      this.#announce('list');
      gone.then((pictures) => {
        // It may have been removed again meanwhile.
        if (this.#conversations.get(id) === conversation) this.save(conversation, pictures);
      });
    };
    return { gone, restore };
  }

  /** Takes a conversation out of the database; resolves to its pictures. */
  async #forget(id) {
    // Asked for first, so answered with what is there before; the removal does not wait for it.
    const [pictures] = await Promise.all([this.#database.picturesOf(id), this.#database.delete(id)]);
    this.#channel?.postMessage({ removed: id });
    return pictures;
  }

  /** @returns {Promise<import('./database.js').Picture | undefined>} */
  picture(id) {
    return this.#database.picture(id);
  }

  picturesOf(conversation) {
    return this.#database.picturesOf(conversation);
  }

  /** An address under which this page can show a kept picture; null when it is not there any more. */
  pictureUrl(id) {
    if (!this.#urls.has(id)) {
      this.#urls.set(
        id,
        this.picture(id).then((picture) => (picture ? URL.createObjectURL(picture.blob) : null)),
      );
    }
    return this.#urls.get(id);
  }

  #announce(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  async #heard({ changed, removed }) {
    const id = changed ?? removed;
    if (this.#busy.has(id)) return;
    const conversation = changed ? await this.#database.conversation(id) : undefined;
    if (conversation) this.#conversations.set(id, conversation);
    else this.#conversations.delete(id);
    this.#announce('conversation', id);
    this.#announce('list');
  }

  #flush() {
    for (const [id, timer] of this.#saveTimers) {
      clearTimeout(timer);
      this.#database.put(this.#conversations.get(id)).catch(() => {});
    }
    this.#saveTimers.clear();
  }
}

/** An answer that was being written when its tab went away was stopped by that. */
function settle(conversation) {
  for (const message of Object.values(conversation.messages)) if (message.status === 'running') message.status = 'stopped';
  // A path that leads nowhere would hide everything.
  if (path(conversation).length === 0) for (const message of Object.values(conversation.messages)) if (message.parent === null) conversation.chosen.root = message.id;
  return conversation;
}

function saveTrouble(error) {
  return error?.name === 'QuotaExceededError'
    ? 'The browser\u2019s storage is full. Export and delete old conversations to keep new ones.'
    : 'The browser did not keep the last change. It is lost when the page closes.';
}
