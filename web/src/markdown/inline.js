// The inline part of Markdown (CommonMark without reference links and raw HTML; strikethrough and bare links as on GitHub).
// Text in, a tree of plain objects out. Nothing here knows a document, and nothing in the text can become more than these nodes.

/**
 * @typedef {{type: 'text', text: string} | {type: 'code', text: string} | {type: 'break'} |
 *   {type: 'strong' | 'emphasis' | 'strike', children: Inline[]} | {type: 'link', href: string, children: Inline[]}} Inline
 */

const PUNCTUATION = /[!-/:-@[-`{-~\p{P}\p{S}]/u;
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const ENTITIES = { amp: '&', lt: '<', gt: '>', quot: '"', apos: "'", nbsp: '\u00a0', hellip: '\u2026', mdash: '\u2014', ndash: '\u2013', times: '\u00d7' };
/** How far an address may reach; also keeps the search for its end short. */
const MAX_ADDRESS = 4096;
/** How deep emphasis may nest; what is deeper loses its emphasis, not its text. */
const MAX_DEPTH = 16;

/**
 * The address as it may stand in a link, or null: only http, https and mailto lead anywhere; relative addresses would lead into this page.
 * @param {string} address
 */
export function safeHref(address) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return null;
  }
  return ['http:', 'https:', 'mailto:'].includes(url.protocol) ? url.href : null;
}

/**
 * @param {string} text
 * @returns {Inline[]}
 */
export function parseInline(text) {
  return new Scanner(text).run();
}

class Scanner {
  constructor(text) {
    this.text = text;
    this.at = 0;
    /** Finished nodes, and delimiter runs (`*`, `_`, `~`) and brackets that may still become something. */
    this.nodes = [];
    this.brackets = [];
    /** Lengths of backtick runs for which no closing run follows. */
    this.unclosed = new Set();
  }

  run() {
    while (this.at < this.text.length) this.step();
    return settle(this.nodes, 0);
  }

  step() {
    const { text, at } = this;
    switch (text[at]) {
      case '\\':
        return this.escape();
      case '`':
        return this.code();
      case '*':
      case '_':
      case '~':
        return this.delimiters();
      case '!':
        if (text[at + 1] === '[') return this.open(2);
        return this.literal(1);
      case '[':
        return this.open(1);
      case ']':
        return this.close();
      case '<':
        return this.angle();
      case '&':
        return this.entity();
      case '\n':
        return this.newline();
      case 'h':
        if (text.startsWith('http://', at) || text.startsWith('https://', at)) return this.bareLink();
        return this.literal(1);
      default: {
        let end = at + 1;
        while (end < text.length && !'\\`*_~![]<&\nh'.includes(text[end])) end += 1;
        return this.literal(end - at);
      }
    }
  }

  literal(length) {
    this.push(this.text.slice(this.at, this.at + length));
    this.at += length;
  }

  push(text) {
    const last = this.nodes.at(-1);
    if (last?.type === 'text') last.text += text;
    else this.nodes.push({ type: 'text', text });
  }

  escape() {
    const next = this.text[this.at + 1];
    if (next === '\n') {
      this.nodes.push({ type: 'break' });
      this.at += 2;
    } else if (next !== undefined && ESCAPABLE.test(next)) {
      this.push(next);
      this.at += 2;
    } else this.literal(1);
  }

  newline() {
    // A single line break stays one: models write lists and verses that way.
    const last = this.nodes.at(-1);
    if (last?.type === 'text') last.text = last.text.replace(/ +$/, '');
    this.nodes.push({ type: 'break' });
    this.at += 1;
    while (this.text[this.at] === ' ') this.at += 1;
  }

  code() {
    const run = runLength(this.text, this.at);
    if (!this.unclosed.has(run)) {
      for (let from = this.at + run; ; ) {
        const start = this.text.indexOf('`', from);
        if (start < 0) break;
        const length = runLength(this.text, start);
        if (length === run) {
          let inner = this.text.slice(this.at + run, start).replaceAll('\n', ' ');
          if (inner.startsWith(' ') && inner.endsWith(' ') && inner.trim()) inner = inner.slice(1, -1);
          this.nodes.push({ type: 'code', text: inner });
          this.at = start + length;
          return;
        }
        from = start + length;
      }
      this.unclosed.add(run);
    }
    this.literal(run);
  }

  delimiters() {
    const { text, at } = this;
    const character = text[at];
    const length = runLength(text, at);
    const before = at === 0 ? ' ' : text[at - 1];
    const after = text[at + length] ?? ' ';
    const left = !isSpace(after) && (!PUNCTUATION.test(after) || isSpace(before) || PUNCTUATION.test(before));
    const right = !isSpace(before) && (!PUNCTUATION.test(before) || isSpace(after) || PUNCTUATION.test(after));
    const inWord = character === '_';
    const usable = character !== '~' || length === 2;
    this.nodes.push({
      type: 'run',
      character,
      length,
      original: length,
      opens: usable && left && (!inWord || !right || PUNCTUATION.test(before)),
      closes: usable && right && (!inWord || !left || PUNCTUATION.test(after)),
    });
    this.at += length;
  }

  open(length) {
    this.brackets.push({ node: this.nodes.length, image: length === 2, active: true });
    this.nodes.push({ type: 'text', text: this.text.slice(this.at, this.at + length) });
    // The opening bracket stands alone, so that it can be taken away.
    this.nodes.push({ type: 'text', text: '' });
    this.at += length;
  }

  close() {
    const bracket = this.brackets.pop();
    const target = bracket?.active ? destination(this.text, this.at + 1) : null;
    if (!target) return this.literal(1);
    const children = settle(this.nodes, bracket.node + 1);
    this.nodes.length = bracket.node;
    const href = safeHref(target.address);
    // A picture that the text points to is not loaded: it would tell its owner who reads this. It is offered as a link.
    if (bracket.image && !children.length) children.push({ type: 'text', text: 'picture' });
    if (href) this.nodes.push({ type: 'link', href, children: children.flatMap(withoutLinks) });
    else for (const child of children) this.nodes.push(child);
    if (href && !bracket.image) for (const outer of this.brackets) if (!outer.image) outer.active = false;
    this.at = target.end;
  }

  angle() {
    const window = this.text.slice(this.at + 1, this.at + MAX_ADDRESS);
    const inner = window.slice(0, Math.max(window.indexOf('>'), 0));
    const mail = /^[\w.+-]+@[\w-]+(\.[\w-]+)+$/.test(inner);
    const href = /^[a-z][a-z0-9+.-]+:[^\s<]*$/i.test(inner) ? safeHref(inner) : mail ? safeHref(`mailto:${inner}`) : null;
    if (!href) return this.literal(1);
    this.nodes.push({ type: 'link', href, children: [{ type: 'text', text: inner }] });
    this.at += inner.length + 2;
  }

  bareLink() {
    const before = this.text[this.at - 1];
    if (before !== undefined && /[\p{L}\p{N}]/u.test(before)) return this.literal(1);
    let end = this.at;
    while (end < this.text.length && !/[\s<>`*"]/.test(this.text[end])) end += 1;
    // Inside the text of a link it stays text; the closing bracket is not part of it.
    const insideLink = this.brackets.at(-1)?.active && /^[^\n]{0,300}?\]\(/.test(this.text.slice(this.at, this.at + 320));
    let address = this.text.slice(this.at, end);
    if (insideLink) address = address.slice(0, address.indexOf(']') >>> 0);
    address = trimLink(address);
    const href = insideLink ? null : safeHref(address);
    if (href) {
      this.nodes.push({ type: 'link', href, children: [{ type: 'text', text: address }] });
      this.at += address.length;
    } else this.literal(Math.max(address.length, 1));
  }

  entity() {
    const match = /^&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|([A-Za-z]{2,8}));/.exec(this.text.slice(this.at, this.at + 12));
    if (!match) return this.literal(1);
    const [whole, decimal, hexadecimal, name] = match;
    const code = decimal ? Number.parseInt(decimal, 10) : hexadecimal ? Number.parseInt(hexadecimal, 16) : null;
    const isScalar = code !== null && code > 0 && code <= 0x10ffff && (code < 0xd800 || code > 0xdfff);
    const character = code === null ? (Object.hasOwn(ENTITIES, name) ? ENTITIES[name] : null) : isScalar ? String.fromCodePoint(code) : '\ufffd';
    this.push(character ?? whole);
    this.at += whole.length;
  }
}

/** How often the character at `at` is repeated from there. */
function runLength(text, at) {
  let end = at + 1;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

function isSpace(character) {
  return /\s/.test(character);
}

/** Trailing punctuation belongs to the sentence, and so does a closing parenthesis that the address did not open. */
function trimLink(address) {
  let end = address.length;
  let surplus = 0;
  for (const character of address) surplus += character === ')' ? 1 : character === '(' ? -1 : 0;
  for (; end > 0; end -= 1) {
    const last = address[end - 1];
    if (last === ')' && surplus > 0) surplus -= 1;
    else if (!'.,:;!?\'")]}'.includes(last) || last === ')') break;
  }
  return address.slice(0, end);
}

/** `(address "title")` at `at`; null when there is none. The title is read over. */
function destination(text, at) {
  if (text[at] !== '(') return null;
  let from = at + 1;
  while (/[ \n]/.test(text[from] ?? '')) from += 1;
  let address;
  if (text[from] === '<') {
    const window = text.slice(from + 1, from + MAX_ADDRESS);
    const end = window.indexOf('>');
    if (end < 0) return null;
    address = window.slice(0, end);
    if (/[\n<]/.test(address)) return null;
    from += end + 2;
  } else {
    const start = from;
    let depth = 0;
    for (; from < text.length && from - start <= MAX_ADDRESS; from += 1) {
      const character = text[from];
      if (/\s/.test(character)) break;
      if (character === '\\' && ESCAPABLE.test(text[from + 1] ?? '')) from += 1;
      else if (character === '(') depth += 1;
      else if (character === ')' && depth-- === 0) break;
    }
    address = text.slice(start, from).replace(/\\([!-/:-@[-`{-~])/g, '$1');
  }
  const rest = /^\s*(?:"[^"]{0,500}"|'[^']{0,500}'|\([^()]{0,500}\))?\s*\)/.exec(text.slice(from, from + 600));
  return rest ? { address, end: from + rest[0].length } : null;
}

