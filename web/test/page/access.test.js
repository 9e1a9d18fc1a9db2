// For everybody: keyboard, screen reader, motion, themes, a phone, and axe in every state.

import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { CAT, COFFEE, PHONE, accessible, answered, ask, becomes, files, fits, shot, until, visit } from '../browser.js';
import { startMock } from '../mock.js';

const server = await startMock();
after(() => server.close());

test('everything from the keyboard alone', async (t) => {
  const { page } = await visit(t, server.url);
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
  await becomes(active, 'Skip to the question');
  await press('Enter');
  await becomes(active, 'Your question');
  await seek('What animal is this?', 'Shift+Tab');
  await press('Enter');
  await answered(page, 1);
  await becomes(active, 'Your question');
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
  await becomes(active, 'Picture: look inside');
  await seek('Settings', 'Shift+Tab');
  await press('Enter');
  await page.locator('dialog').waitFor();
  await press('Tab');
  await press('ArrowRight');
  await becomes(() => page.evaluate(() => document.documentElement.dataset.theme), 'light');
  await press('Escape');
  await becomes(active, 'Settings');
  await seek('Rename', 'Shift+Tab');
  await press('Enter');
  await page.keyboard.type('Typed');
  await press('Enter');
  await becomes(active, 'Typed');
  await seek('Delete');
  await press('Enter');
  await becomes(active, 'Undo');
  await press('Enter');
  await becomes(active, 'Typed');
  await press('Enter');
  await answered(page, 2);
});

test('a screen reader hears an answer once, when it is complete', async (t) => {
  const { page } = await visit(t, server.url);
  await page.evaluate(() => {
    window.heard = [];
    new MutationObserver(() => {
      const words = document.getElementById('status').textContent;
      if (words) window.heard.push(words);
    }).observe(document.getElementById('status'), { childList: true, characterData: true, subtree: true });
  });
  await ask(page, 'Say this, please');
  await page.waitForFunction(() => window.heard.length > 0);
  await ask(page, 'rich');
  await page.waitForFunction(() => window.heard.length > 1);
  const heard = await page.evaluate(() => window.heard);
  assert.equal(heard.length, 2);
  assert.equal(heard[0], 'Answer: You said: Say this, please');
  assert.match(heard[1], /The rest is in the conversation\.$/);
});

test('nothing moves for those who want that', async (t) => {
  const { page } = await visit(t, server.url, { reducedMotion: 'reduce' });
  await page.fill('#question', 'forever');
  await page.press('#question', 'Enter');
  await page.locator('.message.running').waitFor();
  assert.equal(await page.evaluate(() => document.getAnimations().length), 0);
  await page.click('#settings');
  assert.equal(await page.evaluate(() => document.getAnimations().length), 0);
});

test('the theme follows the system until the person chooses', async (t) => {
  const { page } = await visit(t, server.url, { colorScheme: 'dark' });
  const paper = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const dark = await paper();
  await page.click('[aria-label="Light colours"]');
  const light = await paper();
  assert.notEqual(light, dark);
  await page.reload();
  await becomes(paper, light);
  await page.emulateMedia({ colorScheme: 'light' });
  await page.click('[aria-label="Dark colours"]');
  await becomes(paper, dark);
});

test('on a phone the list slides in and everything fits', async (t) => {
  const { page } = await visit(t, server.url, PHONE);
  const inert = () => page.evaluate(() => ({ main: document.getElementById('main').inert, sidebar: document.getElementById('sidebar').inert }));
  await fits(page, 'empty');
  await becomes(inert, { main: false, sidebar: true });
  await page.tap('.example >> nth=0');
  await answered(page, 1);
  await page.fill('#question', 'rich');
  await page.press('#question', 'Enter');
  assert.equal(await page.inputValue('#question'), 'rich\n', 'Enter begins a new line');
  await page.tap('.send');
  await answered(page, 2);
  await fits(page, 'conversation');
  await page.tap('.menu');
  await becomes(inert, { main: true, sidebar: false });
  await fits(page, 'list');
  await page.tap('.conversations a');
  await becomes(inert, { main: false, sidebar: true });
  await page.evaluate(() => document.getElementById('scroller').scrollTo(0, 0));
  await page.tap('.picture');
  await page.locator('.patches [role=gridcell]').first().waitFor();
  await fits(page, 'look inside');
  const grid = await page.locator('.patches').boundingBox();
  await page.touchscreen.tap(grid.x + grid.width * 0.3, grid.y + grid.height * 0.3);
  await becomes(() => page.locator('.inside-patch h3').innerText(), 'Row 3, column 3');
});

for (const colorScheme of ['light', 'dark']) {
  for (const [size, options] of [['desktop', {}], ['phone', PHONE]]) {
    test(`accessible in every state: ${colorScheme}, ${size}`, { timeout: 600_000 }, async (t) => {
      const own = await startMock({ painting: true });
      t.after(() => own.close());
      // Colours in the middle of a transition have no contrast to speak of.
      const { page } = await visit(t, own.url, { ...options, colorScheme, reducedMotion: 'reduce' });
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
