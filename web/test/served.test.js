// The page as `mgm serve` serves it, with the built-in model, in a real browser:
//     MGM=target/release/mgm node --test web/test/served.test.js        (MGM_PAGE_SHOTS=folder keeps pictures of it)

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { append, newConversation } from '../src/store/thread.js';
import { pack } from '../src/store/transfer.js';
import { CAT, PHONE, accessible, alphas, answered, ask, becomes, files, fits, lastAnswer, shot, visit } from './browser.js';

const MGM = process.env.MGM ?? fileURLToPath(new URL('../../target/release/mgm', import.meta.url));
const PAINTER = fileURLToPath(new URL('../../crates/mgm-diffusion/tests/fixtures/tiny-sdxl', import.meta.url));
const START = 600_000;

let server;
before(async () => {
  // Without top-k, a high temperature makes the small model ramble: answers long enough to be stopped.
  server = await serve('--top-k', '0', '--log-level', 'warn');
}, { timeout: START });
after(async () => {
  await server.stop();
});

/** Starts the program on a free port and waits for its address. */
async function serve(...options) {
  const child = spawn(MGM, ['serve', '--port', '0', ...options], { stdio: ['ignore', 'pipe', 'inherit'] });
  const url = await new Promise((resolve, reject) => {
    let printed = '';
    child.stdout.on('data', (piece) => {
      printed += piece;
      const found = /http:\/\/[\w.:[\]]+/.exec(printed);
      if (found && printed.includes('\n')) resolve(`${found[0]}/`);
    });
    child.on('exit', (code) => reject(new Error(`mgm serve ended with ${code}`)));
    child.on('error', reject);
  });
  const stop = () =>
    new Promise((resolve) => {
      if (child.exitCode !== null) return resolve();
      child.removeAllListeners('exit');
      child.on('exit', resolve);
      child.kill('SIGTERM');
    });
  return { url, stop };
}

async function setParameters(page, values) {
  await page.click('#settings');
  for (const [name, value] of Object.entries(values)) await page.fill(`#parameter-${name}`, String(value));
  await page.keyboard.press('Escape');
}

