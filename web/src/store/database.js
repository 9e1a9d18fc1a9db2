// Where conversations and pictures are kept: IndexedDB in this browser, or memory where the browser forbids that (private windows).

const NAME = 'mini-gemini';
const VERSION = 1;

/**
 * @typedef {import('./thread.js').Conversation} Conversation
 * @typedef {{id: string, conversation: string, blob: Blob, name: string, width: number, height: number}} Picture
 */

/** Opens the database; falls back to memory. */
export async function openDatabase() {
  try {
    return new BrowserDatabase(await open());
  } catch {
    return new MemoryDatabase();
  }
}

function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      request.result.createObjectStore('conversations', { keyPath: 'id' });
      request.result.createObjectStore('pictures', { keyPath: 'id' }).createIndex('conversation', 'conversation');
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error('another tab holds an older version'));
  });
}

class BrowserDatabase {
  /** Whether what is kept is there after a reload. */
  persistent = true;
  #database;

  constructor(database) {
    this.#database = database;
    // A tab with a newer page must be able to upgrade.
    database.onversionchange = () => database.close();
  }

  /** @returns {Promise<Conversation[]>} */
  conversations() {
    return this.#read('conversations', (store) => store.getAll());
  }

  /** @returns {Promise<Conversation | undefined>} */
  conversation(id) {
    return this.#read('conversations', (store) => store.get(id));
  }

  /** @returns {Promise<Picture | undefined>} */
  picture(id) {
    return this.#read('pictures', (store) => store.get(id));
  }

  /** @returns {Promise<Picture[]>} */
  picturesOf(conversation) {
    return this.#read('pictures', (store) => store.index('conversation').getAll(conversation));
  }

  /** @param {Conversation} conversation @param {Picture[]} pictures kept together or not at all */
  put(conversation, pictures = []) {
    return this.#write((conversationStore, pictureStore) => {
      conversationStore.put(conversation);
      for (const picture of pictures) pictureStore.put(picture);
      // Not at the end of the next event: a page that is going away has none.
      conversationStore.transaction.commit();
    });
  }

  /** Removes a conversation, and then its pictures. */
  async delete(id) {
    const conversation = this.#write((conversationStore) => {
      conversationStore.delete(id);
      // At once: a page that is going away has no next event.
      conversationStore.transaction.commit();
    });
    const pictures = this.#write((_, pictureStore) => {
      pictureStore.index('conversation').openKeyCursor(IDBKeyRange.only(id)).onsuccess = ({ target }) => {
        if (!target.result) return;
        pictureStore.delete(target.result.primaryKey);
        target.result.continue();
      };
    });
    await Promise.all([conversation, pictures]);
  }

  #read(name, ask) {
    return new Promise((resolve, reject) => {
      const request = ask(this.#database.transaction(name).objectStore(name));
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
  }

  #write(change) {
    return new Promise((resolve, reject) => {
      const transaction = this.#database.transaction(['conversations', 'pictures'], 'readwrite');
      transaction.oncomplete = () => resolve();
      transaction.onabort = () => reject(transaction.error);
      change(transaction.objectStore('conversations'), transaction.objectStore('pictures'));
    });
  }
}

class MemoryDatabase {
  persistent = false;
  #conversations = new Map();
  #pictures = new Map();

  async conversations() {
    return [...this.#conversations.values()];
  }

  async conversation(id) {
    return this.#conversations.get(id);
  }

  async picture(id) {
    return this.#pictures.get(id);
  }

  async picturesOf(conversation) {
    return [...this.#pictures.values()].filter((picture) => picture.conversation === conversation);
  }

  async put(conversation, pictures = []) {
    this.#conversations.set(conversation.id, conversation);
    for (const picture of pictures) this.#pictures.set(picture.id, picture);
  }

  async delete(id) {
    this.#conversations.delete(id);
    for (const picture of await this.picturesOf(id)) this.#pictures.delete(picture.id);
  }
}
