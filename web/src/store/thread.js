// A conversation as a tree of messages. Editing a question or asking again adds a sibling; nothing that was said is lost, and the
// path that is shown follows the chosen child of every message.

/**
 * @typedef {{prompt: string, seed: number | null, size: string}} Painting how a picture was drawn
 * @typedef {{type: 'text', text: string} | {type: 'picture', picture: string, painting?: Painting}} Part a picture is named by its id
 * @typedef {'running' | 'done' | 'length' | 'stopped' | 'failed'} Status
 * @typedef {{id: string, parent: string | null, role: 'user' | 'assistant', created: number, parts: Part[],
 *   draw?: boolean, status?: Status, failure?: object, model?: string, usage?: {prompt: number, completion: number, cached: number},
 *   times?: {first: number | null, said?: number, total: number}}} Message times in milliseconds since the request was sent,
 *   `said` when a picture began to be drawn;
 *   `draw`: a picture was asked for
 * @typedef {{id: string, title: string, created: number, updated: number, messages: Record<string, Message>,
 *   chosen: Record<string, string>}} Conversation `chosen` maps a message's id (`ROOT` for none) to the child that is shown
 */

export const ROOT = 'root';
const TITLE_LENGTH = 60;

/** An identifier that also works where `crypto.randomUUID` does not: on pages served without TLS to other machines. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** @returns {Conversation} */
export function newConversation(now = Date.now()) {
  return { id: newId(), title: '', created: now, updated: now, messages: {}, chosen: {} };
}

/**
 * Adds a message below `parent` and shows it.
 * @param {Conversation} conversation
 * @param {Omit<Message, 'id' | 'created' | 'parent'>} message
 * @param {string | null} parent
 * @returns {Message}
 */
export function append(conversation, parent, message, now = Date.now()) {
  const added = { id: newId(), parent, created: now, ...message };
  conversation.messages[added.id] = added;
  conversation.chosen[parent ?? ROOT] = added.id;
  conversation.updated = now;
  return added;
}

/** The messages that are shown, first to last. */
export function path(conversation) {
  const shown = [];
  for (let id = conversation.chosen[ROOT]; id && shown.length < 10_000; id = conversation.chosen[id]) {
    const message = conversation.messages[id];
    if (!message) break;
    shown.push(message);
  }
  return shown;
}

/** The messages above `message`, first to last, with it. */
export function pathTo(conversation, message) {
  const above = [];
  for (let at = message; at; at = at.parent === null ? null : conversation.messages[at.parent]) above.unshift(at);
  return above;
}

/** The versions of a message, oldest first: the children of its parent. */
export function versions(conversation, message) {
  return Object.values(conversation.messages)
    .filter((other) => other.parent === message.parent)
    .sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1));
}

/** Shows another version of a message, and what followed it when it was last shown. */
export function choose(conversation, message) {
  conversation.chosen[message.parent ?? ROOT] = message.id;
}

/** The text of a message. */
export function textOf(message) {
  return message.parts
    .filter((part) => part.type === 'text')
    .map((part) => part.text)
    .join('');
}

/**
 * The text of a message as it is shown: where a picture is drawn, its prompt (`<h>` to `</h>`, the last pair) stands below the picture.
 * @param {Message} message
 */
export function shownText(message) {
  const text = textOf(message);
  const drawn = message.parts.some((part) => part.type === 'picture' && part.painting);
  if (message.role !== 'assistant' || !message.draw || !(drawn || message.status === 'running')) return text;
  const start = text.lastIndexOf('<h>');
  if (start < 0) return text;
  const end = text.indexOf('</h>', start);
  const rest = text.slice(0, start) + (end < 0 ? '' : text.slice(end + '</h>'.length));
  return rest.replaceAll(/<\/?h>/g, '').trim();
}

/** Whether an answer that was asked for a picture came without one, and without word of why. */
export function drewNothing(message) {
  return Boolean(message.draw) && ['done', 'length'].includes(message.status) && !picturesOf(message).length;
}

/** The ids of a message's pictures. */
export function picturesOf(message) {
  return message.parts.filter((part) => part.type === 'picture').map((part) => part.picture);
}

/** Adds text to the end of a message that is being written. */
export function addText(message, text) {
  const last = message.parts.at(-1);
  if (last?.type === 'text') last.text += text;
  else message.parts.push({ type: 'text', text });
}

/** The title given by hand, or the beginning of the first question. */
export function titleOf(conversation) {
  if (conversation.title) return conversation.title;
  const first = path(conversation)[0];
  if (!first) return 'New conversation';
  const words = textOf(first).trim().replace(/\s+/g, ' ');
  if (!words) return picturesOf(first).length > 1 ? 'Pictures' : 'A picture';
  if (words.length <= TITLE_LENGTH) return words;
  const cut = words.lastIndexOf(' ', TITLE_LENGTH);
  return `${words.slice(0, cut > TITLE_LENGTH / 2 ? cut : TITLE_LENGTH)}\u2026`;
}

/** Whether every word of `query` occurs in the title or in something that was said, on whatever version. */
export function matches(conversation, query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return true;
  const said = Object.values(conversation.messages).map(textOf);
  const haystack = [titleOf(conversation), ...said].join('\n').toLowerCase();
  return words.every((word) => haystack.includes(word));
}
