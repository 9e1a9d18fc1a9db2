"""The official OpenAI Python client, unmodified, against a running server with the built-in model.

    pip install openai   (.ci/serving pins the version)
    python tools/serving/openai_client.py http://127.0.0.1:8080 [KEY]
"""

import base64
import pathlib
import sys

import openai

ROOT = pathlib.Path(__file__).resolve().parents[2]


def picture(name):
    data = base64.b64encode((ROOT / "examples" / name).read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}


def fails(kind, call, *needles):
    try:
        call()
    except kind as error:
        for needle in needles:
            assert needle in str(error), (needle, str(error))
        return error
    raise AssertionError(f"expected {kind.__name__}")


def models(client):
    listed = client.models.list().data
    assert len(listed) == 1 and listed[0].object == "model", listed
    assert client.models.retrieve(listed[0].id).id == listed[0].id
    fails(openai.NotFoundError, lambda: client.models.retrieve("no/such-model"))
    return listed[0].id


def text(client, model):
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "system", "content": "You are terse."}, {"role": "user", "content": "What is the capital of France?"}],
        max_tokens=16, temperature=0)
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content, answer
    assert choice.finish_reason in ("stop", "length"), answer
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens, answer.usage
    assert 0 < answer.usage.completion_tokens <= 16


def image(client, model):
    ask = lambda content: client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": content}], max_tokens=16, temperature=0)
    question = {"type": "text", "text": "What is in the picture?"}
    answer = ask([picture("cat.jpg"), question])
    assert "cat" in answer.choices[0].message.content.lower(), answer
    assert "coffee" in ask([question, picture("coffee.jpg")]).choices[0].message.content.lower()
    again = ask([picture("cat.jpg"), question])
    assert again.choices[0].message.content == answer.choices[0].message.content
    assert again.usage.prompt_tokens_details.cached_tokens > 0, again.usage


def turns(client, model):
    """Several turns, a picture in the first and another in the last."""
    history = [{"role": "user", "content": [picture("cat.jpg"), {"type": "text", "text": "What is in the picture?"}]}]
    first = client.chat.completions.create(model=model, messages=history, max_tokens=16, temperature=0)
    history += [{"role": "assistant", "content": first.choices[0].message.content}, {"role": "user", "content": "Is it an animal?"}]
    second = client.chat.completions.create(model=model, messages=history, max_tokens=16, temperature=0)
    assert second.choices[0].message.content, second
    assert second.usage.prompt_tokens_details.cached_tokens > first.usage.prompt_tokens // 2, second.usage
    history += [{"role": "assistant", "content": second.choices[0].message.content},
                {"role": "user", "content": [{"type": "text", "text": "And what is this?"}, picture("coffee.jpg")]}]
    third = client.chat.completions.create(model=model, messages=history, max_tokens=16, temperature=0)
    assert third.usage.prompt_tokens > second.usage.prompt_tokens


def streaming(client, model):
    messages = [{"role": "user", "content": [picture("cat.jpg"), {"type": "text", "text": "What is in the picture?"}]}]
    whole = client.chat.completions.create(model=model, messages=messages, max_tokens=16, temperature=0)
    pieces, finish, usage, role = [], None, None, None
    for chunk in client.chat.completions.create(model=model, messages=messages, max_tokens=16, temperature=0, stream=True,
                                                stream_options={"include_usage": True}):
        assert chunk.object == "chat.completion.chunk"
        usage = chunk.usage or usage
        for choice in chunk.choices:
            role = choice.delta.role or role
            pieces.append(choice.delta.content or "")
            finish = choice.finish_reason or finish
    assert "".join(pieces) == whole.choices[0].message.content
    assert (role, finish) == ("assistant", whole.choices[0].finish_reason)
    assert usage.completion_tokens == whole.usage.completion_tokens
    # A client that leaves early disturbs nobody.
    with client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Tell a very long story."}], max_tokens=1000,
                                        temperature=2, stream=True) as stream:
        next(iter(stream))
    assert client.models.list().data


def options(client, model):
    ask = lambda **more: client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Write a long letter to a friend."}], **{"max_tokens": 24, **more})
    sampled = [ask(temperature=1, seed=seed).choices[0].message.content for seed in (1, 1, 2, 3, 4)]
    assert sampled[0] == sampled[1] and len(set(sampled)) > 1, sampled
    several = ask(temperature=1, seed=5, n=3)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in several.choices}) > 1
    plain = ask(temperature=0).choices[0].message.content
    word = plain.split()[4]
    stopped = ask(temperature=0, stop=[word]).choices[0]
    assert stopped.finish_reason == "stop" and word not in stopped.message.content, stopped
    assert plain.startswith(stopped.message.content.strip()), (plain, stopped)
    scored = ask(temperature=0, logprobs=True, top_logprobs=3, max_tokens=5).choices[0].logprobs.content
    assert len(scored) == 5 and all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in scored), scored
    assert all(token.token == token.top_logprobs[0].token for token in scored)
    assert ask(max_tokens=openai.NOT_GIVEN, max_completion_tokens=3).usage.completion_tokens == 3
    assert ask(presence_penalty=1, frequency_penalty=1, top_p=0.9, extra_body={"top_k": 5}).choices[0].message.content


