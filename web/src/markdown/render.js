// Shows Markdown: builds elements from the trees of `blocks.js` and `inline.js`. Text becomes text nodes and nothing else; no HTML is parsed.

import { element } from '../dom.js';
import { copyButton } from '../view/copy.js';
import { parseBlocks } from './blocks.js';
import { parseInline } from './inline.js';

/** Headings of an answer stand below the page's own, of which two levels are in use. */
const PAGE_LEVELS = 2;

/**
 * A place that shows a growing text. Blocks that did not change keep their elements, so that what is selected or scrolled stays so.
 */
export class MarkdownView {
  #shown = [];

  constructor() {
    this.root = element('div', { class: 'prose', dir: 'auto' });
  }

  /** @param {string} text all of the text, not the new piece */
  show(text) {
    const blocks = parseBlocks(text);
    let kept = 0;
    while (kept < blocks.length && kept < this.#shown.length && blocks[kept].raw === this.#shown[kept].raw) kept += 1;
    for (const { node } of this.#shown.splice(kept)) node.remove();
    let level = this.#shown.at(-1)?.level ?? 0;
    for (const block of blocks.slice(kept)) {
      // Whatever level a text begins with, its outline skips none: those who go from heading to heading would miss the ones between.
      if (block.type === 'heading') level = Math.min(block.level, level + 1);
      const node = renderBlock(block, level);
      this.#shown.push({ raw: block.raw, node, level });
      this.root.append(node);
    }
  }
}

function renderBlock(block, level = 1) {
  switch (block.type) {
    case 'heading':
      return element(`h${Math.min(level + PAGE_LEVELS, 6)}`, { class: `heading-${block.level}` }, ...inline(block.text));
    case 'code':
      return codeBlock(block);
    case 'rule':
      return element('hr');
    case 'quote':
      return element('blockquote', {}, ...block.blocks.map((inner) => renderBlock(inner)));
    case 'list':
      return list(block);
    case 'table':
      return table(block);
    default:
      return element('p', {}, ...inline(block.text));
  }
}

function codeBlock({ language, text }) {
  const name = language ? `Code, ${language}` : 'Code';
  return element(
    'figure',
    { class: 'code', dir: 'ltr' },
    element('figcaption', {}, element('span', {}, language || 'text'), copyButton(() => text, 'Copy code')),
    // Long lines scroll, also with the keyboard.
    element('pre', { tabindex: '0', role: 'region', 'aria-label': name }, element('code', {}, text)),
  );
}

function list({ ordered, start, tight, items }) {
  return element(
    ordered ? 'ol' : 'ul',
    { start: ordered && start !== 1 ? String(start) : null },
    ...items.map(({ checked, blocks }) => {
      const content = blocks.flatMap((block) => (tight && block.type === 'paragraph' ? inline(block.text) : [renderBlock(block)]));
      if (checked === null) return element('li', {}, ...content);
      const box = element('input', { type: 'checkbox', disabled: true, checked, 'aria-label': checked ? 'done' : 'to do' });
      return element('li', { class: 'task' }, box, ...content);
    }),
  );
}

function table({ align, head, rows }) {
  const cell = (name, text, column, more = {}) => element(name, { class: align[column] ? `align-${align[column]}` : null, ...more }, ...inline(text));
  return element(
    'div',
    { class: 'table', tabindex: '0', role: 'region', 'aria-label': 'Table' },
    element(
      'table',
      {},
      element('thead', {}, element('tr', {}, ...head.map((text, column) => cell('th', text, column, { scope: 'col' })))),
      element('tbody', {}, ...rows.map((row) => element('tr', {}, ...row.map((text, column) => cell('td', text, column))))),
    ),
  );
}

function inline(text) {
  return parseInline(text).map(renderInline);
}

const INLINE_ELEMENTS = { strong: 'strong', emphasis: 'em', strike: 's' };

function renderInline(node) {
  switch (node.type) {
    case 'text':
      return node.text;
    case 'code':
      return element('code', {}, node.text);
    case 'break':
      return element('br');
    case 'link':
      // The addressee learns nothing of this page, and gets no handle on it.
      return element('a', { href: node.href, target: '_blank', rel: 'noopener noreferrer nofollow' }, ...node.children.map(renderInline));
    default:
      return element(INLINE_ELEMENTS[node.type], {}, ...node.children.map(renderInline));
  }
}
