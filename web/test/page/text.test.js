// What an answer looks like: rich text, copies of it, and text that would like to be more than text.

import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { ask, lastAnswer, until, visit } from '../browser.js';
import { RICH, startMock } from '../mock.js';

const server = await startMock();
after(() => server.close());

test('answers and code are copied as they were written', async (t) => {
  const { page, context } = await visit(t, server.url);
  await context.grantPermissions(['clipboard-read', 'clipboard-write']);
  await ask(page, 'rich');
  await page.click('[aria-label="Copy answer"]');
  await page.locator('#status', { hasText: 'Copied' }).waitFor({ state: 'attached' });
  const clipboard = () => page.evaluate(() => navigator.clipboard.readText());
  assert.equal((await clipboard()).trim(), RICH.trim());
  await page.click('[aria-label="Copy code"]');
  await assert.doesNotReject(until(async () => (await clipboard()).startsWith('from openai import OpenAI\n\nclient = ')));
});

test('rich text has its elements', async (t) => {
  const { page } = await visit(t, server.url);
  await ask(page, 'rich');
  const prose = page.locator('.prose');
  const counts = { 'h3.heading-2': 1, 'ol > li': 3, 'ul li': 4, table: 1, 'th[scope=col]': 3, 'td.align-right': 3, blockquote: 1, 'pre code': 1, s: 1, hr: 1, 'input[type=checkbox]': 2, 'a[target=_blank][rel~=noopener]': 2 };
  for (const [selector, count] of Object.entries(counts)) assert.equal(await prose.locator(selector).count(), count, selector);
  assert.equal(await prose.locator('a').last().getAttribute('href'), 'https://example.org/a_(b)');
});

test('nothing in the text of a model becomes more than text', async (t) => {
  const { page } = await visit(t, server.url);
  await ask(page, 'hostile');
  assert.equal(await page.locator('.prose :is(img, script, iframe, svg:not(.icon), b, i, object, embed, style, form)').count(), 0);
  assert.match(await lastAnswer(page), /<img src=x onerror="window\.hurt = 'img'">/);
  const links = await page.locator('.prose a').evaluateAll((found) => found.map((link) => link.getAttribute('href')));
  assert.deepEqual(links, ['https://evil.example/pixel.png', 'https://a.example/%22onmouseover=%22window.hurt=\'hover\'']);
  const attributes = await page.locator('.prose *').evaluateAll((nodes) => nodes.flatMap((node) => node.getAttributeNames()).filter((name) => name.startsWith('on') || name === 'style'));
  assert.deepEqual(attributes, []);
  await page.locator('.prose a').last().hover();
  assert.equal(await page.evaluate(() => window.hurt), undefined);
  // A question is shown as it was typed.
  await ask(page, '<img src=x onerror="window.hurt = 1"> **not bold**');
  assert.equal(await page.locator('.bubble').last().innerText(), '<img src=x onerror="window.hurt = 1"> **not bold**');
  assert.equal(await page.locator('.bubble *').count(), 0);
});
