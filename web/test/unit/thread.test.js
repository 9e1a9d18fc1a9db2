import assert from 'node:assert/strict';
import { test } from 'node:test';
import { toMessages } from '../../src/api/request.js';
import * as thread from '../../src/store/thread.js';
import { pack, unpack } from '../../src/store/transfer.js';

const text = (words) => [{ type: 'text', text: words }];

function conversation() {
  const made = thread.newConversation(1000);
  const first = thread.append(made, null, { role: 'user', parts: [{ type: 'picture', picture: 'p1' }, ...text('What is it?')] }, 1001);
  const answer = thread.append(made, first.id, { role: 'assistant', parts: text('A cat.'), status: 'done', model: 'smol', times: { first: 120.5, total: 300 } }, 1002);
  const second = thread.append(made, answer.id, { role: 'user', parts: text('Sure?') }, 1003);
  return { made, first, answer, second };
}

test('the path follows the chosen versions, and comes back to what followed them', () => {
  const { made, first, answer, second } = conversation();
  assert.deepEqual(thread.path(made).map(({ id }) => id), [first.id, answer.id, second.id]);
  const other = thread.append(made, first.id, { role: 'assistant', parts: text('A dog.'), status: 'done' }, 1004);
  assert.deepEqual(thread.path(made).map(({ id }) => id), [first.id, other.id]);
  assert.deepEqual(thread.versions(made, other).map(({ id }) => id), [answer.id, other.id]);
  thread.choose(made, answer);
  assert.deepEqual(thread.path(made).map(({ id }) => id), [first.id, answer.id, second.id]);
  assert.deepEqual(thread.pathTo(made, other).map(({ id }) => id), [first.id, other.id]);
});

test('a picture prompt is shown with its picture, and otherwise as it was said', () => {
  const painting = { prompt: 'a fox', seed: 3, size: '8x8' };
  const message = (words, more = {}) => ({ role: 'assistant', draw: true, status: 'running', parts: text(words), ...more });
  const shown = (...of) => thread.shownText(message(...of));
  assert.equal(shown('Here: <h>a fox</h> Nice?'), 'Here:  Nice?');
  assert.equal(shown('Here: <h>a fo'), 'Here:');
  assert.equal(shown('<h>a</h> or <h>b</h>'), 'a or');
  assert.equal(shown('<h>a fox</h>', { status: 'done' }), '<h>a fox</h>');
  assert.equal(shown('<h>a fox</h>', { draw: undefined }), '<h>a fox</h>');
  const drawn = message('Yes. <h>a fox</h>', { status: 'done' });
  drawn.parts.push({ type: 'picture', picture: 'p', painting });
  assert.equal(thread.shownText(drawn), 'Yes.');
  assert.ok(!thread.drewNothing(drawn));
  assert.ok(thread.drewNothing(message('No.', { status: 'done' })));
  assert.ok(!thread.drewNothing(message('No.', { status: 'stopped' })));

  const made = thread.newConversation();
  const question = thread.append(made, null, { role: 'user', draw: true, parts: text('Draw.') });
  thread.append(made, question.id, drawn);
  const picture = { id: 'p', conversation: made.id, name: 'drawing.png', width: 8, height: 8, type: 'image/png', bytes: new Uint8Array([1]) };
  const [{ conversation: back }] = unpack(pack([made], [picture]));
  const [asked, answer] = thread.path(back);
  assert.ok(asked.draw && answer.draw);
  assert.deepEqual(answer.parts[1].painting, painting);
});

test('titles and search', () => {
  const { made } = conversation();
  assert.equal(thread.titleOf(made), 'What is it?');
  assert.ok(thread.matches(made, 'CAT what'));
  assert.ok(!thread.matches(made, 'cat dog'));
  const long = thread.newConversation();
  thread.append(long, null, { role: 'user', parts: text(`${'word '.repeat(30)}`) });
  assert.equal(thread.titleOf(long), `${'word '.repeat(12).trim()}\u2026`);
  const picture = thread.newConversation();
  thread.append(picture, null, { role: 'user', parts: [{ type: 'picture', picture: 'x' }] });
  assert.equal(thread.titleOf(picture), 'A picture');
});