test('the files come with their headers, and only they', async () => {
  const page = await fetch(server.url);
  const policy = page.headers.get('content-security-policy');
  for (const rule of ["default-src 'self'", "script-src 'self'", "style-src 'self'", "require-trusted-types-for 'script'", "frame-ancestors 'none'"]) {
    assert.ok(policy.includes(rule), rule);
  }
  assert.ok(!/unsafe|\*|https?:/.test(policy));
  assert.equal(page.headers.get('x-content-type-options'), 'nosniff');
  const again = await fetch(server.url, { headers: { 'If-None-Match': page.headers.get('etag') } });
  assert.equal(again.status, 304);
  const html = await page.text();
  assert.equal(html, readFileSync(new URL('../index.html', import.meta.url), 'utf8'));
  for (const [, path] of html.matchAll(/(?:href|src)="([^"#]+)"/g)) assert.equal((await fetch(new URL(path, server.url))).status, 200, path);
  for (const path of ['test/mock.js', 'package.json', '../Cargo.toml', 'src/']) assert.equal((await fetch(new URL(path, server.url))).status, 404, path);
});

test('a picture in, a streamed answer out, a second question, and a reload keeps it all', async (t) => {
  const { page } = await visit(t, server.url);
  await page.locator('.model', { hasText: 'smol' }).waitFor();
  await files(page).setInputFiles(CAT);
  await page.locator('.attachments img').waitFor();
  await ask(page, 'What is in the picture?');
  assert.match(await lastAnswer(page), /\bcat\b/i);
  const account = await page.locator('.account').innerText();
  assert.match(account, /^smol · \d+ tokens in( \(\d+ reused\))? · [1-9]\d* out · first after \d+\.\d+ s/);
  await shot(page, 'served-answer');

  await ask(page, 'Is there a dog in the picture?');
  assert.match(await lastAnswer(page), /\bno\b/i);
  // The picture and the first turn are not read again.
  assert.match(await page.locator('.account').last().innerText(), /\([1-9]\d* reused\)/);

  await page.reload();
  await answered(page, 2);
  assert.match(await lastAnswer(page), /\bno\b/i);
  await page.waitForFunction(() => document.querySelector('.picture img')?.naturalWidth === 451);
});

test('an example answers', async (t) => {
  const { page } = await visit(t, server.url);
  await page.locator('.model', { hasText: 'smol' }).waitFor();
  await page.click('.example >> nth=1');
  await answered(page, 1);
  assert.match(await lastAnswer(page), /coffee|espresso|cup/i);
});

test('a long answer streams and is stopped', { timeout: 900_000 }, async (t) => {
  const { page } = await visit(t, server.url);
  await page.locator('.model', { hasText: 'smol' }).waitFor();
  // Chance decides how long the model goes on; one of these does for long.
  for (let seed = 1; seed <= 20; seed += 1) {
    await setParameters(page, { temperature: 2, seed, max_tokens: 400 });
    await page.click('#new');
    await page.fill('#question', 'Write a very long story about a fox.');
    await page.press('#question', 'Enter');
    await page.locator('.message.assistant').waitFor();
    const words = () => page.evaluate(() => document.querySelector('.message.running .prose')?.textContent.trim().split(/\s+/).length ?? 0);
    const running = () => page.locator('.send.stop').count();
    while ((await running()) && (await words()) < 12) await page.waitForTimeout(20);
    if (!(await running())) continue;
    const early = await words();
    while ((await running()) && (await words()) < early + 4) await page.waitForTimeout(20);
    if (!(await running())) continue;
    const shown = await lastAnswer(page);
    await page.press('#question', 'Escape');
    await answered(page, 1);
    assert.equal(await page.locator('.note').innerText(), 'Stopped.');
    const kept = await lastAnswer(page);
    assert.equal(kept.slice(0, 30), shown.slice(0, 30));
    await page.reload();
    await answered(page, 1);
    assert.equal(await lastAnswer(page), kept);
    return;
  }
  assert.fail('no answer was long enough to be stopped');
});

test('look inside draws what the model mined', async (t) => {
  const { page } = await visit(t, server.url);
  await page.locator('.model', { hasText: 'smol' }).waitFor();
  await page.click('.example >> nth=0');
  await answered(page, 1);
  await page.click('.picture');
  await page.locator('.patches [role=gridcell]').first().waitFor();
  assert.equal(await page.locator('.patches [role=gridcell]').count(), 64);

  const url = `data:image/jpeg;base64,${readFileSync(CAT).toString('base64')}`;
  const response = await fetch(new URL('v1/mining', server.url), {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ model: 'smol', image_url: { url } }),
  });
  const { image, views } = await response.json();
  assert.deepEqual(image, { width: 451, height: 300 });
  const [{ region, rows, columns, cell_rows: cellRows, cell_columns: cellColumns, weights }] = views;
  assert.deepEqual(region, { x: 0, y: -75, width: 451, height: 451 });

  // The patch at row 5, column 4: its cells are coloured, more where its weight is larger, and no others are.
  await page.locator('.patches [role=gridcell]').first().focus();
  for (let at = 0; at < 4; at += 1) await page.keyboard.press('ArrowDown');
  for (let at = 0; at < 3; at += 1) await page.keyboard.press('ArrowRight');
  await becomes(() => page.locator('.inside-patch h3').innerText(), 'Row 5, column 4');
  const alpha = await alphas(page, '.heat');
  assert.deepEqual([alpha.length, alpha[0].length], [rows * cellRows, columns * cellColumns]);
  const mined = weights[4 * columns + 3];
  const drawn = [];
  alpha.forEach((line, y) =>
    line.forEach((value, x) => {
      const inside = Math.floor(y / cellRows) === 4 && Math.floor(x / cellColumns) === 3;
      if (inside) drawn.push(value);
      assert.equal(value > 0, inside, `cell ${y}, ${x}`);
    }),
  );
  const order = [...mined.keys()].sort((a, b) => mined[a] - mined[b]);
  order.slice(1).forEach((cell, at) => assert.ok(drawn[cell] >= drawn[order[at]]));
  const shares = (await page.locator('.lens-cells td').allInnerTexts()).map(Number);
  assert.deepEqual(shares, mined.map((weight) => Math.round(weight * 100)));
  assert.match(await page.locator('.inside-words').innerText(), /cell/);
  await shot(page, 'served-inside');
  await page.click('text=All patches');
  assert.ok((await alphas(page, '.heat')).flat().every((value) => value > 0));
  await shot(page, 'served-inside-all');
});

