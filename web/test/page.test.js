// The page in a real browser against the mock server: every feature, every theme, every kind of trouble.
//     node --test test/page.test.js        (MGM_PAGE_SHOTS=folder keeps pictures of it)

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, test } from 'node:test';
import { EXAMPLES, PHONE, accessible, alphas, answered, ask, fits, lastAnswer, launch, shot, visit } from './browser.js';
import { RICH, startMock } from './mock.js';

const CAT = `${EXAMPLES}cat.jpg`;
const COFFEE = `${EXAMPLES}coffee.jpg`;

let browser;
let server;
before(async () => {
  browser = await launch();
  server = await startMock();
});
after(async () => {
  await browser.close();
  await server.close();
});

const files = (page) => page.locator('#composer input[type=file]').first();
const lastRequest = () => server.requests.at(-1);
const pictureParts = (message) => (Array.isArray(message.content) ? message.content.filter((part) => part.type === 'image_url') : []);

test('a picture in, a streamed answer out, and a reload keeps both', async (t) => {
  const { page } = await visit(t, browser, server.url);
  await files(page).setInputFiles(CAT);
  await page.locator('.attachments img').waitFor();
  await ask(page, 'What is it?');
  assert.equal(await lastAnswer(page), 'A cat. You asked: What is it?');
  const [message] = lastRequest().messages;
  assert.equal(lastRequest().stream, true);
  assert.deepEqual(lastRequest().stream_options, { include_usage: true });
  assert.equal(message.content.at(-1).text, 'What is it?');
  // Small pictures travel byte for byte.
  assert.equal(pictureParts(message)[0].image_url.url, `data:image/jpeg;base64,${readFileSync(CAT).toString('base64')}`);
  assert.match(await page.locator('.account').innerText(), /^smol · 85 tokens in \(64 reused\) · 7 out · first after \d+\.\d+ s · \d+\.\d+ s in all$/);

  await page.reload();
  await answered(page, 1);
  assert.equal(await lastAnswer(page), 'A cat. You asked: What is it?');
  await page.waitForFunction(() => document.querySelector('.picture img').naturalWidth === 451);
  assert.equal(await page.locator('h1').innerText(), 'What is it?');

  await ask(page, 'And now?');
  assert.deepEqual(lastRequest().messages.map(({ role }) => role), ['user', 'assistant', 'user']);
  assert.equal(pictureParts(lastRequest().messages[0]).length, 1);
  const [first, second] = server.conversations.slice(-2);
  assert.equal(first, new URL(page.url()).hash.slice(1));
  assert.equal(second, first);
});

test('text appears while it is written; the button stops it, and what came stays', async (t) => {
  const { page } = await visit(t, browser, server.url);
  const cut = server.cut;
  await page.fill('#question', 'forever');
  await page.press('#question', 'Enter');
  await page.locator('.prose', { hasText: 'word3' }).waitFor();
  assert.equal(await page.locator('.send').getAttribute('aria-label'), 'Stop');
  const early = (await lastAnswer(page)).length;
  await page.locator('.prose', { hasText: 'word12' }).waitFor();
  assert.ok((await lastAnswer(page)).length > early);
  await page.click('.send');
  await answered(page, 1);
  assert.match(await page.locator('.note').innerText(), /Stopped/);
  await assert.doesNotReject(until(() => server.cut === cut + 1), 'the server was told');
  const kept = await lastAnswer(page);
  await page.fill('#question', 'half a quest');
  await page.reload();
  await answered(page, 1);
  assert.equal(await lastAnswer(page), kept);
  assert.equal(await page.inputValue('#question'), 'half a quest');
});

test('a reload in the middle of an answer keeps what had come', async (t) => {
  const { page } = await visit(t, browser, server.url);
  await page.fill('#question', 'forever');
  await page.press('#question', 'Enter');
  await page.locator('.prose', { hasText: 'word5' }).waitFor();
  await page.reload();
  await answered(page, 1);
  assert.match(await lastAnswer(page), /^word1 word2/);
  assert.match(await page.locator('.note').innerText(), /Stopped/);
});

