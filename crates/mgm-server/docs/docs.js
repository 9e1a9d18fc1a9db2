// Shows openapi.json to people. Text from the description only ever becomes text.

const page = document.getElementById("page");
const state = document.getElementById("state");

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

/** `text` with what stands between backquotes as code. */
function prose(text = "") {
  return text.split("`").map((piece, index) => (index % 2 ? element("code", {}, piece) : piece));
}

function main(description) {
  const resolve = (value) => {
    if (!value?.$ref) return value;
    return value.$ref.slice(2).split("/").reduce((at, key) => at[key.replaceAll("~1", "/")], description);
  };

  /** A few words about what a schema admits. */
  function kind(schema) {
    if (schema.$ref) return schema.$ref.split("/").pop();
    if ("const" in schema) return JSON.stringify(schema.const);
    if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
    if (schema.anyOf) return schema.anyOf.map(kind).join(" | ");
    if (schema.type === "array") return `list of ${kind(schema.items ?? {})}`;
    const range = [
      schema.minimum !== undefined && Math.abs(schema.minimum) < 2 ** 31 ? `≥ ${schema.minimum}` : "",
      schema.maximum !== undefined && schema.maximum < 2 ** 31 ? `≤ ${schema.maximum}` : "",
    ].filter(Boolean);
    const types = [schema.type ?? "anything"].flat().join(" | ");
    return range.length ? `${types} (${range.join(", ")})` : types;
  }

  /** The fields of an object, those of objects inside it one level further in. */
  function fields(schema) {
    schema = resolve(schema) ?? {};
    const variants = schema.anyOf?.map(resolve).filter((variant) => variant.properties) ?? [];
    if (variants.length) {
      return element("div", {}, ...variants.flatMap((variant, index) => [index ? element("p", { class: "soft" }, "or") : "", fields(variant)]));
    }
    if (schema.type === "array" || schema.items) return fields(schema.items);
    if (!schema.properties) return "";
    const list = element("dl");
    for (const [name, value] of Object.entries(schema.properties)) {
      const required = schema.required?.includes(name) ? " required" : "";
      const title = element("dt", {}, element("code", {}, name), " ", element("span", { class: "soft" }, kind(value) + required));
      const body = element("dd", {}, ...prose(value.description));
      const inside = value.$ref ? "" : fields(value.type === "array" && !value.items?.$ref ? value.items : value);
      body.append(inside);
      list.append(title, body);
    }
    return list;
  }

  function contents(content) {
    return Object.entries(content ?? {}).map(([type, { schema, example }]) => {
      const name = schema.$ref ? ["of ", element("a", { href: `#${kind(schema)}` }, kind(schema))] : [];
      const parts = [element("p", {}, element("code", {}, type), " ", ...name), ...prose(schema.description)];
      if (example) parts.push(element("pre", {}, JSON.stringify(example, null, 2)));
      return element("div", {}, ...parts);
    });
  }

  function operation(path, method, entry) {
    const title = element("summary", {}, element("span", { class: "method" }, method), element("code", {}, path), ` ${entry.summary}`);
    const box = element("details", { id: entry.operationId }, title, element("p", {}, ...prose(entry.description)));
    for (const parameter of entry.parameters ?? []) {
      box.append(element("p", {}, element("code", {}, parameter.name), " ", ...prose(parameter.description)));
    }
    if (entry.requestBody) box.append(element("h4", {}, "Request"), ...contents(entry.requestBody.content));
    box.append(element("h4", {}, "Answers"));
    for (const [status, reference] of Object.entries(entry.responses)) {
      const answer = resolve(reference);
      box.append(element("p", {}, element("strong", {}, status), " ", ...prose(answer.description)));
      if (status === "200") box.append(...contents(answer.content));
    }
    return box;
  }

  const { info, tags, paths, components } = description;
  page.replaceChildren(
    element("h1", {}, `${info.title} ${info.version}`),
    element("p", {}, `${info.summary}. `, ...prose(info.description)),
    element("p", {}, "The same for programs: ", element("a", { href: "openapi.json" }, "openapi.json"), "."),
  );
  for (const { name } of tags) {
    page.append(element("h2", {}, name));
    for (const [path, methods] of Object.entries(paths)) {
      for (const [method, entry] of Object.entries(methods)) {
        if (entry.tags.includes(name)) page.append(operation(path, method, entry));
      }
    }
  }
  page.append(element("h2", {}, "Objects"));
  for (const [name, schema] of Object.entries(components.schemas)) {
    page.append(element("details", { id: name }, element("summary", {}, element("code", {}, name)), element("p", {}, ...prose(schema.description)), fields(schema)));
  }
  const open = () => document.getElementById(location.hash.slice(1))?.setAttribute("open", "");
  addEventListener("hashchange", open);
  open();
}

try {
  const answer = await fetch("openapi.json");
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  main(await answer.json());
} catch (error) {
  state.textContent = `The description could not be loaded: ${error.message}`;
}
