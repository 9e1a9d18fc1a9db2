// Getting answers: sends a conversation, writes what comes into it, stops when asked. Several conversations can be answered at once.

import { Failure, unreachable } from './api/failure.js';
import { toMessages } from './api/request.js';
import { fromDataUrl, toDataUrl } from './picture/intake.js';
import { addText, append, newId, pathTo } from './store/thread.js';

/** How long a page may take to hear that it goes away, in milliseconds. */
const LEAVING = 250;
const CONNECTION = ['network', 'broken'];

/** Events: `start` and `end` (detail: the conversation and the message). */
export class Answering extends EventTarget {
  #client;
  #library;
  #preferences;
  #running = new Map();

  /**
   * @param {import('./api/client.js').Client} client
   * @param {import('./store/library.js').Library} library
   * @param {import('./store/preferences.js').Preferences} preferences
   */
  constructor(client, library, preferences) {
    super();
    this.#client = client;
    this.#library = library;
    this.#preferences = preferences;
    // An answer that ends because the page goes away was stopped; it did not fail.
    addEventListener('pagehide', () => this.#running.forEach(({ control }) => control.abort()));
  }

  /** @param {string} id of a conversation */
  isRunning(id) {
    return this.#running.has(id);
  }

  /** Stops the answer that a conversation waits for, if any; resolves when it has ended. */
  async stop(id) {
    const answer = this.#running.get(id);
    answer?.control.abort();
    await answer?.ended;
  }

  /**
   * Answers a question of a conversation; resolves when the answer is complete, stopped or failed, which the message then says.
   * @param {import('./store/thread.js').Conversation} conversation
   * @param {import('./store/thread.js').Message} question
   * @param {string} model
   * @param {boolean} draw
   */
  async answer(conversation, question, model, draw) {
    await this.stop(conversation.id);
    const control = new AbortController();
    let end;
    const ended = new Promise((resolve) => {
      end = resolve;
    });
    this.#running.set(conversation.id, { control, ended });
    this.#library.setBusy(conversation.id, true);
    const message = append(conversation, question.id, { role: 'assistant', parts: [], status: 'running', model });
    const started = performance.now();
    message.times = { first: null, total: 0 };
    this.#tell('start', conversation, message);
    await this.#library.save(conversation);
    try {
      const body = await this.#body(conversation, question, model, draw);
      let reason = 'stop';
      for await (const event of this.#client.chat(body, conversation.id, control.signal)) {
        if (event.type === 'finish') reason = event.reason;
        else await this.#take(event, conversation, message, started);
      }
      message.status = reason === 'length' ? 'length' : 'done';
    } catch (error) {
      const failure = error instanceof Failure ? error : unreachable();
      // When the page goes away, its connections break first and `pagehide` comes after.
      if (!control.signal.aborted && CONNECTION.includes(failure.kind)) await new Promise((resolve) => setTimeout(resolve, LEAVING));
      if (control.signal.aborted) message.status = 'stopped';
      else {
        message.status = 'failed';
        message.failure = failure.toRecord();
      }
    }
    message.times.total = performance.now() - started;
    this.#running.delete(conversation.id);
    // It may have been deleted meanwhile.
    if (this.#library.get(conversation.id)) await this.#library.save(conversation);
    this.#library.setBusy(conversation.id, false);
    end();
    this.#tell('end', conversation, message);
  }

  async #body(conversation, question, model, draw) {
    const dataUrl = async (id) => {
      const picture = await this.#library.picture(id);
      return picture ? toDataUrl(picture.blob) : null;
    };
    const messages = await toMessages(pathTo(conversation, question), this.#preferences.get('system'), dataUrl);
    const body = { model, messages, ...this.#preferences.parameters() };
    if (draw) body.modalities = ['text', 'image'];
    return body;
  }

  async #take(event, conversation, message, started) {
    switch (event.type) {
      case 'text':
        message.times.first ??= performance.now() - started;
        addText(message, event.text);
        break;
      case 'picture': {
        message.times.first ??= performance.now() - started;
        const picture = { id: newId(), conversation: conversation.id, ...(await fromDataUrl(event.url, 'drawn picture')) };
        message.parts.push({ type: 'picture', picture: picture.id });
        await this.#library.save(conversation, [picture]);
        break;
      }
      case 'model':
        message.model = event.name;
        return;
      case 'usage': {
        const { prompt, completion, cached } = event;
        message.usage = { prompt, completion, cached };
        return;
      }
      default:
        return;
    }
    this.#library.grew(conversation);
  }

  #tell(type, conversation, message) {
    this.dispatchEvent(new CustomEvent(type, { detail: { conversation, message } }));
  }
}
