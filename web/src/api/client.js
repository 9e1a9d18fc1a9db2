// The server's HTTP interface, as far as the page uses it. Addresses are relative, so that the page also works below a path prefix.

import { Failure, brokenOff, describe, midStream, unreachable } from './failure.js';
import { events } from './sse.js';

const JSON_TYPE = 'application/json';

/** One server. The key is asked for at every request, because it can change. */
export class Client {
  #base;
  #key;

  /**
   * @param {string} base address that the interface's paths are relative to
   * @param {() => string} key the API key, empty for none
   */
  constructor(base, key) {
    this.#base = base;
    this.#key = key;
  }

  /**
   * The models of the server, with what the server says about each; everything but `id` may be missing.
   * @returns {Promise<Model[]>}
   */
  async models(signal) {
    const response = await this.#request('v1/models', { signal });
    const body = await response.json().catch(() => null);
    if (!Array.isArray(body?.data)) throw new Failure('server', 'The server\u2019s list of models cannot be read.');
    return body.data.filter((model) => typeof model?.id === 'string').map(toModel);
  }

  /**
   * Asks for an answer and hands out what comes, as it comes.
   * @param {object} body of /v1/chat/completions, without `stream`
   * @param {string} conversation its identifier
   * @param {AbortSignal} signal
   * @returns {AsyncGenerator<AnswerEvent>}
   */
  async *chat(body, conversation, signal) {
    const response = await this.#request('v1/chat/completions', {
      signal,
      conversation,
      body: { ...body, stream: true, stream_options: { include_usage: true } },
    });
    if (response.headers.get('content-type')?.startsWith(JSON_TYPE)) {
      // A server or proxy that does not stream.
      yield* fromCompletion(await response.json());
      return;
    }
    let finished = false;
    try {
      for await (const { data } of events(response.body)) {
        if (data === '[DONE]') return;
        for (const event of fromChunk(JSON.parse(data))) {
          finished ||= event.type === 'finish';
          yield event;
        }
      }
    } catch (error) {
      if (signal.aborted || error instanceof Failure) throw error;
      throw brokenOff();
    }
    if (!finished) throw brokenOff();
  }

  /**
   * Draws a picture of words, without a model that writes its prompt.
   * @param {string} prompt
   * @param {number | null} seed
   * @param {string} conversation its identifier
   * @param {AbortSignal} signal
   * @returns {Promise<AnswerEvent>} the picture
   */
  async paint(prompt, seed, conversation, signal) {
    const body = { prompt, ...(seed === null ? {} : { seed }) };
    const response = await this.#request('v1/images/generations', { signal, conversation, body });
    const answer = await response.json().catch(() => null);
    const [picture] = answer?.data ?? [];
    if (typeof picture?.b64_json !== 'string') throw new Failure('server', 'The server\u2019s picture cannot be read.');
    return { type: 'picture', url: `data:image/png;base64,${picture.b64_json}`, painting: toPainting({ ...picture, prompt, size: answer.size }) };
  }

  /**
   * What region of the picture every patch mined. The answer is checked, because drawing relies on its sizes.
   * @param {string} model
   * @param {string} url data URL of the picture
   * @param {string} conversation its identifier
   * @param {AbortSignal} signal
   * @returns {Promise<{image: {width: number, height: number}, views: MiningView[]}>}
   */
  async mining(model, url, conversation, signal) {
    const response = await this.#request('v1/mining', { signal, conversation, body: { model, image_url: { url } } });
    const body = await response.json().catch(() => null);
    const views = Array.isArray(body?.views) ? body.views : [];
    if (!views.length || !views.every(isMiningView)) throw new Failure('server', 'The server\u2019s account of this picture cannot be read.');
    return { image: body.image, views };
  }

  async #request(path, { signal, conversation, body }) {
    const headers = { Accept: body?.stream ? `text/event-stream, ${JSON_TYPE}` : JSON_TYPE };
    const key = this.#key();
    if (key) headers.Authorization = `Bearer ${key}`;
    if (body) headers['Content-Type'] = JSON_TYPE;
    // In front of several servers, a proxy can send a conversation to the one that remembers it.
    if (conversation) headers['X-Conversation'] = conversation;
    let response;
    try {
      response = await fetch(new URL(path, this.#base), {
        method: body ? 'POST' : 'GET',
        headers,
        body: body ? JSON.stringify(body) : undefined,
        signal,
        cache: 'no-store',
        credentials: 'same-origin',
      });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw unreachable();
    }
    if (!response.ok) {
      const text = await response.text().catch(() => '');
      throw describe(response.status, text, response.headers.get('retry-after'), Boolean(key));
    }
    return response;
  }
}

