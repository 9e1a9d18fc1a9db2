// From what is shown to what is sent: the body of a chat request.

import { picturesOf, textOf } from '../store/thread.js';

/**
 * The messages of a request, in OpenAI's shape.
 * @param {import('../store/thread.js').Message[]} path the conversation up to the question
 * @param {string} system text that goes before everything, empty for none
 * @param {(id: string) => Promise<string | null>} dataUrl a picture by its id, null when it is not there any more
 */
export async function toMessages(path, system, dataUrl) {
  const messages = [];
  if (system.trim()) messages.push({ role: 'system', content: system.trim() });
  for (const message of path) {
    const content = message.role === 'user' ? await userContent(message, dataUrl) : textOf(message);
    // An answer that failed before its first word says nothing.
    if (content.length === 0) continue;
    const last = messages.at(-1);
    // Then two questions meet; templates want turns to alternate.
    if (last?.role === message.role && message.role === 'user') last.content = [...asParts(last.content), ...asParts(content)];
    else messages.push({ role: message.role, content });
  }
  return messages;
}

/** A string where text is all there is, which every server understands; parts otherwise, pictures first. */
async function userContent(message, dataUrl) {
  const text = textOf(message);
  const pictures = [];
  for (const id of picturesOf(message)) {
    const url = await dataUrl(id);
    if (url) pictures.push({ type: 'image_url', image_url: { url } });
  }
  if (!pictures.length) return text;
  return text ? [...pictures, { type: 'text', text }] : pictures;
}

function asParts(content) {
  return typeof content === 'string' ? [{ type: 'text', text: content }] : content;
}
