// Keeping conversations: finding, renaming, deleting, other tabs, files.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, test } from 'node:test';
import { CAT, ask, becomes, files, lastAnswer, visit } from '../browser.js';
import { startMock } from '../mock.js';

const server = await startMock();
after(() => server.close());

test('conversations are found, renamed, deleted, and brought back', async (t) => {
  const { page } = await visit(t, server.url);
  for (const question of ['About apples', 'About pears']) {
    await page.click('#new');
    await ask(page, question);
  }
  const titles = () => page.locator('.conversations a').allInnerTexts();
  await becomes(titles, ['About pears', 'About apples']);
  await page.fill('#search', 'apples said');
  await becomes(titles, ['About apples']);
  await page.fill('#search', 'plums');
  await becomes(titles, []);
  await page.fill('#search', '');

  await page.click('[aria-label="Rename \u201cAbout pears\u201d"]');
  await page.keyboard.type('Fruit');
  await page.keyboard.press('Enter');
  await becomes(titles, ['Fruit', 'About apples']);
  await becomes(() => page.locator('h1').innerText(), 'Fruit');

  await page.click('[aria-label="Delete \u201cFruit\u201d"]');
  await becomes(titles, ['About apples']);
  await becomes(() => page.evaluate(() => document.activeElement.innerText), 'Undo');
  await page.keyboard.press('Enter');
  await becomes(titles, ['Fruit', 'About apples']);
  await becomes(() => page.locator('h1').innerText(), 'Fruit');

  await page.click('[aria-label="Delete \u201cFruit\u201d"]');
  await page.keyboard.press('Tab');
  await page.keyboard.press('Enter');
  await becomes(() => page.evaluate(() => document.activeElement.innerText), 'About apples');
  await page.reload();
  await page.locator('.conversations a').first().waitFor();
  await becomes(titles, ['About apples']);
});

test('another tab hears of changes', async (t) => {
  const { page, context } = await visit(t, server.url);
  const other = await context.newPage();
  await other.goto(server.url);
  await ask(page, 'Seen by both?');
  await other.locator('.conversations a', { hasText: 'Seen by both?' }).click();
  await other.locator('.prose', { hasText: 'You said: Seen by both?' }).waitFor();
  await ask(page, 'And this?');
  await other.locator('.prose', { hasText: 'You said: And this?' }).waitFor();
});

test('conversations leave and come back as a file, pictures included', async (t) => {
  const { page } = await visit(t, server.url);
  await files(page).setInputFiles(CAT);
  await ask(page, 'Keep this');
  await page.click('#settings');
  const [download] = await Promise.all([page.waitForEvent('download'), page.click('text=Export all')]);
  const path = await download.path();
  assert.match(download.suggestedFilename(), /^mini-gemini-\d{4}-\d\d-\d\d\.json$/);
  const exported = JSON.parse(readFileSync(path, 'utf8'));
  assert.equal(exported.pictures[0].data, readFileSync(CAT).toString('base64'));

  await page.click('text=Delete all\u2026');
  await page.click('text=Delete all >> nth=-1');
  await page.locator('.conversations .hint').waitFor();
  await page.reload();
  await page.click('#settings');
  await page.locator('#import-file').setInputFiles({ name: 'damaged.json', mimeType: 'application/json', buffer: Buffer.from('{"format":"mini-gemini-conversations","version":1}') });
  await page.locator('.toast', { hasText: 'The file is damaged.' }).waitFor();
  await page.locator('#import-file').setInputFiles(path);
  await page.locator('.toast', { hasText: 'Imported 1 conversation.' }).waitFor();
  await page.keyboard.press('Escape');
  await page.click('.conversations a >> text=Keep this');
  await page.waitForFunction(() => document.querySelector('.picture img')?.naturalWidth === 451);
  assert.equal(await lastAnswer(page), 'A cat. You asked: Keep this');
});
