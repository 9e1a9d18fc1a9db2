// Server-sent events from a byte stream (https://html.spec.whatwg.org/multipage/server-sent-events.html), for answers to POST requests,
// which EventSource cannot make.

/**
 * Takes text in pieces of any size and hands out whole events.
 */
export class EventParser {
  #rest = '';
  #data = [];
  #name = '';
  #started = false;

  /**
   * @param {string} text the next piece of the stream
   * @returns {{event: string, data: string}[]} the events that it completes
   */
  push(text) {
    if (!this.#started && text) {
      this.#started = true;
      if (text.startsWith('\uFEFF')) text = text.slice(1);
    }
    this.#rest += text;
    const events = [];
    let start = 0;
    for (;;) {
      const end = this.#lineEnd(start);
      if (end === null) break;
      const event = this.#line(this.#rest.slice(start, end.at));
      if (event) events.push(event);
      start = end.next;
    }
    this.#rest = this.#rest.slice(start);
    return events;
  }

  /** The end of the line that begins at `start`; null while it may not be complete. Lines end with LF, CR LF or CR. */
  #lineEnd(start) {
    for (let at = start; at < this.#rest.length; at += 1) {
      const code = this.#rest.charCodeAt(at);
      if (code === 10) return { at, next: at + 1 };
      if (code === 13) {
        // A carriage return at the end of a piece may be half of CR LF.
        if (at + 1 === this.#rest.length) return null;
        return { at, next: at + (this.#rest.charCodeAt(at + 1) === 10 ? 2 : 1) };
      }
    }
    return null;
  }

  #line(line) {
    if (line === '') {
      const event = { event: this.#name || 'message', data: this.#data.join('\n') };
      const complete = this.#data.length > 0;
      this.#data = [];
      this.#name = '';
      return complete ? event : null;
    }
    const colon = line.indexOf(':');
    if (colon === 0) return null;
    const field = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? '' : line.slice(colon + 1);
    if (value.startsWith(' ')) value = value.slice(1);
    if (field === 'data') this.#data.push(value);
    else if (field === 'event') this.#name = value;
    return null;
  }
}

/**
 * The events of a byte stream, such as the body of a response. An event that the stream's end cuts off is dropped, as the standard says.
 * @param {ReadableStream<Uint8Array>} stream
 */
export async function* events(stream) {
  const parser = new EventParser();
  const decoder = new TextDecoder();
  const reader = stream.getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    // Also when the caller leaves early: the connection closes, and the server stops working for it.
    await reader.cancel().catch(() => {});
  }
}