test('an answer goes on while another conversation is read', async (t) => {
  const { page } = await visit(t, browser, server.url);
  await page.fill('#question', 'forever');
  await page.press('#question', 'Enter');
  await page.locator('.prose', { hasText: 'word2' }).waitFor();
  await page.click('#new');
  assert.equal(await page.locator('.conversations .busy').count(), 1);
  await ask(page, 'Something else');
  assert.equal(await lastAnswer(page), 'You said: Something else');
  await page.click('.conversations a >> text=forever');
  await page.locator('.prose', { hasText: 'word20' }).waitFor();
  await page.press('#question', 'Escape');
  await answered(page, 1);
});

test('pictures are chosen, dropped, pasted, removed; wrong ones are refused in words', async (t) => {
  const { page } = await visit(t, browser, server.url);
  await files(page).setInputFiles([CAT, COFFEE]);
  await page.locator('.attachments img').nth(1).waitFor();
  await page.click('[aria-label="Remove picture 1, cat.jpg"]');
  assert.equal(await page.locator('.attachments img').count(), 1);

  await hand(page, 'paste', [['pasted.jpg', 'image/jpeg', CAT]]);
  await page.locator('.attachments img').nth(1).waitFor();
  await hand(page, 'dragenter', [['a.jpg', 'image/jpeg', CAT]]);
  assert.ok(await page.locator('#drop').isVisible());
  await hand(page, 'drop', [['dropped.jpg', 'image/jpeg', COFFEE]]);
  await page.locator('.attachments img').nth(2).waitFor();
  assert.ok(!(await page.locator('#drop').isVisible()));

  await hand(page, 'drop', [['notes.txt', 'text/plain', CAT]]);
  await page.locator('.composer-note', { hasText: '\u201cnotes.txt\u201d is not a picture.' }).waitFor();
  await hand(page, 'drop', [['broken.png', 'image/png', new URL('rich.md', import.meta.url).pathname]]);
  await page.locator('.composer-note', { hasText: '\u201cbroken.png\u201d is damaged' }).waitFor();
  await files(page).setInputFiles([CAT, CAT]);
  await page.locator('.composer-note', { hasText: 'at most 4 pictures' }).waitFor();

  await ask(page, 'How many?');
  assert.equal(await lastAnswer(page), '4 pictures. You asked: How many?');
  assert.equal(await page.locator('.message.user .picture').count(), 4);
  assert.ok(!(await page.locator('.attachments').isVisible()));
});

test('very large pictures are shrunk before they travel', async (t) => {
  const { page } = await visit(t, browser, server.url);
  await page.evaluate(async () => {
    const canvas = document.createElement('canvas');
    Object.assign(canvas, { width: 6000, height: 300 });
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, 'image/png'));
    const transfer = new DataTransfer();
    transfer.items.add(new File([blob], 'wide.png', { type: 'image/png' }));
    dispatchEvent(new DragEvent('drop', { dataTransfer: transfer, bubbles: true }));
  });
  await page.locator('.attachments img').waitFor();
  await ask(page, 'Wide?');
  const { url } = pictureParts(lastRequest().messages[0])[0].image_url;
  const size = await page.evaluate(async (source) => {
    const image = new Image();
    image.src = source;
    await image.decode();
    return [image.naturalWidth, image.naturalHeight];
  }, url);
  assert.deepEqual(size, [4096, 205]);
});

test('the camera gives a picture', async (t) => {
  const { page } = await visit(t, browser, server.url);
  await page.click('[aria-label="Take a photograph"]');
  await page.locator('.camera .button.primary:enabled').click();
  await page.locator('.attachments img').waitFor();
  await ask(page, 'Seen?');
  assert.match(pictureParts(lastRequest().messages[0])[0].image_url.url, /^data:image\/jpeg;base64,/);
});

