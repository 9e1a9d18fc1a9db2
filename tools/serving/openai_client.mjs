// The official OpenAI JavaScript client, unmodified, against a running server with the built-in model.
//
//     npm install openai   (.ci/serving pins the version)
//     node tools/serving/openai_client.mjs http://127.0.0.1:8080 [KEY]
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

// The package may be installed beside this file or in the working directory.
const require = createRequire(pathToFileURL(`${process.cwd()}/`));
const { default: OpenAI } = await import(pathToFileURL(require.resolve('openai')).href);

const [url, key] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key ?? 'none', maxRetries: 0, timeout: 300_000 });

const picture = name => ({
    type: 'image_url',
    image_url: { url: `data:image/jpeg;base64,${readFileSync(new URL(`../../examples/${name}`, import.meta.url)).toString('base64')}` },
});
const model = (await client.models.list()).data[0].id;
const ask = (content, more = {}) => client.chat.completions.create({
    model, messages: [{ role: 'user', content }], max_tokens: 16, temperature: 0, ...more,
});
const question = [picture('cat.jpg'), { type: 'text', text: 'What is in the picture?' }];

const tests = {
    async 'model list'() {
        assert.equal((await client.models.retrieve(model)).id, model);
    },
    async 'text and usage'() {
        const answer = await ask('What is the capital of France?');
        assert.ok(answer.choices[0].message.content);
        assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
    },
    async 'picture'() {
        assert.match((await ask(question)).choices[0].message.content, /cat/i);
    },
    async 'turns with a picture'() {
        const first = await ask(question);
        const second = await client.chat.completions.create({
            model, temperature: 0, max_tokens: 16, messages: [
                { role: 'user', content: question }, first.choices[0].message, { role: 'user', content: 'Is it an animal?' }],
        });
        assert.ok(second.choices[0].message.content);
        assert.ok(second.usage.prompt_tokens_details.cached_tokens > 0);
    },
    async 'streaming'() {
        const whole = (await ask(question)).choices[0].message.content;
        let text = '', usage;
        for await (const chunk of await ask(question, { stream: true, stream_options: { include_usage: true } })) {
            text += chunk.choices[0]?.delta?.content ?? '';
            usage = chunk.usage ?? usage;
        }
        assert.equal(text, whole);
        assert.ok(usage.completion_tokens > 0);
        const helper = client.chat.completions.stream({ model, messages: [{ role: 'user', content: question }], max_tokens: 16, temperature: 0 });
        assert.equal(await helper.finalContent(), whole);
    },
    async 'leaving a stream'() {
        const stream = await ask('Tell a very long story.', { stream: true, max_tokens: 1000, temperature: 2 });
        for await (const _ of stream) break;
        assert.ok((await client.models.list()).data.length);
    },
    async 'stop'() {
        const plain = (await ask('Write a long letter to a friend.', { max_tokens: 24 })).choices[0].message.content;
        const word = plain.split(' ')[4];
        const stopped = (await ask('Write a long letter to a friend.', { max_tokens: 24, stop: word })).choices[0];
        assert.equal(stopped.finish_reason, 'stop');
        assert.ok(!stopped.message.content.includes(word));
    },
    async 'drawing'() {
        const { painter } = await client.models.retrieve(model);
        if (!painter) return;
        const painted = await client.images.generate({ prompt: 'a red apple', size: painter.sizes[0], n: 2, seed: 7 });
        assert.equal(painted.data.length, 2);
        assert.ok(painted.data.every(({ b64_json }) => b64_json.startsWith('iVBORw0KGgo')));
        // The built-in model writes a picture prompt when it has done nothing else so far.
        const before = Array.from({ length: 6 }, () => [{ role: 'user', content: 'a' }, { role: 'assistant', content: '<h>a</h>' }]).flat();
        const messages = [...before, { role: 'user', content: 'a' }];
        const asked = { model, messages, max_tokens: 16, temperature: 0, seed: 5, modalities: ['text', 'image'] };
        const { message } = (await client.chat.completions.create(asked)).choices[0];
        assert.match(message.images[0].image_url.url, /^data:image\/png;base64,/);
        const images = [];
        for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) images.push(...(chunk.choices[0]?.delta?.images ?? []));
        assert.deepEqual(images, message.images);
    },
    async 'errors'() {
        await assert.rejects(client.chat.completions.create({ model: 'gpt-4o', messages: [{ role: 'user', content: 'Hi' }] }), OpenAI.NotFoundError);
        await assert.rejects(ask('Hi', { temperature: -1 }), error => error instanceof OpenAI.BadRequestError && error.param === 'temperature');
        await assert.rejects(ask([{ type: 'image_url', image_url: { url: 'data:image/png;base64,AAAA' } }]), OpenAI.BadRequestError);
        if (key) {
            const stranger = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'not-the-key', maxRetries: 0 });
            await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
        }
    },
};
for (const [name, test] of Object.entries(tests)) {
    try {
        await test();
    } catch (error) {
        console.error(`${name}: failed`);
        throw error;
    }
}
console.log(`openai (JavaScript)\n${Object.keys(tests).length} passed, 0 failed`);
