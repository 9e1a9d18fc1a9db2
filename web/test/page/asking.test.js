// Asking and answering: pictures in, text and pictures out, streaming, stopping, editing, parameters.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, test } from 'node:test';
import { CAT, COFFEE, answered, ask, becomes, files, hand, lastAnswer, pictureParts, until, visit } from '../browser.js';
import { startMock } from '../mock.js';

const server = await startMock();
after(() => server.close());
const lastRequest = () => server.requests.at(-1);

test('a picture in, a streamed answer out, and a reload keeps both', async (t) => {
  const { page } = await visit(t, server.url);
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
  const { page } = await visit(t, server.url);
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
  const { page } = await visit(t, server.url);
  await page.fill('#question', 'forever');
  await page.press('#question', 'Enter');
  await page.locator('.prose', { hasText: 'word5' }).waitFor();
  await page.reload();
  await answered(page, 1);
  assert.match(await lastAnswer(page), /^word1 word2/);
  assert.match(await page.locator('.note').innerText(), /Stopped/);
});

test('an answer goes on while another conversation is read', async (t) => {
  const { page } = await visit(t, server.url);
  await page.fill('#question', 'forever');
  await page.press('#question', 'Enter');
  await page.locator('.prose', { hasText: 'word2' }).waitFor();
  await page.click('#new');
  await becomes(() => page.locator('.conversations .busy').count(), 1);
  await ask(page, 'Something else');
  assert.equal(await lastAnswer(page), 'You said: Something else');
  await page.click('.conversations a >> text=forever');
  await page.locator('.prose', { hasText: 'word20' }).waitFor();
  await page.press('#question', 'Escape');
  await answered(page, 1);
});

test('pictures are chosen, dropped, pasted, removed; wrong ones are refused in words', async (t) => {
  const { page } = await visit(t, server.url);
  await files(page).setInputFiles([CAT, COFFEE]);
  await page.locator('.attachments img').nth(1).waitFor();
  await page.click('[aria-label="Remove picture 1, cat.jpg"]');
  await becomes(() => page.locator('.attachments img').count(), 1);

  await hand(page, 'paste', [['pasted.jpg', 'image/jpeg', CAT]]);
  await page.locator('.attachments img').nth(1).waitFor();
  await hand(page, 'dragenter', [['a.jpg', 'image/jpeg', CAT]]);
  await page.locator('#drop').waitFor();
  await hand(page, 'drop', [['dropped.jpg', 'image/jpeg', COFFEE]]);
  await page.locator('.attachments img').nth(2).waitFor();
  await page.locator('#drop').waitFor({ state: 'hidden' });

  await hand(page, 'drop', [['notes.txt', 'text/plain', CAT]]);
  await page.locator('.composer-note', { hasText: '\u201cnotes.txt\u201d is not a picture.' }).waitFor();
  await hand(page, 'drop', [['broken.png', 'image/png', new URL('../rich.md', import.meta.url).pathname]]);
  await page.locator('.composer-note', { hasText: '\u201cbroken.png\u201d is damaged' }).waitFor();
  await files(page).setInputFiles([CAT, CAT]);
  await page.locator('.composer-note', { hasText: 'at most 4 pictures' }).waitFor();

  await ask(page, 'How many?');
  assert.equal(await lastAnswer(page), '4 pictures. You asked: How many?');
  assert.equal(await page.locator('.message.user .picture').count(), 4);
  assert.ok(!(await page.locator('.attachments').isVisible()));
});

test('very large pictures are shrunk before they travel', async (t) => {
  const { page } = await visit(t, server.url);
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
  const { page } = await visit(t, server.url);
  await page.click('[aria-label="Take a photograph"]');
  await page.locator('.camera .button.primary:enabled').click();
  await page.locator('.attachments img').waitFor();
  await ask(page, 'Seen?');
  assert.match(pictureParts(lastRequest().messages[0])[0].image_url.url, /^data:image\/jpeg;base64,/);
});

test('questions are edited, answers repeated, and every version stays', async (t) => {
  const { page } = await visit(t, server.url);
  await files(page).setInputFiles(CAT);
  await ask(page, 'First?');
  await page.click('[aria-label="Edit and ask again"]');
  const field = page.locator('.editing textarea');
  assert.equal(await field.inputValue(), 'First?');
  await field.press('Escape');
  await becomes(() => page.locator('.editing').count(), 0);
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
  await becomes(() => page.locator('.bubble').innerText(), 'First?');
  await becomes(() => page.evaluate(() => document.activeElement.getAttribute('aria-label')), 'Later version');
  await page.keyboard.press('Enter');
  await becomes(() => page.locator('.bubble').innerText(), 'Second?');

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

test('parameters are sent when they are set and right', async (t) => {
  const { page } = await visit(t, server.url);
  await ask(page, 'Defaults?');
  assert.deepEqual(Object.keys(lastRequest()).sort(), ['messages', 'model', 'stream', 'stream_options']);
  await page.click('#settings');
  assert.equal(await page.getAttribute('#parameter-max_tokens', 'placeholder'), 'Default: 512');
  await page.fill('#parameter-temperature', '0,7');
  await page.fill('#parameter-seed', '42');
  await page.fill('#parameter-max_tokens', 'many');
  await becomes(() => page.getAttribute('#parameter-max_tokens', 'aria-invalid'), 'true');
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