test('questions are edited, answers repeated, and every version stays', async (t) => {
  const { page } = await visit(t, browser, server.url);
  await files(page).setInputFiles(CAT);
  await ask(page, 'First?');
  await page.click('[aria-label="Edit and ask again"]');
  const field = page.locator('.editing textarea');
  assert.equal(await field.inputValue(), 'First?');
  await field.press('Escape');
  assert.equal(await page.locator('.editing').count(), 0);
  await page.focus('#question');
  await page.press('#question', 'ArrowUp');
  await field.fill('Second?');
  await field.press('Enter');
  await page.locator('.prose', { hasText: 'A cat. You asked: Second?' }).waitFor();
  await answered(page, 1);
  assert.equal(lastRequest().messages.length, 1);
  assert.equal(await page.locator('.message').count(), 2);
  assert.equal(await page.locator('.message.user .versions span').innerText(), '2 / 2');
  await page.click('.message.user [aria-label="Earlier version"]');
  assert.equal(await page.locator('.bubble').innerText(), 'First?');
  assert.equal(await page.evaluate(() => document.activeElement.getAttribute('aria-label')), 'Later version');
  await page.keyboard.press('Enter');
  assert.equal(await page.locator('.bubble').innerText(), 'Second?');

  // An edit that is sent while another answer runs stops that one.
  await page.click('[aria-label="Edit and ask again"]');
  await page.fill('#question', 'forever');
  await page.press('#question', 'Enter');
  await page.locator('.prose', { hasText: 'word2' }).waitFor();
  await field.fill('Third?');
  await field.press('Enter');
  await page.locator('.prose', { hasText: 'A cat. You asked: Third?' }).waitFor();
  await answered(page, 1);
  assert.equal(await page.locator('.message').count(), 2);

  const asked = server.requests.length;
  await page.click('[aria-label="Answer again"]');
  await page.locator('.message.assistant .versions').waitFor();
  await answered(page, 1);
  assert.equal(server.requests.length, asked + 1);
  assert.equal(await page.locator('.message.assistant .versions span').innerText(), '2 / 2');
});

test('answers and code are copied as they were written', async (t) => {
  const { page, context } = await visit(t, browser, server.url);
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
  const { page } = await visit(t, browser, server.url);
  await ask(page, 'rich');
  const prose = page.locator('.prose');
  const counts = { 'h3.heading-2': 1, 'ol > li': 3, 'ul li': 4, table: 1, 'th[scope=col]': 3, 'td.align-right': 3, blockquote: 1, 'pre code': 1, s: 1, hr: 1, 'input[type=checkbox]': 2, 'a[target=_blank][rel~=noopener]': 2 };
  for (const [selector, count] of Object.entries(counts)) assert.equal(await prose.locator(selector).count(), count, selector);
  assert.equal(await prose.locator('a').last().getAttribute('href'), 'https://example.org/a_(b)');
});

