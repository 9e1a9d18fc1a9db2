// Looking inside: what is drawn over a picture, with the mouse and with the keyboard.

import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { accessible, alphas, answered, becomes, until, visit } from '../browser.js';
import { startMock } from '../mock.js';

const server = await startMock();
after(() => server.close());

test('look inside: the cells of the chosen patch, with the mouse and with the keyboard', async (t) => {
  const { page } = await visit(t, server.url);
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
  await becomes(title, 'Row 4, column 3');
  await until(() => holds(region(3, 2)));
  await page.mouse.move(grid.x + (grid.width * 5.5) / 8, grid.y + (grid.height * 3.5) / 8);
  await becomes(title, 'Row 4, column 6');
  await until(() => holds(region(3, 5)));
  await page.mouse.move(2, 2);
  await becomes(title, 'Row 4, column 3');

  await page.keyboard.press('ArrowRight');
  await page.keyboard.press('ArrowDown');
  await becomes(title, 'Row 5, column 4');
  await until(() => holds(region(4, 3)));
  const focused = await page.evaluate(() => document.activeElement.getAttribute('aria-label'));
  assert.match(focused, /^Row 5, column 4: strongest cell row \d of 4, column \d of 4, \d/);
  await page.keyboard.press('Control+End');
  await becomes(title, 'Row 8, column 8');
  await page.keyboard.press('Home');
  await becomes(title, 'Row 8, column 1');

  // The numbers are the shares that the server gave, in percent.
  const shares = (await page.locator('.lens-cells td').allInnerTexts()).map(Number);
  assert.equal(shares.length, 16);
  assert.ok(Math.abs(shares.reduce((sum, share) => sum + share, 0) - 100) <= 8);
  const [, strongest] = /strongest cell, row \d of 4, column \d of 4, gave ([\d.]+) %/.exec(await page.locator('.inside-words').innerText());
  assert.equal(Math.round(Number(strongest)), Math.max(...shares));

  await page.click('text=All patches');
  await until(() => holds((alpha) => alpha > 0));
  await page.keyboard.press('Escape');
  await becomes(() => page.locator('dialog').count(), 0);
  await becomes(() => page.evaluate(() => document.activeElement.className), 'picture');
});

test('look inside a model that looks at crops: every view lies over its part of the picture', async (t) => {
  const own = await startMock({ crops: true });
  t.after(() => own.close());
  const { page } = await visit(t, own.url);
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
