// When things go wrong: in plain words, with what helps.

import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { ask, becomes, lastAnswer, visit } from '../browser.js';
import { startMock } from '../mock.js';

const server = await startMock();
after(() => server.close());

test('trouble is told in plain words, with what helps', async (t) => {
  const { page } = await visit(t, server.url);
  const cases = [
    ['busy', 'The server is busy. It asks to be tried again in 3 seconds.', 'The queue is full (32 requests).'],
    ['too long', 'This is longer than the model can read. Ask something shorter, or start a new conversation.', '3000 tokens'],
    ['broken', 'Something went wrong on the server.', 'internal error'],
  ];
  for (const [question, words, detail] of cases) {
    await page.click('#new');
    await ask(page, question);
    assert.equal(await page.locator('.failure-words').innerText(), words);
    assert.ok((await page.locator('.failure-detail').innerText()).includes(detail));
    await page.locator('#alert', { hasText: words }).waitFor({ state: 'attached' });
  }
  await page.click('.conversations a >> text=too long');
  await page.click('button:has-text("Edit the question")');
  await page.fill('.editing textarea', 'short');
  await page.press('.editing textarea', 'Enter');
  await page.locator('.prose', { hasText: 'You said: short' }).waitFor();
  await page.click('#new');
  await ask(page, 'cut off');
  assert.equal(await lastAnswer(page), 'It begins well and then');
  assert.equal(await page.locator('.failure-words').innerText(), 'The connection ended before the answer was complete.');

  await page.click('#new');
  await ask(page, 'fails once');
  assert.match(await page.locator('.failure-words').innerText(), /^The server is not ready/);
  await page.click('button:has-text("Try again")');
  await page.locator('.prose', { hasText: 'You said: fails once' }).waitFor();
  assert.equal(await page.locator('.failure').count(), 0);
  assert.equal(await page.locator('.versions').count(), 0);

  await ask(page, 'limit');
  assert.match(await page.locator('.note').last().innerText(), /cut off at 3 tokens/);
});

test('a server that goes away and comes back', async (t) => {
  let own = await startMock();
  t.after(() => own.close());
  const port = Number(new URL(own.url).port);
  const { page } = await visit(t, own.url);
  await ask(page, 'Hello');
  await own.close();
  await ask(page, 'Still there?');
  assert.equal(await page.locator('.failure-words').innerText(), 'The server cannot be reached. It may have been stopped, or the connection is down.');
  own = await startMock({ port });
  await page.click('button:has-text("Try again")');
  await page.locator('.prose', { hasText: 'You said: Still there?' }).waitFor();
});

test('a page that starts before its server says so and goes on by itself', async (t) => {
  const own = await startMock({ unready: 2 });
  t.after(() => own.close());
  const { page } = await visit(t, own.url);
  await page.locator('.trouble', { hasText: 'The model is still being loaded.' }).waitFor();
  await page.locator('.trouble').waitFor({ state: 'hidden' });
  await page.locator('.model', { hasText: 'smol' }).waitFor();
});

test('a server with a key asks for it', async (t) => {
  const own = await startMock({ key: 'sesame' });
  t.after(() => own.close());
  const { page } = await visit(t, own.url);
  await page.locator('.trouble', { hasText: 'This server asks for an API key.' }).waitFor();
  await ask(page, 'Hello');
  await page.locator('.failure .button.primary').click();
  await becomes(() => page.evaluate(() => document.activeElement.id), 'api-key');
  await page.keyboard.type('wrong');
  await page.keyboard.press('Enter');
  await page.locator('.toast', { hasText: 'does not accept' }).waitFor();
  await page.fill('#api-key', 'sesame');
  await page.press('#api-key', 'Enter');
  await page.locator('.toast', { hasText: 'accepts the key' }).waitFor();
  await page.keyboard.press('Escape');
  await page.click('button:has-text("Try again")');
  await page.locator('.prose', { hasText: 'You said: Hello' }).waitFor();
  await page.reload();
  await page.locator('.model', { hasText: 'smol' }).waitFor();
  assert.equal(await page.evaluate(() => localStorage.getItem('mini-gemini-key')), null);
});