def completions(client, model):
    answer = client.completions.create(model=model, prompt="One, two, three,", max_tokens=8, temperature=0)
    assert answer.object == "text_completion" and answer.choices[0].text, answer
    streamed = client.completions.create(model=model, prompt="One, two, three,", max_tokens=8, temperature=0, stream=True)
    assert "".join(choice.text for chunk in streamed for choice in chunk.choices) == answer.choices[0].text


def paints(client):
    return client.models.list().data[0].capabilities["painting"]


def drawing(client, model):
    """Pictures from a prompt, and an answer of text and picture; with a model that paints only."""
    painter = client.models.retrieve(model).painter
    size = painter["sizes"][0]
    paint = lambda **more: client.images.generate(prompt="a red apple", response_format="b64_json", **more)
    answer = paint(n=2, size=size, extra_body={"seed": 7})
    files = [base64.b64decode(picture.b64_json) for picture in answer.data]
    assert len(files) == 2 and all(file.startswith(b"\x89PNG") for file in files), answer
    assert b"a red apple" in files[0] and files[0] != files[1]
    assert base64.b64decode(paint(model=painter["id"], extra_body={"seed": 8}).data[0].b64_json) == files[1]
    fails(openai.BadRequestError, lambda: paint(size="1x1"), "size", size)
    # The built-in model writes a picture prompt when it has done nothing else so far.
    history = [{"role": role, "content": content} for _ in range(6) for role, content in (("user", "a"), ("assistant", "<h>a</h>"))]
    ask = lambda messages, **more: client.chat.completions.create(model=model, messages=messages, max_tokens=16, temperature=0, seed=5, **more)
    question = history + [{"role": "user", "content": "a"}]
    whole = ask(question, modalities=["text", "image"]).choices[0].message
    assert whole.images[0]["image_url"]["url"].startswith("data:image/png;base64,"), whole
    prompt = whole.content.split("<h>")[1].split("</h>")[0]
    assert whole.images[0]["painting"] == {"prompt": prompt, "seed": 5, "size": size}, whole.images
    steps, images = [], []
    for chunk in ask(question, modalities=["text", "image"], stream=True):
        for choice in chunk.choices:
            if choice.model_extra.get("painting"):
                steps.append(choice.model_extra["painting"]["step"])
            images += (choice.delta.model_extra or {}).get("images") or []
    assert steps == sorted(steps) and len(steps) > 1, steps
    assert images == whole.images
    # The client's own way of putting a stream together, and the answer as part of the next request.
    with client.chat.completions.stream(model=model, messages=question, max_tokens=16, temperature=0, seed=5,
                                        extra_body={"modalities": ["text", "image"]}) as stream:
        final = stream.get_final_completion().choices[0].message
    assert final.content == whole.content and final.images[0]["image_url"] == whole.images[0]["image_url"], final
    without = ask(question + [{"role": "assistant", "content": whole.content}, {"role": "user", "content": "What is it?"}])
    seen = ask(question + [whole, {"role": "user", "content": "What is it?"}])
    assert seen.usage.prompt_tokens_details.image_tokens > 0, seen.usage
    assert seen.usage.prompt_tokens > without.usage.prompt_tokens


def errors(client, model, url, key):
    ask = lambda content="Hello", **more: client.chat.completions.create(model=model, messages=[{"role": "user", "content": content}], **more)
    fails(openai.NotFoundError, lambda: client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Hi"}]), "gpt-4o")
    assert fails(openai.BadRequestError, lambda: ask(temperature=-1), "temperature").param == "temperature"
    fails(openai.BadRequestError, lambda: ask(n=0), "n")
    fails(openai.BadRequestError, lambda: ask(tools=[{"type": "function", "function": {"name": "f"}}]), "tools")
    fails(openai.BadRequestError, lambda: ask("word " * 20000), "limit")
    fails(openai.BadRequestError, lambda: ask([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]), "image")
    fails(openai.BadRequestError, lambda: ask([{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]))
    if not paints(client):
        assert fails(openai.NotFoundError, lambda: client.images.generate(prompt="a red apple")).code == "no_painter"
        assert fails(openai.BadRequestError, lambda: ask(modalities=["text", "image"])).code == "no_painter"
    if key:
        stranger = openai.OpenAI(base_url=url + "/v1", api_key="not-the-key", max_retries=0)
        fails(openai.AuthenticationError, lambda: stranger.models.list())


def main():
    url, key = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
    client = openai.OpenAI(base_url=url + "/v1", api_key=key or "none", max_retries=0, timeout=300)
    model = models(client)
    parts = [text, image, turns, streaming, options, completions]
    if paints(client):
        parts.append(drawing)
    for part in parts:
        part(client, model)
    errors(client, model, url, key)
    print(f"openai {openai.__version__} (Python)\n{len(parts) + 2} passed, 0 failed")


if __name__ == "__main__":
    main()
