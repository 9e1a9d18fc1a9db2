import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { parseBlocks } from '../../src/markdown/blocks.js';
import { parseInline, safeHref } from '../../src/markdown/inline.js';

/** Inline nodes in a short form: text as it is, others as `name(children)`. */
function short(nodes) {
  return nodes
    .map((node) => {
      if (node.type === 'text') return node.text;
      if (node.type === 'break') return '/';
      if (node.type === 'code') return `code(${node.text})`;
      if (node.type === 'link') return `link<${node.href}>(${short(node.children)})`;
      return `${node.type}(${short(node.children)})`;
    })
    .join('');
}

const inline = (text) => short(parseInline(text));

/** Blocks in a short form. */
function outline(blocks) {
  return blocks.map((block) => {
    switch (block.type) {
      case 'heading':
        return `h${block.level}:${block.text}`;
      case 'code':
        return `code[${block.language}]:${block.text}`;
      case 'quote':
        return { quote: outline(block.blocks) };
      case 'list':
        return {
          [`${block.ordered ? `ol${block.start}` : 'ul'}${block.tight ? '' : ' loose'}`]: block.items.map(({ checked, blocks }) => {
            const inner = outline(blocks);
            if (checked !== null) inner.unshift(checked);
            return inner;
          }),
        };
      case 'table':
        return { table: [block.align, block.head, ...block.rows] };
      case 'rule':
        return 'rule';
      default:
        return block.text;
    }
  });
}

const blocks = (text) => outline(parseBlocks(text));

test('emphasis', () => {
  assert.equal(inline('a *b* __c__ ***d*** ~~e~~ ~f~'), 'a emphasis(b) strong(c) emphasis(strong(d)) strike(e) ~f~');
  assert.equal(inline('*a **b** c*'), 'emphasis(a strong(b) c)');
  assert.equal(inline('**a *b* c**'), 'strong(a emphasis(b) c)');
  assert.equal(inline('**bold** and *italic **both***'), 'strong(bold) and emphasis(italic strong(both))');
  assert.equal(inline('2 * 3 * 4, a*b*c, snake_case_name'), '2 * 3 * 4, aemphasis(b)c, snake_case_name');
  assert.equal(inline('*a **b* c**'), 'emphasis(a emphasis(emphasis(b) c))');
  assert.equal(inline('**open'), '**open');
  assert.equal(inline('foo***'), 'foo***');
  assert.equal(inline('*foo**bar*'), 'emphasis(foo**bar)');
  assert.equal(inline('\\*a\\* \\q'), '*a* \\q');
});

test('code spans', () => {
  assert.equal(inline('`a*b*` ``c`d`` ` `` `'), 'code(a*b*) code(c`d) code(``)');
  assert.equal(inline('`open *a*'), '`open emphasis(a)');
  assert.equal(inline('*a `b* c`'), '*a code(b* c)');
});

test('links', () => {
  assert.equal(inline('[a *b*](https://x.org/p "title") c'), 'link<https://x.org/p>(a emphasis(b)) c');
  assert.equal(inline('[a](<https://x.org/a b>)'), 'link<https://x.org/a%20b>(a)');
  assert.equal(inline('[a](https://x.org/a_(b))'), 'link<https://x.org/a_(b)>(a)');
  assert.equal(inline('see https://x.org/a_(b), (https://y.org). nohttps://z.org'), 'see link<https://x.org/a_(b)>(https://x.org/a_(b)), (link<https://y.org/>(https://y.org)). nohttps://z.org');
  assert.equal(inline('[note: see https://x.org'), '[note: see link<https://x.org/>(https://x.org)');
  assert.equal(inline('[https://x.org](https://y.org)'), 'link<https://y.org/>(https://x.org)');
  assert.equal(inline('<https://x.org> <a@x.org> <b>'), 'link<https://x.org/>(https://x.org) link<mailto:a@x.org>(a@x.org) <b>');
  assert.equal(inline('[![alt](https://x.org/i.png)](https://y.org)'), 'link<https://y.org/>(alt)');
  assert.equal(inline('![alt](https://x.org/i.png) ![](https://x.org/i.png)'), 'link<https://x.org/i.png>(alt) link<https://x.org/i.png>(picture)');
  assert.equal(inline('[a] [b](c d) [d]('), '[a] [b](c d) [d](');
});

test('only addresses that lead outside become links', () => {
  const wrong = [
    'javascript:alert(1)',
    'JaVaScRiPt:alert(1)',
    ' javascript:alert(1)',
    'java\tscript:alert(1)',
    'java\nscript:alert(1)',
    '\u0001javascript:alert(1)',
    'vbscript:x',
    'data:text/html,x',
    'blob:x',
    'file:///etc/passwd',
    '/v1/models',
    '//evil.example',
    'page.html',
    '#id',
    '',
    'view-source:x.org',
  ];
  for (const address of wrong) {
    assert.equal(safeHref(address), null, address);
    assert.ok(!inline(`[a](${address}) [a](<${address}>) <${address}>`).includes('link'), address);
  }
  assert.equal(safeHref('HTTPS://X.org'), 'https://x.org/');
  assert.equal(safeHref('mailto:a@x.org'), 'mailto:a@x.org');
});