function toModel(model) {
  const capabilities = model.capabilities ?? {};
  return {
    id: model.id,
    contextLength: model.context_length ?? null,
    // A server that says nothing about pictures takes them; mining and painting are this server's own and must be announced.
    vision: capabilities.vision ?? true,
    mining: capabilities.mining === true,
    painting: capabilities.painting === true,
    defaults: model.defaults ?? {},
    limits: model.limits ?? {},
  };
}

function* fromChunk(chunk) {
  if (chunk.error) throw midStream(chunk.error);
  const choice = chunk.choices?.[0];
  if (choice?.delta) yield* fromContent(choice.delta);
  if (choice?.painting) yield { type: 'painting', ...toProgress(choice.painting) };
  if (choice?.finish_reason) yield { type: 'finish', reason: choice.finish_reason };
  if (chunk.usage) yield toUsage(chunk.usage);
  if (typeof chunk.model === 'string') yield { type: 'model', name: chunk.model };
}

function* fromCompletion(completion) {
  if (completion.error) throw midStream(completion.error);
  const choice = completion.choices?.[0];
  if (!choice?.message) throw brokenOff();
  yield* fromContent(choice.message);
  if (choice.finish_reason) yield { type: 'finish', reason: choice.finish_reason };
  if (completion.usage) yield toUsage(completion.usage);
  if (typeof completion.model === 'string') yield { type: 'model', name: completion.model };
}

/** Text and pictures of a message or of a delta: `content` as text or as parts, and drawn pictures under `images`. */
function* fromContent({ content, images }) {
  const parts = typeof content === 'string' ? [{ type: 'text', text: content }] : (content ?? []);
  for (const part of [...parts, ...(images ?? [])]) {
    if (part.type === 'text' && part.text) yield { type: 'text', text: part.text };
    else if (part.type === 'image_url' && isPicture(part.image_url?.url)) yield { type: 'picture', url: part.image_url.url, painting: toPainting(part.painting) };
  }
}

function isPicture(url) {
  return typeof url === 'string' && /^data:image\//i.test(url);
}

/** How a picture was drawn, as far as the server says. */
function toPainting(painting) {
  if (typeof painting?.prompt !== 'string') return undefined;
  const { prompt, seed, size } = painting;
  return { prompt: prompt.trim(), seed: Number.isFinite(seed) ? seed : null, size: typeof size === 'string' ? size : '' };
}

function toProgress(painting) {
  const { step, steps, preview } = painting;
  return {
    ...(toPainting(painting) ?? { prompt: '', seed: null, size: '' }),
    step: Number.isFinite(step) ? step : 0,
    steps: Number.isFinite(steps) && steps > 0 ? steps : null,
    preview: isPicture(preview) ? preview : null,
  };
}

function toUsage(usage) {
  return {
    type: 'usage',
    prompt: usage.prompt_tokens ?? 0,
    completion: usage.completion_tokens ?? 0,
    cached: usage.prompt_tokens_details?.cached_tokens ?? 0,
  };
}

function isMiningView({ region, rows, columns, cell_rows: cellRows, cell_columns: cellColumns, weights }) {
  const sizes = [rows, columns, cellRows, cellColumns];
  return (
    sizes.every((size) => Number.isInteger(size) && size > 0) &&
    [region?.x, region?.y, region?.width, region?.height].every(Number.isFinite) &&
    region.width > 0 &&
    region.height > 0 &&
    Array.isArray(weights) &&
    weights.length === rows * columns &&
    weights.every((row) => Array.isArray(row) && row.length === cellRows * cellColumns && row.every(Number.isFinite))
  );
}

/**
 * @typedef {{id: string, contextLength: number | null, vision: boolean, mining: boolean, painting: boolean,
 *   defaults: {temperature?: number, top_p?: number, max_tokens?: number},
 *   limits: {images?: number, image_bytes?: number, image_pixels?: number}}} Model
 * @typedef {import('../store/thread.js').Painting & {step: number, steps: number | null, preview: string | null}} Progress of a picture
 *   that is being drawn; without `steps` it waits
 * @typedef {{type: 'text', text: string} | {type: 'picture', url: string, painting?: import('../store/thread.js').Painting} |
 *   ({type: 'painting'} & Progress) | {type: 'finish', reason: string} |
 *   {type: 'model', name: string} | {type: 'usage', prompt: number, completion: number, cached: number}} AnswerEvent
 * @typedef {{name: string, region: {x: number, y: number, width: number, height: number}, rows: number, columns: number,
 *   cell_rows: number, cell_columns: number, weights: number[][]}} MiningView
 */