test('what the server refuses is told in plain words', async (t) => {
  const { page } = await visit(t, server.url);
  await page.locator('.model', { hasText: 'smol' }).waitFor();
  await ask(page, 'word '.repeat(4000));
  assert.equal(await page.locator('.failure-words').innerText(), 'This is longer than the model can read. Ask something shorter, or start a new conversation.');
  assert.match(await page.locator('.failure-detail').innerText(), /\d{4}/);
  await page.locator('#alert', { hasText: 'This is longer than the model can read' }).waitFor({ state: 'attached' });
  await shot(page, 'served-error');
});

test('a server that asks for a key, and one that went away', { timeout: START }, async (t) => {
  const keyed = await serve('--api-key', 'sesame', '--log-level', 'warn');
  t.after(() => keyed.stop());
  const { page } = await visit(t, keyed.url);
  await page.locator('.trouble', { hasText: 'This server asks for an API key.' }).waitFor();
  await page.click('.trouble button');
  await page.keyboard.type('sesame');
  await page.keyboard.press('Enter');
  await page.locator('.toast', { hasText: 'accepts the key' }).waitFor();
  await page.keyboard.press('Escape');
  await ask(page, 'Name a colour.');
  assert.ok(await lastAnswer(page));
  await keyed.stop();
  await ask(page, 'Another one?');
  assert.match(await page.locator('.failure-words').innerText(), /^The server cannot be reached\./);
});

test('a picture is drawn, and asked about', { timeout: START }, async (t) => {
  const painting = await serve('--painter', PAINTER, '--painter-steps', '8', '--log-level', 'warn');
  t.after(() => painting.stop());
  const { page } = await visit(t, painting.url);
  await page.locator('.model', { hasText: 'smol' }).waitFor();
  // The built-in model writes a picture prompt when it has done nothing else so far.
  const practised = newConversation();
  let last = null;
  for (let count = 0; count < 6; count += 1) {
    last = append(practised, last, { role: 'user', parts: [{ type: 'text', text: 'a' }] }).id;
    last = append(practised, last, { role: 'assistant', parts: [{ type: 'text', text: '<h>a</h>' }], status: 'done' }).id;
  }
  await page.click('#settings');
  await page.locator('#import-file').setInputFiles({ name: 'x.json', mimeType: 'application/json', buffer: Buffer.from(pack([practised], [])) });
  await page.locator('.toast', { hasText: 'Imported 1 conversation' }).waitFor();
  await page.keyboard.press('Escape');
  await page.locator('.conversations a').first().click();
  await answered(page, 6);
  await page.click('.toggle');
  await ask(page, 'a');
  await page.waitForFunction(() => document.querySelector('.drawn .picture img')?.naturalWidth === 32);
  assert.doesNotMatch(await lastAnswer(page), /<h>/);
  assert.match(await page.locator('figcaption').innerText(), /^\S.*\s+Seed \d+ \u00b7 32 \u00d7 32$/);
  await shot(page, 'served-drawn');
  await page.click('text=Ask about this picture');
  await page.click('.toggle');
  await ask(page, 'What is in the picture?');
  assert.ok(await lastAnswer(page));

  // A question that it answers without a prompt, for which one token has no room, is drawn by its own words.
  await setParameters(page, { max_tokens: 1 });
  await page.click('#new');
  await page.click('.toggle');
  await ask(page, 'Name a colour.');
  await page.click('text=Draw my words');
  await page.waitForFunction(() => document.querySelector('.drawn .picture img')?.naturalWidth === 32);
  assert.match(await page.locator('figcaption').innerText(), /^Name a colour\./);
});

for (const colorScheme of ['light', 'dark']) {
  for (const [size, options] of [['desktop', {}], ['phone', PHONE]]) {
    test(`accessible: ${colorScheme}, ${size}`, { timeout: 600_000 }, async (t) => {
      const { page } = await visit(t, server.url, { ...options, colorScheme, reducedMotion: 'reduce' });
      await page.locator('.model', { hasText: 'smol' }).waitFor();
      const state = async (name) => {
        await accessible(page, name);
        await fits(page, name);
        await shot(page, `served-${name}-${colorScheme}-${size}`);
      };
      await state('empty');
      await page.click('.example >> nth=0');
      await answered(page, 1);
      await state('conversation');
      await page.click('.picture');
      await page.locator('.patches [role=gridcell]').first().waitFor();
      await state('inside');
    });
  }
}