test('html and entities stay text', () => {
  assert.equal(inline('<b onclick=x>&lt;i&gt; &amp; &#65; &#x1F408; &nope; &#0; &constructor;'), '<b onclick=x><i> & A \u{1f408} &nope; \ufffd &constructor;');
  assert.equal(inline('[a](&#106;avascript:alert(1))'), 'a');
});

test('line breaks', () => {
  assert.equal(inline('a  \nb\\\nc\n  d'), 'a/b/c/d');
});

test('blocks', () => {
  assert.deepEqual(blocks('# A #\n\ntext\nmore\n\n***\nSub\n---\n####### seven\n#tag'), ['h1:A', 'text\nmore', 'rule', 'h2:Sub', '####### seven\n#tag']);
  assert.deepEqual(blocks('```js x\na\n  b\n```\n~~~\n```\n~~~\n    four'), ['code[js]:a\n  b', 'code[]:```', 'code[]:four']);
  assert.deepEqual(blocks('```\nnever closed\n'), ['code[]:never closed\n']);
  assert.deepEqual(blocks('> a\nb\n> > c\n\nd'), [{ quote: ['a\nb', { quote: ['c'] }] }, 'd']);
});

test('lists', () => {
  assert.deepEqual(blocks('- a\n- b\n  - c\n  - d\n\n    e\n- f'), [{ ul: [['a'], ['b', { 'ul loose': [['c'], ['d', 'e']] }], ['f']] }]);
  assert.deepEqual(blocks('3. a\n4. b\n\n5. c'), [{ 'ol3 loose': [['a'], ['b'], ['c']] }]);
  assert.deepEqual(blocks('- [x] a\n- [ ] b'), [{ ul: [[true, 'a'], [false, 'b']] }]);
  assert.deepEqual(blocks('1. a\n   ```\n   x\n\n   y\n   ```\n2. b'), [{ ol1: [['a', 'code[]:x\n\ny'], ['b']] }]);
  assert.deepEqual(blocks('text\n1985. was a year\n- item'), ['text\n1985. was a year', { ul: [['item']] }]);
  assert.deepEqual(blocks('- a\n* b\n1) c'), [{ ul: [['a']] }, { ul: [['b']] }, { ol1: [['c']] }]);
  assert.deepEqual(blocks('-\n- a\n\n\nend'), [{ ul: [[], ['a']] }, 'end']);
});

test('tables', () => {
  assert.deepEqual(blocks('| a | b |\n|:-|-:|\n| 1 | `x\\|y` | more |\n| 2 |\nend'), [{ table: [['left', 'right'], ['a', 'b'], ['1', '`x|y`'], ['2', '']] }, 'end']);
  assert.deepEqual(blocks('a | b\n--|:-:\n1|2'), [{ table: [['', 'center'], ['a', 'b'], ['1', '2']] }]);
  assert.deepEqual(blocks('a | b\n---'), ['h2:a | b']);
});

test('a growing text never throws, and finished blocks keep their source', () => {
  const text = readFileSync(new URL('../rich.md', import.meta.url), 'utf8') + readFileSync(new URL('../hostile.md', import.meta.url), 'utf8');
  for (let end = 0; end <= text.length; end += 1) {
    const found = parseBlocks(text.slice(0, end));
    for (const block of found) short(parseInline(block.raw));
  }
  const early = parseBlocks(text.slice(0, 700)).slice(0, -2);
  const late = parseBlocks(text);
  early.forEach((block, index) => assert.equal(block.raw, late[index].raw));
});

test('no text makes it deep or slow', () => {
  const long = 20_000;
  const texts = ['*', '_a ', '*a _b ', '[', '![', '[a](', '<', '`', '``a`', '~~', '> ', '- ', '1. ', '| ', '&#', 'http://', '(', '\\', '#', '[a](<', '**a** _', '![a](https://x.org) '];
  const depth = (nodes) => nodes.reduce((most, node) => Math.max(most, node.children ? 1 + depth(node.children) : 0), 0);
  const blockDepth = (list) => list.reduce((most, block) => Math.max(most, 1 + blockDepth(block.blocks ?? block.items?.flatMap((item) => item.blocks) ?? [])), 0);
  for (const text of texts) {
    for (const hostile of [text.repeat(long / text.length), `${text.repeat(long / text.length / 2)}x${[...text].reverse().join('').repeat(long / text.length / 2)}`]) {
      assert.ok(depth(parseInline(hostile)) <= 40, `inline ${text}`);
      assert.ok(blockDepth(parseBlocks(hostile)) <= 14, `block ${text}`);
    }
  }
});
