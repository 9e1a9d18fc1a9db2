import assert from 'node:assert/strict';
import { test } from 'node:test';
import { describe, serverError } from '../../src/api/failure.js';
import { describePatch, heat, heatPixels, intensity, patchLabel, summarise } from '../../src/picture/mining.js';
import { PARAMETERS, parseParameter } from '../../src/store/preferences.js';

const openAi = (message, code = '') => JSON.stringify({ error: { message, code, type: 'x' } });

test('every error answer has its kind and its remedy', () => {
  const kinds = [
    [401, openAi('no key'), 'key', 'key'],
    [403, '', 'refused', 'none'],
    [404, openAi('no such model'), 'missing', 'settings'],
    [413, '<html>too large</html>', 'too_large', 'edit'],
    [429, openAi('full'), 'busy', 'retry'],
    [503, '', 'unavailable', 'retry'],
    [504, '', 'timeout', 'retry'],
    [400, openAi('The prompt has 3000 tokens', 'context_length_exceeded'), 'too_long', 'edit'],
    [400, openAi('image 1 cannot be decoded'), 'picture', 'edit'],
    [422, openAi('temperature must be 0 or more'), 'request', 'settings'],
    [500, 'oops', 'server', 'retry'],
  ];
  for (const [status, body, kind, remedy] of kinds) {
    const failure = describe(status, body, null, false);
    assert.equal(failure.kind, kind, String(status));
    assert.equal(failure.remedy, remedy, String(status));
    assert.match(failure.message, /^[A-Z].*\.$/);
  }
  assert.match(describe(401, '', null, true).message, /does not accept/);
  assert.match(describe(429, '', '7', false).message, /7 seconds/);
  assert.equal(describe(429, '', 'Wed, 21 Oct 2026 07:28:00 GMT', false).retryAfter, 0);
});

test('what the server said is quoted, a page of HTML is not', () => {
  assert.deepEqual(serverError(openAi('a', 'b')), { message: 'a', code: 'b' });
  assert.deepEqual(serverError('{"error":"a"}'), { message: 'a', code: '' });
  assert.deepEqual(serverError('plain'), { message: 'plain', code: '' });
  assert.deepEqual(serverError('<html><body>502</body></html>'), { message: '', code: '' });
  assert.deepEqual(serverError('null'), { message: '', code: '' });
});

test('parameters are numbers in their range, or nothing', () => {
  const [temperature, topP, longest] = PARAMETERS;
  assert.equal(parseParameter(temperature, ' 0,7 '), 0.7);
  assert.equal(parseParameter(temperature, ''), null);
  for (const wrong of ['-1', '2.1', 'warm', 'NaN', 'Infinity', '1e9']) assert.equal(parseParameter(temperature, wrong), undefined, wrong);
  assert.equal(parseParameter(topP, '0'), undefined);
  assert.equal(parseParameter(longest, '12.5'), undefined);
  assert.equal(parseParameter(longest, '128'), 128);
});

/** Two patches in a row, regions of 2 by 2 cells: one that takes one cell, one that takes all. */
const VIEW = { rows: 1, columns: 2, cell_rows: 2, cell_columns: 2, weights: [[0.02, 0.9, 0.04, 0.04], [0.25, 0.25, 0.25, 0.25]] };

test('the account of a patch', () => {
  const summary = summarise(VIEW.weights[0], 2);
  assert.equal(summary.row, 0);
  assert.equal(summary.column, 1);
  assert.equal(summary.largest, 0.9);
  assert.ok(Math.abs(summary.topThree - 0.98) < 1e-9);
  const entropy = -(0.02 * Math.log(0.02) + 0.9 * Math.log(0.9) + 0.08 * Math.log(0.04));
  assert.ok(Math.abs(summary.breadth - Math.exp(entropy)) < 1e-9);
  assert.ok(Math.abs(summarise(VIEW.weights[1], 2).breadth - 4) < 1e-9);
  assert.match(describePatch(VIEW, 0), /row 1 of 2, column 2 of 2, gave 90 % .* 25 % if all 4/);
  assert.match(describePatch(VIEW, 1), /about equally/);
  assert.equal(patchLabel(VIEW, 0), 'Row 1, column 1: strongest cell row 1 of 2, column 2 of 2, 90 %');
});

test('heat grows with the weight, in brightness too, and an even share is faint', () => {
  let last = -1;
  for (const weight of [0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4, 0.6, 0.8, 1]) {
    const [red, green, blue] = heat(intensity(weight, 16));
    const brightness = 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    assert.ok(brightness > last);
    last = brightness;
  }
  assert.ok(intensity(1 / 64, 64) < 0.5);
  assert.equal(intensity(1 / 64, 64), intensity(1 / 16, 16));
});

test('the pixels of one patch lie in its region, those of all patches everywhere', () => {
  const one = heatPixels(VIEW, 1, 1);
  assert.deepEqual([one.width, one.height], [4, 2]);
  const alpha = (pixels) => Array.from({ length: 8 }, (_, at) => pixels[at * 4 + 3] > 0);
  assert.deepEqual(alpha(one.pixels), [false, false, true, true, false, false, true, true]);
  assert.ok(alpha(heatPixels(VIEW, null, 1).pixels).every(Boolean));
  const strongest = heatPixels(VIEW, 0, 1).pixels;
  assert.deepEqual([...strongest.slice(4, 7)], heat(intensity(0.9, 4)));
});