test('nothing in the text of a model becomes more than text', async (t) => {
  const { page } = await visit(t, browser, server.url);
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

test('trouble is told in plain words, with what helps', async (t) => {
  const { page } = await visit(t, browser, server.url);
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
  const { page } = await visit(t, browser, own.url);
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
  const { page } = await visit(t, browser, own.url);
  await page.locator('.trouble', { hasText: 'The model is still being loaded.' }).waitFor();
  await page.locator('.trouble').waitFor({ state: 'hidden' });
  assert.equal(await page.locator('.model').innerText(), 'smol');
});

test('a server with a key asks for it', async (t) => {
  const own = await startMock({ key: 'sesame' });
  t.after(() => own.close());
  const { page } = await visit(t, browser, own.url);
  await page.locator('.trouble', { hasText: 'This server asks for an API key.' }).waitFor();
  await ask(page, 'Hello');
  await page.locator('.failure .button.primary').click();
  assert.equal(await page.evaluate(() => document.activeElement.id), 'api-key');
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

test('conversations are found, renamed, deleted, and brought back', async (t) => {
  const { page } = await visit(t, browser, server.url);
  for (const question of ['About apples', 'About pears']) {
    await page.click('#new');
    await ask(page, question);
  }
  const titles = () => page.locator('.conversations a').allInnerTexts();
  assert.deepEqual(await titles(), ['About pears', 'About apples']);
  await page.fill('#search', 'apples said');
  assert.deepEqual(await titles(), ['About apples']);
  await page.fill('#search', 'plums');
  assert.deepEqual(await titles(), []);
  await page.fill('#search', '');

  await page.click('[aria-label="Rename \u201cAbout pears\u201d"]');
  await page.keyboard.type('Fruit');
  await page.keyboard.press('Enter');
  assert.deepEqual(await titles(), ['Fruit', 'About apples']);
  assert.equal(await page.locator('h1').innerText(), 'Fruit');

  await page.click('[aria-label="Delete \u201cFruit\u201d"]');
  assert.deepEqual(await titles(), ['About apples']);
  assert.equal(await page.evaluate(() => document.activeElement.innerText), 'Undo');
  await page.keyboard.press('Enter');
  assert.deepEqual(await titles(), ['Fruit', 'About apples']);
  assert.equal(await page.locator('h1').innerText(), 'Fruit');

  await page.click('[aria-label="Delete \u201cFruit\u201d"]');
  await page.keyboard.press('Tab');
  await page.keyboard.press('Enter');
  assert.equal(await page.evaluate(() => document.activeElement.innerText), 'About apples');
  await page.reload();
  await page.locator('.conversations a').first().waitFor();
  assert.deepEqual(await titles(), ['About apples']);
});

test('another tab hears of changes', async (t) => {
  const { page, context } = await visit(t, browser, server.url);
  const other = await context.newPage();
  await other.goto(server.url);
  await ask(page, 'Seen by both?');
  await other.locator('.conversations a', { hasText: 'Seen by both?' }).click();
  await other.locator('.prose', { hasText: 'You said: Seen by both?' }).waitFor();
  await ask(page, 'And this?');
  await other.locator('.prose', { hasText: 'You said: And this?' }).waitFor();
});

test('conversations leave and come back as a file, pictures included', async (t) => {
  const { page } = await visit(t, browser, server.url);
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

test('parameters are sent when they are set and right', async (t) => {
  const { page } = await visit(t, browser, server.url);
  await ask(page, 'Defaults?');
  assert.deepEqual(Object.keys(lastRequest()).sort(), ['messages', 'model', 'stream', 'stream_options']);
  await page.click('#settings');
  assert.equal(await page.getAttribute('#parameter-max_tokens', 'placeholder'), 'Default: 512');
  await page.fill('#parameter-temperature', '0,7');
  await page.fill('#parameter-seed', '42');
  await page.fill('#parameter-max_tokens', 'many');
  assert.equal(await page.getAttribute('#parameter-max_tokens', 'aria-invalid'), 'true');
  assert.equal(await page.locator('#parameter-max_tokens-hint').innerText(), 'Please enter a whole number from 1 to 1,000,000.');
  await page.fill('#system', 'Be brief.');
  await page.keyboard.press('Escape');
  await page.reload();
  await ask(page, 'And now?');
  const { temperature, seed, max_tokens: longest, messages } = lastRequest();
  assert.deepEqual([temperature, seed, longest], [0.7, 42, undefined]);
  assert.deepEqual(messages[0], { role: 'system', content: 'Be brief.' });
  await page.click('#settings');
  await page.click('text=Back to the defaults');
  await page.keyboard.press('Escape');
  await ask(page, 'Again?');
  assert.equal(lastRequest().temperature, undefined);
  assert.equal(lastRequest().messages[0].role, 'user');
});

test('a model that draws', async (t) => {
  const own = await startMock({ painting: true });
  t.after(() => own.close());
  const { page } = await visit(t, browser, own.url);
  await page.locator('.model', { hasText: 'smol' }).waitFor();
  await page.click('text=Draw');
  assert.equal(await page.getAttribute('.toggle', 'aria-pressed'), 'true');
  await ask(page, 'paint a square');
  assert.deepEqual(own.requests.at(-1).modalities, ['text', 'image']);
  await page.waitForFunction(() => document.querySelector('.assistant .picture img')?.naturalWidth === 8);
  assert.equal(await lastAnswer(page), 'Here it is.');
  await page.reload();
  await page.waitForFunction(() => document.querySelector('.assistant .picture img')?.naturalWidth === 8);
  const plain = await visit(t, browser, server.url);
  await plain.page.locator('.model', { hasText: 'smol' }).waitFor();
  assert.ok(!(await plain.page.locator('.toggle').isVisible()));
});

test('look inside: the cells of the chosen patch, with the mouse and with the keyboard', async (t) => {
  const { page } = await visit(t, browser, server.url);
  await page.click('.example >> nth=0');
  await answered(page, 1);
  await page.click('.picture');
  await page.locator('.patches [role=gridcell]').first().waitFor();
  assert.equal(await page.locator('.patches [role=gridcell]').count(), 64);

  const region = (row, column) => (alpha, y, x) => (alpha > 0) === (Math.floor(y / 4) === row && Math.floor(x / 4) === column);
  const holds = async (rule) => (await alphas(page, '.heat')).every((line, y) => line.every((alpha, x) => rule(alpha, y, x)));
  const title = () => page.locator('.inside-patch h3').innerText();

  const grid = await page.locator('.patches').boundingBox();
  await page.mouse.click(grid.x + (grid.width * 2.5) / 8, grid.y + (grid.height * 3.5) / 8);
  assert.equal(await title(), 'Row 4, column 3');
  assert.ok(await holds(region(3, 2)));
  await page.mouse.move(grid.x + (grid.width * 5.5) / 8, grid.y + (grid.height * 3.5) / 8);
  assert.equal(await title(), 'Row 4, column 6');
  assert.ok(await holds(region(3, 5)));
  await page.mouse.move(2, 2);
  assert.equal(await title(), 'Row 4, column 3');

  await page.keyboard.press('ArrowRight');
  await page.keyboard.press('ArrowDown');
  assert.equal(await title(), 'Row 5, column 4');
  assert.ok(await holds(region(4, 3)));
  const focused = await page.evaluate(() => document.activeElement.getAttribute('aria-label'));
  assert.match(focused, /^Row 5, column 4: strongest cell row \d of 4, column \d of 4, \d/);
  await page.keyboard.press('Control+End');
  assert.equal(await title(), 'Row 8, column 8');
  await page.keyboard.press('Home');
  assert.equal(await title(), 'Row 8, column 1');

  // The numbers are the shares that the server gave, in percent.
  const shares = (await page.locator('.lens-cells td').allInnerTexts()).map(Number);
  assert.equal(shares.length, 16);
  assert.ok(Math.abs(shares.reduce((sum, share) => sum + share, 0) - 100) <= 8);
  const [, strongest] = /strongest cell, row \d of 4, column \d of 4, gave ([\d.]+) %/.exec(await page.locator('.inside-words').innerText());
  assert.equal(Math.round(Number(strongest)), Math.max(...shares));

  await page.click('text=All patches');
  assert.ok(await holds((alpha) => alpha > 0));
  await page.keyboard.press('Escape');
  assert.equal(await page.locator('dialog').count(), 0);
  assert.match(await page.evaluate(() => document.activeElement.className), /picture/);
});

test('look inside a model that looks at crops: every view lies over its part of the picture', async (t) => {
  const own = await startMock({ crops: true });
  t.after(() => own.close());
  const { page } = await visit(t, browser, own.url);
  await page.locator('.model', { hasText: 'smol' }).waitFor();
  await page.click('.example >> nth=0');
  await answered(page, 1);
  await page.click('.picture');
  await page.locator('.patches [role=gridcell]').first().waitFor();
  // Where the picture lies in the stage, in parts of the stage's size; 451 by 300 pixels, padded to a square.
  const placed = async () => {
    const stage = await page.locator('.stage').boundingBox();
    const image = await page.locator('.stage img').boundingBox();
    const parts = [(image.x - stage.x) / stage.width, (image.y - stage.y) / stage.height, image.width / stage.width, image.height / stage.height];
    return parts.map((part) => Number(part.toFixed(2)));
  };
  const [top, height] = [75.5 / 451, 300 / 451];
  const expected = {
    'top left': [0, top * 2, 2, height * 2],
    'bottom right': [-1, top * 2 - 1, 2, height * 2],
    overview: [0, top, 1, height],
  };
  for (const [name, parts] of Object.entries(expected)) {
    await page.selectOption('#inside-view', { label: name });
    (await placed()).forEach((part, at) => assert.ok(Math.abs(part - parts[at]) < 0.02, `${name}: ${part}, expected ${parts[at]}`));
  }
  await accessible(page, 'views');
});

test('everything from the keyboard alone', async (t) => {
  const { page } = await visit(t, browser, server.url);
  const active = () => page.evaluate(() => document.activeElement.getAttribute('aria-label') ?? document.activeElement.innerText);
  const press = async (key, times = 1) => {
    for (let at = 0; at < times; at += 1) await page.keyboard.press(key);
  };
  const seek = async (label, key = 'Tab') => {
    for (let at = 0; at < 40; at += 1) {
      await press(key);
      if ((await active()).startsWith(label)) return;
    }
    assert.fail(`${label} is not reached with ${key}`);
  };
  await press('Tab');
  assert.equal(await active(), 'Skip to the question');
  await press('Enter');
  assert.equal(await active(), 'Your question');
  await seek('What animal is this?', 'Shift+Tab');
  await press('Enter');
  await answered(page, 1);
  assert.equal(await active(), 'Your question');
  await page.keyboard.type('Sure?');
  await press('Shift+Enter');
  await page.keyboard.type('Really?');
  await press('Enter');
  await answered(page, 2);
  assert.equal(await page.locator('.bubble').last().innerText(), 'Sure?\nReally?');
  await seek('Picture: look inside', 'Shift+Tab');
  await press('Enter');
  await page.locator('.patches [role=gridcell]').first().waitFor();
  await assert.doesNotReject(until(async () => /^Row \d/.test(await active())));
  await press('ArrowLeft');
  await press('Escape');
  assert.equal(await active(), 'Picture: look inside');
  await seek('Settings', 'Shift+Tab');
  await press('Enter');
  await page.locator('dialog').waitFor();
  await press('Tab');
  await press('ArrowRight');
  assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), 'light');
  await press('Escape');
  assert.equal(await active(), 'Settings');
  await seek('Rename', 'Shift+Tab');
  await press('Enter');
  await page.keyboard.type('Typed');
  await press('Enter');
  assert.equal(await active(), 'Typed');
  await seek('Delete');
  await press('Enter');
  assert.equal(await active(), 'Undo');
  await press('Enter');
  assert.equal(await active(), 'Typed');
  await press('Enter');
  await answered(page, 2);
});

test('a screen reader hears an answer once, when it is complete', async (t) => {
  const { page } = await visit(t, browser, server.url);
  await page.evaluate(() => {
    window.heard = [];
    new MutationObserver(() => {
      const words = document.getElementById('status').textContent;
      if (words) window.heard.push(words);
    }).observe(document.getElementById('status'), { childList: true, characterData: true, subtree: true });
  });
  await ask(page, 'Say this once');
  await page.waitForFunction(() => window.heard.length > 0);
  await ask(page, 'rich');
  await page.waitForFunction(() => window.heard.length > 1);
  const heard = await page.evaluate(() => window.heard);
  assert.equal(heard.length, 2);
  assert.equal(heard[0], 'Answer: You said: Say this once');
  assert.match(heard[1], /The rest is in the conversation\.$/);
});

test('nothing moves for those who want that', async (t) => {
  const { page } = await visit(t, browser, server.url, { reducedMotion: 'reduce' });
  await page.fill('#question', 'forever');
  await page.press('#question', 'Enter');
  await page.locator('.message.running').waitFor();
  assert.equal(await page.evaluate(() => document.getAnimations().length), 0);
  await page.click('#settings');
  assert.equal(await page.evaluate(() => document.getAnimations().length), 0);
});

test('the theme follows the system until the person chooses', async (t) => {
  const { page } = await visit(t, browser, server.url, { colorScheme: 'dark' });
  const paper = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const dark = await paper();
  await page.click('[aria-label="Light colours"]');
  const light = await paper();
  assert.notEqual(light, dark);
  await page.reload();
  assert.equal(await paper(), light);
  await page.emulateMedia({ colorScheme: 'light' });
  await page.click('[aria-label="Dark colours"]');
  assert.equal(await paper(), dark);
});

test('on a phone the list slides in and everything fits', async (t) => {
  const { page } = await visit(t, browser, server.url, PHONE);
  await fits(page, 'empty');
  assert.ok(await page.evaluate(() => document.getElementById('sidebar').inert));
  await page.tap('.example >> nth=0');
  await answered(page, 1);
  await page.fill('#question', 'rich');
  await page.press('#question', 'Enter');
  assert.equal(await page.inputValue('#question'), 'rich\n', 'Enter begins a new line');
  await page.tap('.send');
  await answered(page, 2);
  await fits(page, 'conversation');
  await page.tap('.menu');
  assert.ok(await page.evaluate(() => document.getElementById('main').inert && !document.getElementById('sidebar').inert));
  await fits(page, 'list');
  await page.tap('.conversations a');
  assert.ok(!(await page.evaluate(() => document.getElementById('main').inert)));
  await page.evaluate(() => document.getElementById('scroller').scrollTo(0, 0));
  await page.tap('.picture');
  await page.locator('.patches [role=gridcell]').first().waitFor();
  await fits(page, 'look inside');
  const grid = await page.locator('.patches').boundingBox();
  await page.touchscreen.tap(grid.x + grid.width * 0.3, grid.y + grid.height * 0.3);
  assert.equal(await page.locator('.inside-patch h3').innerText(), 'Row 3, column 3');
});

for (const colorScheme of ['light', 'dark']) {
  for (const [size, options] of [['desktop', {}], ['phone', PHONE]]) {
    test(`accessible in every state: ${colorScheme}, ${size}`, { timeout: 120_000 }, async (t) => {
      const own = await startMock({ painting: true });
    t.after(() => own.close());
      // Colours in the middle of a transition have no contrast to speak of.
      const { page } = await visit(t, browser, own.url, { ...options, colorScheme, reducedMotion: 'reduce' });
      const state = async (name) => {
        await accessible(page, name);
        await fits(page, name);
        await shot(page, `${name}-${colorScheme}-${size}`);
      // Zoomed to 400 per cent, a window of 1280 pixels is one of 320.
      if (size === 'phone') {
        await page.setViewportSize({ width: 320, height: 640 });
        await fits(page, `${name} at 320 pixels`);
        await page.setViewportSize(PHONE.viewport);
      }
      };
      const send = async (question, count) => {
        await page.fill('#question', question);
        await page.click('.send');
        await answered(page, count);
      };
      await page.locator('.model', { hasText: 'smol' }).waitFor();
      await state('empty');
      await files(page).setInputFiles([CAT, COFFEE]);
      await page.locator('.attachments img').nth(1).waitFor();
      await state('attached');
      await send('Which is the cat?', 1);
      await state('conversation');
      await send('rich', 2);
      await state('rich');
      await send('busy', 3);
      await state('error');
      await page.locator('[aria-label="Edit and ask again"]').first().click();
      await state('edit');
      await page.keyboard.press('Escape');
      await page.locator('.picture').first().click();
      await page.locator('.patches [role=gridcell]').first().waitFor();
      await state('inside');
      await page.keyboard.press('Escape');
      if (size === 'phone') {
        await page.click('.menu');
        await state('list');
      }
      await page.click('#settings');
      await page.fill('#parameter-temperature', '9');
      await state('settings');
      await page.keyboard.press('Escape');
      if (size === 'phone' && !(await page.locator('.sidebar.open').count())) await page.click('.menu');
      await page.locator('[aria-label^="Delete"]').first().click();
      await state('deleted');
    });
  }
}

/** Hands files to the page as the system does when they are dropped or pasted. */
async function hand(page, type, list) {
  const handed = list.map(([name, mime, path]) => ({ name, mime, data: readFileSync(path).toString('base64') }));
  await page.evaluate(
    ({ kind, given }) => {
      const transfer = new DataTransfer();
      for (const { name, mime, data } of given) {
        transfer.items.add(new File([Uint8Array.from(atob(data), (character) => character.charCodeAt(0))], name, { type: mime }));
      }
      const options = { bubbles: true, cancelable: true };
      if (kind === 'paste') document.activeElement.dispatchEvent(new ClipboardEvent('paste', { ...options, clipboardData: transfer }));
      else document.body.dispatchEvent(new DragEvent(kind, { ...options, dataTransfer: transfer }));
    },
    { kind: type, given: handed },
  );
}

/** Waits until something outside the page holds. */
async function until(holds) {
  for (let at = 0; at < 100; at += 1) {
    if (await holds()) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error('it did not happen within five seconds');
}
