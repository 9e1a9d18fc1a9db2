// What the person prefers, kept in this browser: theme, sampling parameters, API key.

const NAME = 'mini-gemini';

/**
 * The parameters of an answer. Empty means: not sent, the server's default holds.
 * @type {{name: string, label: string, hint: string, minimum: number, maximum: number, whole: boolean}[]}
 */
export const PARAMETERS = [
  { name: 'temperature', label: 'Temperature', hint: '0 always takes the likeliest word; higher varies more.', minimum: 0, maximum: 2, whole: false },
  { name: 'top_p', label: 'Top-p', hint: 'Considers only the likeliest words that share this probability.', minimum: 0.01, maximum: 1, whole: false },
  { name: 'max_tokens', label: 'Longest answer, in tokens', hint: 'A token is about three quarters of a word.', minimum: 1, maximum: 1_000_000, whole: true },
  { name: 'seed', label: 'Seed', hint: 'The same seed repeats the same sampled answer.', minimum: 0, maximum: Number.MAX_SAFE_INTEGER, whole: true },
];

const DEFAULTS = { theme: 'system', model: '', system: '', temperature: null, top_p: null, max_tokens: null, seed: null, rememberKey: false };

/** Reads and keeps preferences. Where storage is forbidden they last as long as the page. */
export class Preferences extends EventTarget {
  #values = { ...DEFAULTS, ...read(localStore(), NAME) };
  #key = read(sessionStore(), `${NAME}-key`)?.key ?? read(localStore(), `${NAME}-key`)?.key ?? '';

  /** @param {keyof typeof DEFAULTS} name */
  get(name) {
    return this.#values[name];
  }

  set(name, value) {
    this.#values[name] = value;
    write(localStore(), NAME, this.#values);
    this.dispatchEvent(new CustomEvent('change', { detail: name }));
  }

  /** The API key; kept until the tab closes, or for good when the person said so. */
  get key() {
    return this.#key;
  }

  setKey(key, remember) {
    this.#key = key.trim();
    const record = this.#key ? { key: this.#key } : null;
    write(sessionStore(), `${NAME}-key`, record);
    write(localStore(), `${NAME}-key`, remember ? record : null);
    this.set('rememberKey', remember);
  }

  /** The parameters that are set, as a request wants them. */
  parameters() {
    const set = {};
    for (const { name } of PARAMETERS) if (this.#values[name] !== null) set[name] = this.#values[name];
    return set;
  }

  resetParameters() {
    for (const { name } of PARAMETERS) this.#values[name] = null;
    this.set('system', '');
  }
}

/**
 * The number that was typed: null for nothing, undefined for nonsense or out of range.
 * @param {typeof PARAMETERS[number]} parameter
 * @param {string} typed
 */
export function parseParameter({ minimum, maximum, whole }, typed) {
  if (typed.trim() === '') return null;
  const number = Number(typed.trim().replace(',', '.'));
  if (!Number.isFinite(number) || number < minimum || number > maximum || (whole && !Number.isInteger(number))) return undefined;
  return number;
}

/**
 * Keeps a question that is being written over a reload of the tab.
 * @param {{id: string, text: string}} draft with the conversation that it belongs to
 */
export function keepDraft(draft) {
  write(sessionStore(), `${NAME}-draft`, draft.text ? draft : null);
}

/** The kept draft, once. */
export function takeDraft() {
  const draft = read(sessionStore(), `${NAME}-draft`);
  write(sessionStore(), `${NAME}-draft`, null);
  return draft;
}

// Merely naming the storages throws where cookies are forbidden.
function localStore() {
  try {
    return localStorage;
  } catch {
    return null;
  }
}

function sessionStore() {
  try {
    return sessionStorage;
  } catch {
    return null;
  }
}

function read(storage, name) {
  try {
    return JSON.parse(storage.getItem(name)) ?? null;
  } catch {
    return null;
  }
}

function write(storage, name, value) {
  try {
    if (value === null) storage.removeItem(name);
    else storage.setItem(name, JSON.stringify(value));
  } catch {
    // Full or forbidden: the value holds for this page.
  }
}
