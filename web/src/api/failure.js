// What can go wrong between page and server, in words for the person who reads them.

/** An error with a plain sentence (`message`), what the server said (`detail`, may be empty) and what helps (`remedy`). */
export class Failure extends Error {
  /**
   * @param {string} kind one of the kinds that `describe` makes
   * @param {string} message a plain sentence
   * @param {{detail?: string, remedy?: 'retry' | 'key' | 'settings' | 'edit' | 'none', retryAfter?: number}} [more]
   */
  constructor(kind, message, { detail = '', remedy = 'retry', retryAfter = 0 } = {}) {
    super(message);
    this.name = 'Failure';
    this.kind = kind;
    this.detail = detail;
    this.remedy = remedy;
    this.retryAfter = retryAfter;
  }

  /** What is kept with a message. */
  toRecord() {
    return { kind: this.kind, message: this.message, detail: this.detail, remedy: this.remedy, retryAfter: this.retryAfter };
  }
}

/**
 * The failure that an HTTP error answer stands for.
 * @param {number} status
 * @param {string} body the answer's text, JSON in OpenAI's shape when it comes from the server itself
 * @param {string | null} retryAfter the header of that name
 * @param {boolean} keyGiven whether the request carried an API key
 */
export function describe(status, body, retryAfter, keyGiven) {
  const { message: detail, code } = serverError(body);
  if (code === 'model_loading') return new Failure('loading', 'The model is still being loaded. This takes a moment.');
  const seconds = Math.min(Number.parseInt(retryAfter ?? '', 10) || 0, 3600);
  switch (status) {
    case 401:
      return keyGiven
        ? new Failure('key', 'The server does not accept this API key.', { detail, remedy: 'key' })
        : new Failure('key', 'This server asks for an API key.', { detail, remedy: 'key' });
    case 403:
      return new Failure('refused', 'The server refused this request.', { detail, remedy: 'none' });
    case 404:
      return new Failure('missing', 'The server does not know this model or address.', { detail, remedy: 'settings' });
    case 408:
    case 504:
      return new Failure('timeout', 'The server took too long.', { detail });
    case 413:
      return new Failure('too_large', 'This is more than the server takes at once. Fewer or smaller pictures will help.', { detail, remedy: 'edit' });
    case 429:
      return new Failure('busy', waiting('The server is busy', seconds), { detail, retryAfter: seconds });
    case 502:
    case 503:
      return new Failure('unavailable', waiting('The server is not ready', seconds), { detail, retryAfter: seconds });
    default:
  }
  if (status >= 400 && status < 500) {
    if (/context|too[ _]?long|max(imum)?[ _]tokens?/i.test(`${code} ${detail}`)) {
      return new Failure('too_long', 'This is longer than the model can read. Ask something shorter, or start a new conversation.', { detail, remedy: 'edit' });
    }
    if (/image|picture/i.test(`${code} ${detail}`)) {
      return new Failure('picture', 'The server cannot use one of the pictures.', { detail, remedy: 'edit' });
    }
    return new Failure('request', 'The server did not accept the request.', { detail, remedy: 'settings' });
  }
  return new Failure('server', 'Something went wrong on the server.', { detail });
}

/** The failure of a request that got no answer at all. */
export function unreachable() {
  return new Failure('network', 'The server cannot be reached. It may have been stopped, or the connection is down.');
}

/** The failure of an answer that ended before its end. */
export function brokenOff() {
  return new Failure('broken', 'The connection ended before the answer was complete.');
}

/** The failure that the server reports inside a stream. */
export function midStream(error) {
  const detail = typeof error?.message === 'string' ? error.message : '';
  return new Failure('server', 'The server could not finish this answer.', { detail });
}

/** `error.message` and `error.code` of a body in OpenAI's shape; a short plain text is taken as it is, a page of HTML is not. */
export function serverError(body) {
  try {
    const error = JSON.parse(body)?.error;
    if (typeof error === 'string') return { message: error, code: '' };
    return { message: String(error?.message ?? ''), code: String(error?.code ?? '') };
  } catch {
    const text = body.trim();
    return { message: text.length <= 300 && !text.startsWith('<') ? text : '', code: '' };
  }
}

function waiting(start, seconds) {
  if (seconds > 1) return `${start}. It asks to be tried again in ${seconds} seconds.`;
  return `${start}. Please try again in a moment.`;
}