const WRAPPERS = { '*': ['emphasis', 'strong'], _: ['emphasis', 'strong'], '~': ['strike', 'strike'] };

/** Matches delimiter runs from `start` on (CommonMark's "process emphasis") and returns the nodes as a tree. */
function settle(nodes, start) {
  const list = nodes.slice(start);
  const openers = [];
  // Below these depths of `openers` a closer of that kind is known to find nothing, which keeps this linear.
  const floors = new Map();
  const output = [];
  for (const node of list) {
    if (node.type !== 'run') {
      output.push(node);
      continue;
    }
    if (node.closes) matchCloser(node, openers, floors, output);
    if (node.length > 0) {
      if (node.opens) openers.push({ run: node, index: output.length });
      output.push(node);
    }
  }
  return output.flatMap(plain).reduce(joinText, []);
}

function matchCloser(closer, openers, floors, output) {
  const kind = `${closer.character}${closer.opens}${closer.original % 3}`;
  while (closer.length > 0) {
    const floor = floors.get(kind) ?? 0;
    let found = openers.length - 1;
    while (found >= floor && !fits(openers[found].run, closer)) found -= 1;
    if (found < floor) {
      floors.set(kind, openers.length);
      return;
    }
    const { run, index } = openers[found];
    const width = run.length >= 2 && closer.length >= 2 ? 2 : 1;
    const children = output.splice(index + 1).flatMap(plain).reduce(joinText, []);
    run.length -= width;
    closer.length -= width;
    if (run.length === 0) {
      output.pop();
      openers.length = found;
    } else openers.length = found + 1;
    for (const [key, depth] of floors) if (depth > openers.length) floors.set(key, openers.length);
    const depth = 1 + children.reduce((deepest, child) => Math.max(deepest, child.depth ?? 0), 0);
    if (depth <= MAX_DEPTH) output.push({ type: WRAPPERS[run.character][width - 1], children, depth });
    else for (const child of children) output.push(child);
  }
}

function fits(opener, closer) {
  if (opener.character !== closer.character) return false;
  if (opener.character === '~') return opener.length === closer.length;
  const sum = opener.original + closer.original;
  const ambiguous = opener.closes || closer.opens;
  return !ambiguous || sum % 3 !== 0 || (opener.original % 3 === 0 && closer.original % 3 === 0);
}

/** A link inside a link (a picture that leads somewhere) is its text alone. */
function withoutLinks(node) {
  if (node.type === 'link') return node.children;
  return [node.children ? { ...node, children: node.children.flatMap(withoutLinks) } : node];
}

/** A run that matched nothing is text. */
function plain(node) {
  if (node.type !== 'run') return [node];
  return node.length > 0 ? [{ type: 'text', text: node.character.repeat(node.length) }] : [];
}

function joinText(joined, node) {
  const last = joined.at(-1);
  if (node.type !== 'text') joined.push(node);
  else if (last?.type === 'text') joined[joined.length - 1] = { type: 'text', text: last.text + node.text };
  else if (node.text) joined.push(node);
  return joined;
}
