// Conversations as a JSON file and back. What comes in is checked field by field: the file may come from anywhere.

import { ROOT, newId } from './thread.js';

const FORMAT = 'mini-gemini-conversations';
const VERSION = 1;
const STATUSES = ['done', 'length', 'stopped', 'failed'];
const PICTURE_TYPES = /^image\/(png|jpeg|webp|gif|bmp)$/;

/**
 * @typedef {import('./thread.js').Conversation} Conversation
 * @typedef {{id: string, conversation: string, name: string, width: number, height: number, type: string, bytes: Uint8Array}} RawPicture
 */

/**
 * The text of the file.
 * @param {Conversation[]} conversations
 * @param {RawPicture[]} pictures
 */
export function pack(conversations, pictures, now = new Date()) {
  const file = {
    format: FORMAT,
    version: VERSION,
    exported: now.toISOString(),
    conversations,
    pictures: pictures.map(({ bytes, ...about }) => ({ ...about, data: toBase64(bytes) })),
  };
  return JSON.stringify(file, null, 1);
}

/**
 * Reads such a file. Conversations get new identifiers, so that importing one never overwrites another.
 * @param {string} text
 * @returns {{conversation: Conversation, pictures: RawPicture[]}[]}
 * @throws {Error} with a sentence on what is wrong; nothing is imported then
 */
export function unpack(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error('The file is not JSON.');
  }
  if (file?.format !== FORMAT) throw new Error('The file does not hold exported conversations.');
  if (file.version !== VERSION) throw new Error(`The file has version ${file.version}; this page reads version ${VERSION}.`);
  check(Array.isArray(file.conversations) && Array.isArray(file.pictures), 'It lacks its lists.');
  const pictures = new Map(file.pictures.map((picture) => [picture?.id, picture]));
  return file.conversations.map((conversation) => unpackConversation(conversation, pictures));
}

function unpackConversation(source, pictures) {
  check(isObject(source) && isObject(source.messages) && isObject(source.chosen ?? {}), 'A conversation is incomplete.');
  const conversation = {
    id: newId(),
    title: typeof source.title === 'string' ? source.title.slice(0, 200) : '',
    created: time(source.created),
    updated: time(source.updated),
    messages: {},
    chosen: {},
  };
  const ids = new Map(Object.keys(source.messages).map((id) => [id, newId()]));
  const used = new Map();
  const pictureId = (id) => {
    if (!used.has(id)) used.set(id, unpackPicture(pictures.get(id), conversation.id));
    return used.get(id).id;
  };
  for (const [id, message] of Object.entries(source.messages)) {
    conversation.messages[ids.get(id)] = unpackMessage(message, ids.get(id), ids, pictureId);
  }
  checkTree(conversation.messages);
  for (const [parent, child] of Object.entries(source.chosen ?? {})) {
    const key = parent === ROOT ? ROOT : ids.get(parent);
    const message = conversation.messages[ids.get(child)];
    if (key && message && (message.parent ?? ROOT) === key) conversation.chosen[key] = message.id;
  }
  return { conversation, pictures: [...used.values()] };
}

function unpackMessage(source, id, ids, pictureId) {
  check(isObject(source) && (source.role === 'user' || source.role === 'assistant') && Array.isArray(source.parts), 'A message is incomplete.');
  check(source.parent === null || ids.has(source.parent), 'A message answers one that is not there.');
  const message = {
    id,
    parent: source.parent === null ? null : ids.get(source.parent),
    role: source.role,
    created: time(source.created),
    parts: source.parts.map((part) => {
      if (part?.type === 'text' && typeof part.text === 'string') return { type: 'text', text: part.text };
      check(part?.type === 'picture', 'A message has a part of an unknown kind.');
      const picture = { type: 'picture', picture: pictureId(part.picture) };
      return isObject(part.painting) ? { ...picture, painting: unpackPainting(part.painting) } : picture;
    }),
  };
  if (source.draw === true) message.draw = true;
  if (message.role === 'assistant') {
    message.status = STATUSES.includes(source.status) ? source.status : 'stopped';
    if (message.status === 'failed') message.failure = unpackFailure(source.failure);
    if (typeof source.model === 'string') message.model = source.model.slice(0, 200);
    const usage = numbers(source.usage, ['prompt', 'completion', 'cached']);
    if (usage) message.usage = usage;
    const times = numbers(source.times, ['first', 'total']);
    if (times) message.times = Number.isFinite(source.times.said) ? { ...times, said: source.times.said } : times;
  }
  return message;
}

function unpackPainting({ prompt, seed, size }) {
  return {
    prompt: typeof prompt === 'string' ? prompt.slice(0, 10_000) : '',
    seed: Number.isFinite(seed) ? seed : null,
    size: typeof size === 'string' ? size.slice(0, 20) : '',
  };
}

function unpackPicture(source, conversation) {
  check(isObject(source) && typeof source.data === 'string' && PICTURE_TYPES.test(source.type), 'A picture is missing.');
  check([source.width, source.height].every((side) => Number.isInteger(side) && side > 0), 'A picture has no size.');
  const name = typeof source.name === 'string' ? source.name.slice(0, 200) : 'picture';
  return { id: newId(), conversation, name, width: source.width, height: source.height, type: source.type, bytes: fromBase64(source.data) };
}

function unpackFailure(source) {
  const text = (value) => (typeof value === 'string' ? value.slice(0, 2000) : '');
  return { kind: text(source?.kind), message: text(source?.message) || 'This answer failed.', detail: text(source?.detail), remedy: 'retry', retryAfter: 0 };
}

/** Every message must hang from a first one; a circle would never end. */
function checkTree(messages) {
  const rooted = new Set();
  for (const message of Object.values(messages)) {
    const seen = [];
    for (let at = message; at && !rooted.has(at.id); at = at.parent === null ? null : messages[at.parent]) {
      check(seen.length <= Object.keys(messages).length, 'Its messages go in a circle.');
      seen.push(at.id);
    }
    for (const id of seen) rooted.add(id);
  }
}

function check(holds, sentence) {
  if (!holds) throw new Error(`The file is damaged. ${sentence}`);
}

function isObject(value) {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function time(value) {
  return Number.isFinite(value) && value > 0 && value < 8.64e15 ? value : Date.now();
}

function numbers(source, names) {
  if (!isObject(source)) return null;
  const entries = names.map((name) => [name, Number.isFinite(source[name]) && source[name] >= 0 ? source[name] : null]);
  return Object.fromEntries(entries);
}

function toBase64(bytes) {
  let binary = '';
  // In pieces, because arguments go on the stack.
  for (let at = 0; at < bytes.length; at += 0x8000) binary += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(binary);
}

function fromBase64(text) {
  let binary;
  try {
    binary = atob(text);
  } catch {
    throw new Error('The file is damaged. A picture cannot be read.');
  }
  return Uint8Array.from(binary, (character) => character.charCodeAt(0));
}
