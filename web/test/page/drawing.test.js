// Drawing: asking for a picture, watching it come along, keeping it, asking about it.

import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { PHONE, accessible, answered, ask, becomes, fits, lastAnswer, pictureParts, shot, visit } from '../browser.js';
import { startMock } from '../mock.js';

const server = await startMock({ painting: true });
after(() => server.close());
const lastRequest = () => server.requests.at(-1);

/** The page with its toggle pressed. */
async function drawing(t, options) {
  const { page } = await visit(t, server.url, options);
  await page.locator('.model', { hasText: 'smol' }).waitFor();
  await page.click('.toggle');
  await becomes(() => page.getAttribute('.toggle', 'aria-pressed'), 'true');
  return page;
}

async function send(page, question) {
  await page.fill('#question', question);
  await page.click('.send');
}

const drawn = (page) => page.waitForFunction(() => document.querySelector('.assistant .picture img')?.naturalWidth === 8);

test('a picture is drawn, shown with its prompt and seed, kept, and asked about', async (t) => {
  server.dry = false;
  const page = await drawing(t);
  await send(page, 'draw a square');
  await page.locator('.drawing-words', { hasText: 'Drawing, step 3 of 4' }).waitFor();
  assert.deepEqual(lastRequest().modalities, ['text', 'image']);
  assert.ok(lastRequest().painting.preview_every > 0);
  assert.equal(await lastAnswer(page), 'Gladly.', 'the prompt stands below the picture');
  assert.equal(await page.locator('.drawing .drawn-prompt').innerText(), 'a red square');
  assert.equal(await page.locator('.drawing progress').evaluate((bar) => bar.value / bar.max), 0.75);
  assert.match(await page.locator('.drawing img').getAttribute('src'), /^data:image\/png/);
  server.dry = true;
  await answered(page, 1);
  const shown = async () => {
    await drawn(page);
    assert.ok(!(await page.locator('.drawing').isVisible()));
    assert.equal(await lastAnswer(page), 'Gladly.');
    assert.equal(await page.locator('figcaption').innerText(), 'a red square\n\nSeed 4711 \u00b7 96 \u00d7 64');
    const link = page.locator('.drawn a[download]');
    assert.equal(await link.getAttribute('download'), 'drawing-4711.png');
    assert.match(await link.getAttribute('href'), /^blob:/);
  };
  await shown();
  await page.reload();
  await answered(page, 1);
  await shown();

  await page.locator('.model', { hasText: 'smol' }).waitFor();
  await page.click('text=Ask about this picture');
  await page.click('text=Ask about this picture');
  assert.equal(await page.locator('.attachments img').count(), 1, 'once is enough');
  await ask(page, 'What is it?');
  assert.equal(await lastAnswer(page), 'A cat. You asked: What is it?');
  const [, answer, question] = lastRequest().messages;
  assert.equal(answer.content, 'Gladly. <h>a red square</h>', 'the model hears what it said');
  assert.equal(pictureParts(question).length, 1);
  assert.match(question.content[0].image_url.url, /^data:image\/png;base64,/);
  assert.equal(lastRequest().modalities, undefined, 'the toggle is not kept over a reload');

  // Asking again asks for a picture again.
  await page.locator('[aria-label="Answer again"]').first().click();
  await answered(page, 1);
  assert.deepEqual(lastRequest().modalities, ['text', 'image']);
});

test('what was drawn is exported and imported with its prompt', async (t) => {
  server.dry = true;
  const page = await drawing(t);
  await ask(page, 'draw a square');
  await page.click('#settings');
  const download = page.waitForEvent('download');
  await page.click('text=Export this one');
  const file = await (await download).path();
  await page.locator('#import-file').setInputFiles({ name: 'x.json', mimeType: 'application/json', buffer: await import('node:fs').then(({ readFileSync }) => readFileSync(file)) });
  await page.locator('.toast', { hasText: 'Imported 1 conversation' }).waitFor();
  await page.keyboard.press('Escape');
  await page.locator('.conversations a:not([aria-current])').first().click();
  await drawn(page);
  assert.equal(await page.locator('figcaption').innerText(), 'a red square\n\nSeed 4711 \u00b7 96 \u00d7 64');
});

test('drawing is stopped', async (t) => {
  server.dry = false;
  const cut = server.cut;
  const page = await drawing(t);
  await send(page, 'draw a square');
  await page.locator('.drawing-words', { hasText: 'step 3' }).waitFor();
  await page.click('.send');
  await answered(page, 1);
  assert.equal(await page.locator('.note').innerText(), 'Stopped.');
  assert.ok(!(await page.locator('.drawing').isVisible()));
  assert.equal(await lastAnswer(page), 'Gladly. <h>a red square</h>', 'nothing that was said is hidden');
  await becomes(() => server.cut, cut + 1);
});

test('where the model writes no prompt, the words themselves can be drawn', async (t) => {
  const page = await drawing(t);
  await ask(page, 'a blue square');
  assert.match(await page.locator('.note').innerText(), /wrote no picture prompt/);
  await page.click('text=Draw my words');
  await drawn(page);
  await answered(page, 1);
  assert.deepEqual(server.painted.at(-1), { prompt: 'a blue square' });
  assert.equal(await lastAnswer(page), 'You said: a blue square');
  assert.equal(await page.locator('figcaption').innerText(), 'a blue square\n\nSeed 12 \u00b7 8 \u00d7 8');
  assert.ok(!(await page.locator('.note').isVisible()));
});

test('servers that say nothing about how they draw, and servers that do not', async (t) => {
  const page = await drawing(t);
  await ask(page, 'paint a square');
  await drawn(page);
  assert.equal(await lastAnswer(page), 'Here it is.');
  assert.equal(await page.locator('figcaption').count(), 0);
  const poor = await startMock();
  t.after(() => poor.close());
  const { page: plain } = await visit(t, poor.url);
  await plain.locator('.model', { hasText: 'smol' }).waitFor();
  assert.ok(!(await plain.locator('.toggle').isVisible()));
});

for (const colorScheme of ['light', 'dark']) {
  for (const [size, options] of [['desktop', {}], ['phone', PHONE]]) {
    test(`accessible while it draws: ${colorScheme}, ${size}`, { timeout: 300_000 }, async (t) => {
      server.dry = false;
      const page = await drawing(t, { ...options, colorScheme, reducedMotion: 'reduce' });
      const state = async (name) => {
        await accessible(page, name);
        await fits(page, name);
        await shot(page, `${name}-${colorScheme}-${size}`);
      };
      await send(page, 'draw a square');
      await page.locator('.drawing-words', { hasText: 'step 3' }).waitFor();
      await state('drawing');
      server.dry = true;
      await answered(page, 1);
      await drawn(page);
      await state('drawn');
      await send(page, 'a blue square');
      await answered(page, 2);
      await state('undrawn');
    });
  }
}
