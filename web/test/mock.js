// A server that speaks the routes the page uses, with answers on cue: what the last question says decides what happens. It lets the page be
// driven into every corner without a model, and serves the files of the working tree, so that a change shows at once:
//     node mock.js [PORT]

import { createReadStream, existsSync, readFileSync, statSync } from 'node:fs';
import { createServer } from 'node:http';
import { extname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';

const WEB = fileURLToPath(new URL('..', import.meta.url));
const EXAMPLES = fileURLToPath(new URL('../../examples', import.meta.url));
const TYPES = { '.html': 'text/html; charset=utf-8', '.js': 'text/javascript; charset=utf-8', '.css': 'text/css; charset=utf-8', '.svg': 'image/svg+xml', '.jpg': 'image/jpeg' };

/** The headers that the real server gives the page. */
const HEADERS = {
  'Content-Security-Policy':
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
  'X-Content-Type-Options': 'nosniff',
  'Referrer-Policy': 'no-referrer',
  'Cache-Control': 'no-cache',
};

export const RICH = readFileSync(new URL('rich.md', import.meta.url), 'utf8');
export const HOSTILE = readFileSync(new URL('hostile.md', import.meta.url), 'utf8');

/** A red square of 8 by 8 pixels, as a painter would send it. */
const PAINTED =
  'iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEUlEQVR4nGO4o6GBFTEMLQkAfTBAAc5mLZgAAAAASUVORK5CYII=';

/**
 * @param {{port?: number, key?: string, painting?: boolean, unready?: number, crops?: boolean}} options `unready`: so many requests come too early;
 *   `crops`: the model looks at four crops and an overview
 * @returns {Promise<{url: string, requests: object[], painted: object[], cut: number, close: () => Promise<void>}>} `requests` are the bodies of chat requests, `conversations`
 *   their `X-Conversation` headers; `painted` the bodies of requests for pictures; `cut` counts streams that their client left
 */
export async function startMock({ port = 0, key = '', painting = false, unready = 0, crops = false } = {}) {
  const state = { requests: [], painted: [], conversations: [], cut: 0, failures: 0 };
  let refusals = unready;
  const server = createServer(async (request, response) => {
    const { pathname } = new URL(request.url, 'http://mock');
    if (!pathname.startsWith('/v1/')) return file(pathname, response);
    if (key && request.headers.authorization !== `Bearer ${key}`) return refuse(response, 401, 'Incorrect API key provided.', 'invalid_api_key');
    if (refusals > 0) {
      refusals -= 1;
      return refuse(response, 503, 'The model is being loaded.', 'model_loading', { 'Retry-After': '1' });
    }
    if (pathname === '/v1/models') return json(response, 200, models(painting));
    const body = JSON.parse(await text(request));
    if (pathname === '/v1/images/generations') return words(body, response, state);
    if (pathname === '/v1/mining') return json(response, 200, mining(body, crops));
    state.requests.push(body);
    state.conversations.push(request.headers['x-conversation']);
    return chat(body, response, state);
  });
  await new Promise((resolve) => server.listen(port, '127.0.0.1', resolve));
  return Object.assign(state, {
    url: `http://127.0.0.1:${server.address().port}/`,
    close: () => {
      server.closeAllConnections();
      return new Promise((resolve) => server.close(resolve));
    },
  });
}

function file(pathname, response) {
  const name = normalize(decodeURIComponent(pathname === '/' ? '/index.html' : pathname));
  const path = name.startsWith('/examples/') ? join(EXAMPLES, name.slice('/examples/'.length)) : join(WEB, name);
  if (name.startsWith('/test') || !existsSync(path) || !statSync(path).isFile()) return refuse(response, 404, `There is no ${pathname}.`, 'not_found');
  response.writeHead(200, { ...HEADERS, 'Content-Type': TYPES[extname(path)] ?? 'application/octet-stream' });
  createReadStream(path).pipe(response);
}

async function text(request) {
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  return Buffer.concat(pieces).toString('utf8');
}

function json(response, status, body) {
  response.writeHead(status, { 'Content-Type': 'application/json' });
  response.end(JSON.stringify(body));
}

function refuse(response, status, message, code, headers = {}) {
  response.writeHead(status, { 'Content-Type': 'application/json', ...headers });
  response.end(JSON.stringify({ error: { message, type: 'invalid_request_error', code } }));
}

function models(painting) {
  const model = {
    id: 'smol',
    object: 'model',
    created: 0,
    owned_by: 'mini-gemini',
    context_length: 2048,
    capabilities: { vision: true, mining: true, painting },
    defaults: { temperature: 0, top_p: 1, max_tokens: 512 },
    limits: { images: 4, image_bytes: 20 * 1024 * 1024, image_pixels: 100_000_000 },
  };
  return { object: 'list', data: [model] };
}

// --- chat ---

/** What happens when the last question contains the word. */
const CUES = [
  ['rich', (response) => stream(response, pieces(RICH), 1)],
  ['hostile', (response) => stream(response, pieces(HOSTILE), 1)],
  ['forever', (response, state) => stream(response, endless(), 30, state)],
  ['cut off', (response) => breakOff(response)],
  ['busy', (response) => refuse(response, 429, 'The queue is full (32 requests).', 'queue_full', { 'Retry-After': '3' })],
  ['too long', (response) => refuse(response, 400, 'The prompt has 3000 tokens; the context holds 2048.', 'context_length_exceeded')],
  ['broken', (response) => refuse(response, 500, 'internal error', 'internal')],
  ['paint', (response) => paint(response)],
  ['draw', (response, state) => draw(response, state)],
  ['limit', (response) => stream(response, pieces('One two three'), 5, null, 'length')],
];

function chat(body, response, state) {
  const question = body.messages.at(-1).content;
  const words = typeof question === 'string' ? question : question.map((part) => part.text ?? '').join('');
  const pictures = typeof question === 'string' ? 0 : question.filter((part) => part.type === 'image_url').length;
  if (words.includes('once') && state.failures++ === 0) return refuse(response, 503, 'starting', 'not_ready');
  const cue = CUES.find(([word]) => words === word || words.startsWith(`${word} `));
  if (cue) return cue[1](response, state);
  const seen = pictures === 0 ? 'You said: ' : pictures === 1 ? 'A cat. You asked: ' : `${pictures} pictures. You asked: `;
  return stream(response, pieces(seen + words), 5);
}

function pieces(text) {
  return text.match(/\s*\S{1,9}|\s+$/g) ?? [];
}

function* endless() {
  for (let count = 1; ; count += 1) yield `word${count} `;
}

function send(response, chunk) {
  const whole = { id: 'chatcmpl-1', object: 'chat.completion.chunk', created: 0, model: 'smol', ...chunk };
  return response.write(`data: ${JSON.stringify(whole)}\n\n`);
}

function begin(response) {
  response.writeHead(200, { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-cache' });
  send(response, { choices: [{ index: 0, delta: { role: 'assistant', content: '' } }] });
}

async function stream(response, texts, pause, state, reason = 'stop') {
  begin(response);
  response.write(': keep-alive\n\n');
  let open = true;
  response.on('close', () => {
    if (open && state) state.cut += 1;
    open = false;
  });
  let count = 0;
  await wait(60);
  for (const content of texts) {
    if (!open) return;
    send(response, { choices: [{ index: 0, delta: { content } }] });
    count += 1;
    await wait(pause);
  }
  open = false;
  finish(response, count, reason);
}

function finish(response, count, reason = 'stop') {
  send(response, { choices: [{ index: 0, delta: {}, finish_reason: reason }] });
  const usage = { prompt_tokens: 85, completion_tokens: count, total_tokens: 85 + count, prompt_tokens_details: { cached_tokens: 64 } };
  send(response, { choices: [], usage });
  response.end('data: [DONE]\n\n');
}

/** A stream that ends in the middle. */
async function breakOff(response) {
  begin(response);
  for (const content of pieces('It begins well and then')) {
    send(response, { choices: [{ index: 0, delta: { content } }] });
    await wait(10);
  }
  response.destroy();
}

function paint(response) {
  begin(response);
  const url = `data:image/png;base64,${PAINTED}`;
  send(response, { choices: [{ index: 0, delta: { content: [{ type: 'text', text: 'Here it is.' }, { type: 'image_url', image_url: { url } }] } }] });
  finish(response, 3);
}

/** Text with a picture prompt, the way to the picture, the picture. It stays at the third step until `state.dry` is set. */
async function draw(response, state) {
  begin(response);
  let open = true;
  response.on('close', () => {
    if (open) state.cut += 1;
    open = false;
  });
  for (const content of ['Gladly.', ' <h>a red', ' square</h>']) send(response, { choices: [{ index: 0, delta: { content } }] });
  const painting = { prompt: 'a red square', seed: 4711, size: '96x64' };
  const url = `data:image/png;base64,${PAINTED}`;
  send(response, { choices: [{ index: 0, delta: {}, painting: { ...painting, step: 0, steps: null } }] });
  for (let step = 0; step <= 4; step += 1) {
    await wait(10);
    send(response, { choices: [{ index: 0, delta: {}, painting: { ...painting, step, steps: 4, ...(step === 2 && { preview: url }) } }] });
    while (step === 3 && open && !state.dry) await wait(10);
  }
  if (!open) return;
  send(response, { choices: [{ index: 0, delta: { images: [{ type: 'image_url', index: 0, image_url: { url }, painting }] } }] });
  open = false;
  finish(response, 9);
}

function words(body, response, state) {
  state.painted.push(body);
  json(response, 200, { created: 0, data: [{ b64_json: PAINTED, seed: 12 }], output_format: 'png', size: '8x8' });
}

function wait(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

// --- mining ---

/** Weights as the route gives them: the built-in model's sizes; which cell is strongest is decided by the place of the patch. */
function mining(body, crops) {
  const { width, height } = jpegSize(Buffer.from(body.image_url.url.split(',')[1], 'base64'));
  const side = Math.max(width, height);
  const weights = Array.from({ length: 64 }, (_, patch) => {
    const scores = Array.from({ length: 16 }, (_unused, cell) => 2.2 * Math.sin(patch * 12.9 + cell * 7.7) * Math.cos(patch * 0.37));
    const total = scores.reduce((sum, score) => sum + Math.exp(score), 0);
    return scores.map((score) => Number((Math.exp(score) / total).toFixed(5)));
  });
  const view = (name, left, top, share) => {
    const region = { x: (width - side) / 2 + left * side, y: (height - side) / 2 + top * side, width: side * share, height: side * share };
    return { name, region, rows: 8, columns: 8, cell_rows: 4, cell_columns: 4, weights };
  };
  const views = crops
    ? [view('top left', 0, 0, 0.5), view('top right', 0.5, 0, 0.5), view('bottom left', 0, 0.5, 0.5), view('bottom right', 0.5, 0.5, 0.5), view('overview', 0, 0, 1)]
    : [view('picture', 0, 0, 1)];
  return { object: 'mining', model: body.model, image: { width, height }, views };
}

/** Width and height from a JPEG's frame header. */
function jpegSize(bytes) {
  for (let at = 2; at + 9 < bytes.length; at += 2 + bytes.readUInt16BE(at + 2)) {
    const marker = bytes[at + 1];
    if (marker >= 0xc0 && marker <= 0xc3) return { width: bytes.readUInt16BE(at + 7), height: bytes.readUInt16BE(at + 5) };
  }
  return { width: 300, height: 300 };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { url } = await startMock({ port: Number(process.argv[2] ?? 8081), painting: true });
  console.log(`listening on ${url}`);
}
