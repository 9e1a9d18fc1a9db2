// What the tests of the page share: a headless browser, and an eye on everything the page must never do.

import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { after, before } from 'node:test';
import { fileURLToPath } from 'node:url';
import { isDeepStrictEqual } from 'node:util';
import { chromium } from 'playwright-core';

const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const BROWSERS = [process.env.CHROMIUM, '/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];

/** How long something may take that should happen at once, in milliseconds. */
const PATIENCE = 30_000;

const EXAMPLES = fileURLToPath(new URL('../../examples/', import.meta.url));
export const CAT = `${EXAMPLES}cat.jpg`;
export const COFFEE = `${EXAMPLES}coffee.jpg`;
export const DESKTOP = { viewport: { width: 1280, height: 800 } };
export const PHONE = { viewport: { width: 360, height: 740 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true };

/** One browser for all tests of a file. */
let browser;
before(async () => {
  browser = await launch();
});
after(() => browser?.close());

function launch() {
  const executablePath = BROWSERS.find((path) => path && existsSync(path));
  assert.ok(executablePath, 'Chromium is not installed; CHROMIUM may name it');
  return chromium.launch({
    executablePath,
    args: [
      '--headless',
      '--no-sandbox',
      '--disable-gpu',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
      '--use-fake-device-for-media-stream',
      '--use-fake-ui-for-media-stream',
    ],
  });
}

/**
 * A fresh browser profile with the page open in it, closed when the test ends. The test fails when the page threw, broke its security
 * policy, or asked another origin for anything.
 * @param {import('node:test').TestContext} t
 */
export async function visit(t, url, options = {}) {
  const context = await browser.newContext({ ...DESKTOP, ...options });
  t.after(async () => {
    await context.close();
    assert.deepEqual(problems, []);
  });
  // Machines that test are slow and do other things too.
  context.setDefaultTimeout(60_000);
  const problems = [];
  const watch = (page) => {
    page.on('pageerror', (error) => problems.push(`threw: ${error.message}`));
    page.on('console', (message) => {
      // Failed requests are logged by the browser, not by the page.
      if (message.type() === 'error' && !message.text().startsWith('Failed to load resource')) problems.push(`console: ${message.text()}`);
    });
    page.on('request', (request) => {
      const { origin, protocol } = new URL(request.url());
      if (!['data:', 'blob:'].includes(protocol) && origin !== new URL(url).origin) problems.push(`asked elsewhere: ${request.url()}`);
    });
  };
  context.on('page', watch);
  const page = await context.newPage();
  await page.goto(url);
  await page.locator('.composer').first().waitFor();
  return { page, context };
}

/** Asks a question and waits until it is answered. */
export async function ask(page, question) {
  const before = await page.locator('.message.assistant').count();
  await page.fill('#question', question);
  await page.press('#question', 'Enter');
  await answered(page, before + 1);
}

/** Waits until there are so many answers and none is being written. */
export async function answered(page, count) {
  await page.waitForFunction(
    (expected) => document.querySelectorAll('.message.assistant').length >= expected && !document.querySelector('.message.running') && !document.querySelector('.send.stop'),
    count,
    { timeout: 180_000 },
  );
}

/** The text of the last answer. */
export function lastAnswer(page) {
  return page.locator('.message.assistant .prose').last().innerText();
}

/** Fails when axe finds anything against WCAG 2.2 AA or its own best practice. */
export async function accessible(page, state) {
  await page.evaluate(AXE);
  const violations = await page.evaluate(async () => {
    const tags = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'];
    const found = await globalThis.axe.run(document, { runOnly: tags, resultTypes: ['violations'] });
    return found.violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => `${node.target.join(' ')} (${node.any[0]?.message ?? node.failureSummary})`).join('; ')}`);
  });
  assert.deepEqual(violations, [], state);
}

/** Fails when the page is wider than its window. */
export async function fits(page, state) {
  const { scroll, window } = await page.evaluate(() => ({ scroll: document.documentElement.scrollWidth, window: innerWidth }));
  assert.ok(scroll <= window, `${state}: ${scroll} pixels wide in a window of ${window}`);
}

/** Keeps a picture of the page, where `MGM_PAGE_SHOTS` names a folder for them. */
export async function shot(page, name) {
  const folder = process.env.MGM_PAGE_SHOTS;
  if (!folder) return;
  mkdirSync(folder, { recursive: true });
  await page.screenshot({ path: `${folder}/${name}.png` });
}

/** The pixels of a canvas, as rows of alpha values. */
export function alphas(page, selector) {
  return page.locator(selector).evaluate((canvas) => {
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    return Array.from({ length: canvas.height }, (_, row) => Array.from({ length: canvas.width }, (_unused, column) => data[(row * canvas.width + column) * 4 + 3]));
  });
}

/** The field through which pictures are chosen for the next question. */
export function files(page) {
  return page.locator('#composer input[type=file]').first();
}

/** The pictures of a message of a request. */
export function pictureParts(message) {
  return Array.isArray(message.content) ? message.content.filter((part) => part.type === 'image_url') : [];
}

/** Hands files to the page as the system does when they are dropped or pasted. */
export async function hand(page, type, list) {
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

/** Waits until something holds. */
export async function until(holds) {
  const end = Date.now() + PATIENCE;
  while (!(await holds())) {
    if (Date.now() > end) throw new Error(`it did not happen within ${PATIENCE / 1000} seconds`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Waits until `read` gives what is expected: much of what a click or a key does follows a moment later. */
export async function becomes(read, expected) {
  let last;
  const same = async () => isDeepStrictEqual((last = await read()), expected);
  await until(same).catch(() => assert.deepEqual(last, expected));
}