test('a request says what was said: pictures first, no empty answers, questions that meet are one', async () => {
  const { made, answer } = conversation();
  const failed = thread.append(made, thread.path(made).at(-1).id, { role: 'assistant', parts: [], status: 'failed' });
  const last = thread.append(made, failed.id, { role: 'user', parts: [{ type: 'picture', picture: 'gone' }, ...text('Really?')] });
  const dataUrl = async (id) => (id === 'gone' ? null : `data:image/png;base64,${id}`);
  const first = { role: 'user', content: [{ type: 'image_url', image_url: { url: 'data:image/png;base64,p1' } }, { type: 'text', text: 'What is it?' }] };
  assert.deepEqual(await toMessages(thread.pathTo(made, last), '  Be brief. ', dataUrl), [
    { role: 'system', content: 'Be brief.' },
    first,
    { role: 'assistant', content: 'A cat.' },
    { role: 'user', content: [{ type: 'text', text: 'Sure?' }, { type: 'text', text: 'Really?' }] },
  ]);
  assert.deepEqual(await toMessages(thread.pathTo(made, answer).slice(0, 1), '', dataUrl), [first]);
});

test('what is exported comes back the same, under new identifiers', () => {
  const { made, first } = conversation();
  thread.append(made, first.id, { role: 'assistant', parts: [], status: 'failed', failure: { kind: 'busy', message: 'Busy.', detail: '', remedy: 'retry', retryAfter: 0 } }, 1004);
  made.title = 'Mine';
  const bytes = Uint8Array.from({ length: 70_000 }, (_, at) => at % 251);
  const file = pack([made], [{ id: 'p1', conversation: made.id, name: 'cat.jpg', width: 3, height: 2, type: 'image/jpeg', bytes }]);
  const [back] = unpack(file);
  assert.notEqual(back.conversation.id, made.id);
  assert.equal(back.conversation.title, 'Mine');
  assert.equal(back.conversation.created, made.created);
  const strip = (messages) => messages.map(({ id: _id, parent: _parent, parts, ...rest }) => ({ ...rest, text: parts.map((part) => part.text ?? 'picture') }));
  assert.deepEqual(strip(thread.path(back.conversation)), strip(thread.path(made)));
  assert.equal(Object.keys(back.conversation.messages).length, 4);
  assert.deepEqual(back.pictures[0].bytes, bytes);
  assert.deepEqual(thread.picturesOf(thread.path(back.conversation)[0]), [back.pictures[0].id]);
  assert.equal(back.pictures[0].conversation, back.conversation.id);
});

test('a damaged or foreign file is refused with a sentence', () => {
  const { made } = conversation();
  const bytes = new Uint8Array(4);
  const good = JSON.parse(pack([made], [{ id: 'p1', conversation: made.id, name: 'x', width: 1, height: 1, type: 'image/png', bytes }]));
  const broken = (change) => {
    const copy = structuredClone(good);
    change(copy, Object.values(copy.conversations[0].messages));
    return JSON.stringify(copy);
  };
  unpack(JSON.stringify(good));
  const cases = [
    ['{', /not JSON/],
    ['[]', /does not hold exported/],
    ['null', /does not hold exported/],
    [broken((file) => (file.version = 9)), /version 9/],
    [broken((file) => (file.pictures = [])), /picture is missing/],
    [broken((file) => (file.pictures[0].data = '*')), /cannot be read/],
    [broken((file) => (file.pictures[0].type = 'text/html')), /picture is missing/],
    [broken((file) => (file.pictures[0].width = -1)), /no size/],
    [broken((file) => (file.conversations[0].messages = null)), /incomplete/],
    [broken((_file, messages) => (messages[0].role = 'system')), /incomplete/],
    [broken((_file, messages) => messages[0].parts.push({ type: 'html' })), /unknown kind/],
    [broken((_file, messages) => (messages[0].parent = 'nowhere')), /not there/],
    [broken((_file, messages) => (messages[0].parent = messages[2].id)), /circle/],
  ];
  for (const [file, sentence] of cases) assert.throws(() => unpack(file), sentence);
});

test('names that objects have by nature do no harm in a file', () => {
  const file = `{"format":"mini-gemini-conversations","version":1,"pictures":[],"conversations":[{"created":1,"updated":1,"title":"x",
    "messages":{"__proto__":{"parent":null,"role":"user","parts":[{"type":"text","text":"a"}]},"constructor":{"parent":"__proto__","role":"assistant","parts":[]}},
    "chosen":{"root":"__proto__","__proto__":"constructor"}}]}`;
  const [{ conversation: made }] = unpack(file);
  assert.deepEqual(thread.path(made).map(({ role }) => role), ['user', 'assistant']);
});
