import assert from 'node:assert/strict';
import { test } from 'node:test';
import { EventParser, events } from '../../src/api/sse.js';

const STREAM = '\uFEFF: hello\r\ndata: {"a":1}\r\n\r\nevent: error\rdata:x\rdata: y\r\rid: 7\nretry: 10\ndata\n\n\ndata: \u{1f408} last\n\ndata: cut';
const EXPECTED = [
  { event: 'message', data: '{"a":1}' },
  { event: 'error', data: 'x\ny' },
  { event: 'message', data: '' },
  { event: 'message', data: '\u{1f408} last' },
];

test('events come out the same however the text is cut', () => {
  for (let size = 1; size <= STREAM.length; size += 1) {
    const parser = new EventParser();
    const found = [];
    for (let at = 0; at < STREAM.length; at += size) found.push(...parser.push(STREAM.slice(at, at + size)));
    assert.deepEqual(found, EXPECTED, `pieces of ${size}`);
  }
});

test('characters that are cut between bytes stay whole, and an unfinished event is dropped', async () => {
  const bytes = new TextEncoder().encode(STREAM.slice(1));
  for (const size of [1, 2, 3, 5, bytes.length]) {
    const stream = new ReadableStream({
      start(controller) {
        for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
        controller.close();
      },
    });
    const found = [];
    for await (const event of events(stream)) found.push(event);
    assert.deepEqual(found, EXPECTED);
  }
});

test('leaving early cancels the stream', async () => {
  let cancelled = false;
  const stream = new ReadableStream({
    pull: (controller) => controller.enqueue(new TextEncoder().encode('data: 1\n\n')),
    cancel: () => {
      cancelled = true;
    },
  });
  for await (const { data } of events(stream)) {
    assert.equal(data, '1');
    break;
  }
  assert.ok(cancelled);
});
