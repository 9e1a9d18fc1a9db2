// Getting answers: sends a conversation, writes what comes into it, stops when asked. Several conversations can be answered at once.

import { Failure, unreachable } from './api/failure.js';
import { toMessages } from './api/request.js';
import { fromDataUrl, toDataUrl } from './picture/intake.js';
import { addText, append, newId, pathTo } from './store/thread.js';

/** How long a page may take to hear that it goes away, in milliseconds. */
const LEAVING = 250;
/** Steps between previews of a picture that is being drawn. */
const PREVIEW_EVERY = 5;
const CONNECTION = ['network', 'broken'];

/** Events: `start` and `end` (detail: the conversation and the message). */
export class Answering extends EventTarget {
  #client;
  #library;
  #preferences;
  #running = new Map();
  /** How far pictures have come, by the message that they belong to. */
  #paintings = new Map();

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

  /**
   * How far the picture of a message has come; undefined while none is being drawn.
   * @param {string} id of the message
   * @returns {import('./api/client.js').Progress | undefined}
   */
  progress(id) {
    return this.#paintings.get(id);
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
   */
  async answer(conversation, question, model) {
    await this.stop(conversation.id);
    const draw = question.draw === true;
    const message = append(conversation, question.id, { role: 'assistant', parts: [], status: 'running', model, ...(draw && { draw }) });
    await this.#run(conversation, message, async (signal, started) => {
      const body = await this.#body(conversation, question, model, draw);
      let reason = 'stop';
      for await (const event of this.#client.chat(body, conversation.id, signal)) {
        if (event.type === 'finish') reason = event.reason;
        else await this.#take(event, conversation, message, started);
      }
      return reason === 'length' ? 'length' : 'done';
    });
  }

  /**
   * Draws a picture of a question's own words for an answer that has none.
   * @param {import('./store/thread.js').Conversation} conversation
   * @param {import('./store/thread.js').Message} message the answer
   * @param {string} prompt
   */
  async draw(conversation, message, prompt) {
    await this.stop(conversation.id);
    const before = message.status;
    message.status = 'running';
    delete message.failure;
    this.#paintings.set(message.id, { prompt, seed: null, size: '', step: 0, steps: null, preview: null });
    await this.#run(conversation, message, async (signal, started) => {
      const seed = this.#preferences.get('seed');
      await this.#take(await this.#client.paint(prompt, seed, conversation.id, signal), conversation, message, started);
      return before;
    });
  }

  /** Runs what makes an answer, which gives the status that the answer then has. */
  async #run(conversation, message, make) {
    const control = new AbortController();
    let end;
    const ended = new Promise((resolve) => {
      end = resolve;
    });
    this.#running.set(conversation.id, { control, ended });
    this.#library.setBusy(conversation.id, true);
    const started = performance.now();
    const earlier = message.times;
    message.times = { first: null, total: 0 };
    this.#tell('start', conversation, message);
    await this.#library.save(conversation);
    try {
      message.status = await make(control.signal, started);
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
    // What was drawn afterwards says nothing about how fast the text came.
    if (earlier) message.times = earlier;
    this.#paintings.delete(message.id);
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
    if (draw) Object.assign(body, { modalities: ['text', 'image'], painting: { preview_every: PREVIEW_EVERY } });
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
        message.times.said ??= performance.now() - started;
        const name = event.painting?.seed ? `drawing-${event.painting.seed}.png` : 'drawing.png';
        const picture = { id: newId(), conversation: conversation.id, ...(await fromDataUrl(event.url, name)) };
        message.parts.push({ type: 'picture', picture: picture.id, ...(event.painting && { painting: event.painting }) });
        this.#paintings.delete(message.id);
        await this.#library.save(conversation, [picture]);
        break;
      }
      case 'painting': {
        message.times.first ??= performance.now() - started;
        message.times.said ??= performance.now() - started;
        const { type: _type, ...progress } = event;
        // The last preview stays until there is a newer one.
        progress.preview ??= this.#paintings.get(message.id)?.preview ?? null;
        this.#paintings.set(message.id, progress);
        this.#library.touch(conversation);
        return;
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
