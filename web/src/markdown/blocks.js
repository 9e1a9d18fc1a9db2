// The block part of Markdown: CommonMark's blocks without raw HTML and reference definitions, with tables and task lists as on GitHub.
// Text in, a tree of plain objects out; inline text is left as it is for `inline.js`.

/**
 * @typedef {{type: 'paragraph', text: string} | {type: 'heading', level: number, text: string} |
 *   {type: 'code', language: string, text: string} | {type: 'rule'} | {type: 'quote', blocks: Block[]} |
 *   {type: 'list', ordered: boolean, start: number, tight: boolean, items: {checked: boolean | null, blocks: Block[]}[]} |
 *   {type: 'table', align: ('left' | 'center' | 'right' | '')[], head: string[], rows: string[][]}} Block
 */

const MAX_DEPTH = 12;
const FENCE = /^( {0,3})(`{3,}|~{3,})(.*)$/;
const RULE = /^ {0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]|$)/;
const QUOTE = /^ {0,3}>/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:( +)|$)/;
const UNDERLINE = /^ {0,3}(?:=+|-+)[ \t]*$/;

/**
 * @param {string} text
 * @returns {(Block & {raw: string})[]} the top-level blocks, each with the lines it came from
 */
export function parseBlocks(text) {
  return blocksOf(text.replace(/\r\n?/g, '\n').replaceAll('\t', '    ').split('\n'), 0);
}

function blocksOf(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (isBlank(lines[at])) {
      at += 1;
      continue;
    }
    const { block, next } = blockAt(lines, at, depth);
    block.raw = lines.slice(at, next).join('\n');
    blocks.push(block);
    at = next;
  }
  return blocks;
}

/** The block that begins at line `at`, and the line after it. */
function blockAt(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line)) {
    const fenced = fence(lines, at);
    if (fenced) return fenced;
  }
  if (HEADING.test(line)) return { block: heading(line), next: at + 1 };
  if (RULE.test(line)) return { block: { type: 'rule' }, next: at + 1 };
  if (depth < MAX_DEPTH) {
    if (QUOTE.test(line)) return quote(lines, at, depth);
    if (ITEM.test(line)) return list(lines, at, depth);
  }
  if (isTable(lines, at)) return table(lines, at);
  if (line.startsWith('    ')) return indentedCode(lines, at);
  return paragraph(lines, at, depth);
}

function isBlank(line) {
  return line.trim() === '';
}

/** Whether line `at` ends a paragraph that is under way. */
function interrupts(lines, at, depth) {
  const line = lines[at];
  if (isBlank(line) || HEADING.test(line) || RULE.test(line) || isTable(lines, at)) return true;
  if (FENCE.test(line) && fence(lines, at)) return true;
  if (depth >= MAX_DEPTH) return false;
  // Of numbers only 1 begins a list here, so that a line that happens to begin with a year does not.
  const item = ITEM.exec(line);
  return QUOTE.test(line) || (item !== null && item[3] !== undefined && (!/^\d/.test(item[2]) || Number.parseInt(item[2], 10) === 1));
}

function paragraph(lines, at, depth) {
  let next = at + 1;
  while (next < lines.length && !isBlank(lines[next])) {
    if (UNDERLINE.test(lines[next])) {
      const level = lines[next].trim().startsWith('=') ? 1 : 2;
      return { block: { type: 'heading', level, text: joinLines(lines.slice(at, next)) }, next: next + 1 };
    }
    if (interrupts(lines, next, depth)) break;
    next += 1;
  }
  return { block: { type: 'paragraph', text: joinLines(lines.slice(at, next)) }, next };
}

function joinLines(lines) {
  return lines
    .map((line) => line.trimStart())
    .join('\n')
    .trimEnd();
}

function heading(line) {
  const level = HEADING.exec(line)[1].length;
  const text = line.trim().slice(level).trim();
  let end = text.length;
  while (text[end - 1] === '#') end -= 1;
  const closed = end === 0 || text[end - 1] === ' ';
  return { type: 'heading', level, text: closed ? text.slice(0, end).trimEnd() : text };
}

function fence(lines, at) {
  const [, indent, marks, info] = FENCE.exec(lines[at]);
  if (marks[0] === '`' && info.includes('`')) return null;
  const body = [];
  let next = at + 1;
  for (; next < lines.length; next += 1) {
    const line = lines[next].trim();
    if (line.length >= marks.length && lines[next].search(/\S/) < 4 && line === marks[0].repeat(line.length)) break;
    body.push(withoutIndent(lines[next], indent.length));
  }
  const language = info.trim().split(/\s+/)[0];
  return { block: { type: 'code', language, text: body.join('\n') }, next: Math.min(next + 1, lines.length) };
}

function indentedCode(lines, at) {
  let next = at;
  while (next < lines.length && (lines[next].startsWith('    ') || isBlank(lines[next]))) next += 1;
  while (isBlank(lines[next - 1])) next -= 1;
  const body = lines.slice(at, next).map((line) => withoutIndent(line, 4));
  return { block: { type: 'code', language: '', text: body.join('\n') }, next };
}

function withoutIndent(line, columns) {
  let cut = 0;
  while (cut < columns && line[cut] === ' ') cut += 1;
  return line.slice(cut);
}

function quote(lines, at, depth) {
  const inner = [];
  let next = at;
  for (; next < lines.length; next += 1) {
    if (QUOTE.test(lines[next])) inner.push(lines[next].replace(/^ {0,3}> ?/, ''));
    // A paragraph may go on without its mark.
    else if (isBlank(lines[next]) || isBlank(inner.at(-1)) || interrupts(lines, next, depth)) break;
    else inner.push(lines[next]);
  }
  return { block: { type: 'quote', blocks: blocksOf(inner, depth + 1) }, next };
}

function list(lines, at, depth) {
  const first = ITEM.exec(lines[at])[2];
  const ordered = /^\d/.test(first);
  const mark = first.at(-1);
  const items = [];
  let loose = false;
  let next = at;
  while (next < lines.length) {
    const match = ITEM.exec(lines[next]);
    if (!match || match[2].at(-1) !== mark || /^\d/.test(match[2]) !== ordered || RULE.test(lines[next])) break;
    const item = listItem(lines, next, match, depth);
    items.push(item);
    const gap = item.next;
    next = gap;
    while (next < lines.length && isBlank(lines[next])) next += 1;
    const follows = next < lines.length && ITEM.exec(lines[next]);
    if (!follows || follows[2].at(-1) !== mark) {
      next = gap;
      break;
    }
    if (next > gap) loose = true;
  }
  loose ||= items.some((item) => item.loose);
  const block = {
    type: 'list',
    ordered,
    start: ordered ? Number.parseInt(first, 10) : 1,
    tight: !loose,
    items: items.map(({ checked, blocks }) => ({ checked, blocks })),
  };
  return { block, next };
}

function listItem(lines, at, [whole, indent, marker, spaces], depth) {
  // Five spaces or more begin an indented code block inside the item.
  const padding = spaces === undefined || spaces.length > 4 ? 1 : spaces.length;
  const column = indent.length + marker.length + padding;
  const inner = [lines[at].slice(spaces === undefined ? whole.length : column)];
  let next = at + 1;
  for (; next < lines.length; next += 1) {
    const line = lines[next];
    if (isBlank(line)) {
      // Blank lines belong to the item only when more of it follows.
      let after = next + 1;
      while (after < lines.length && isBlank(lines[after])) after += 1;
      if (after === lines.length || lines[after].search(/\S/) < column) break;
      while (next < after - 1) inner.push(lines[next++]);
      inner.push('');
    } else if (line.search(/\S/) >= column) inner.push(line.slice(column));
    else if (ITEM.test(line) || isBlank(inner.at(-1)) || interrupts(lines, next, depth)) break;
    else inner.push(line.trimStart());
  }
  let checked = null;
  const task = /^\[([ xX])\] /.exec(inner[0]);
  if (task) {
    checked = task[1] !== ' ';
    inner[0] = inner[0].slice(task[0].length);
  }
  const blocks = blocksOf(inner, depth + 1);
  return { checked, blocks, next, loose: separated(blocks, inner) };
}

/** Whether a blank line parts two blocks of an item; blank lines inside one block do not count. */
function separated(blocks, lines) {
  if (blocks.length < 2) return false;
  let blanks = 0;
  for (const line of lines) if (isBlank(line)) blanks += 1;
  for (const block of blocks) for (const line of block.raw.split('\n')) if (isBlank(line)) blanks -= 1;
  return blanks > 0;
}

function isTable(lines, at) {
  const head = lines[at];
  const rule = lines[at + 1];
  if (rule === undefined || !head.includes('|') || !rule.includes('-') || !/^[ |:-]+$/.test(rule)) return false;
  const columns = cells(rule);
  return columns.every((cell) => /^:?-+:?$/.test(cell)) && columns.length === cells(head).length && (columns.length > 1 || rule.includes('|'));
}

function table(lines, at) {
  const head = cells(lines[at]);
  const align = cells(lines[at + 1]).map((cell) => {
    const left = cell.startsWith(':');
    const right = cell.endsWith(':');
    return left && right ? 'center' : right ? 'right' : left ? 'left' : '';
  });
  const rows = [];
  let next = at + 2;
  while (next < lines.length && lines[next].includes('|')) {
    const row = cells(lines[next]).slice(0, head.length);
    while (row.length < head.length) row.push('');
    rows.push(row);
    next += 1;
  }
  return { block: { type: 'table', align, head, rows }, next };
}

/** The cells of a table's line; `\|` is a bar inside a cell. */
function cells(line) {
  const parts = [''];
  const text = line.trim();
  for (let at = 0; at < text.length; at += 1) {
    if (text[at] === '\\' && text[at + 1] === '|') {
      parts[parts.length - 1] += '|';
      at += 1;
    } else if (text[at] === '|') parts.push('');
    else parts[parts.length - 1] += text[at];
  }
  if (text.startsWith('|')) parts.shift();
  if (text.endsWith('|') && !text.endsWith('\\|') && parts.length > 1) parts.pop();
  return parts.map((part) => part.trim());
}
