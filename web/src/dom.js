// Building elements.

/**
 * An element with attributes, listeners and children. `on…` adds a listener; true is an empty attribute, false and null are none.
 * There is no way to give it HTML or an inline style: the page's content security policy has no room for either.
 * @param {string} name
 * @param {Record<string, unknown>} [attributes]
 * @param {...(Node | string | null | undefined | false)} children
 * @returns {HTMLElement}
 */
export function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? '' : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const SVG = 'http://www.w3.org/2000/svg';

/** Paths on a 20 by 20 grid, drawn with a round pen. */
const ICONS = {
  menu: 'M3 6h14M3 10h14M3 14h14',
  plus: 'M10 4v12M4 10h12',
  close: 'M5 5l10 10M15 5L5 15',
  send: 'M10 16V4M5 9l5-5 5 5',
  stop: 'M6 6h8v8H6z',
  picture: 'M3 4.5h14v11H3zM3 13l4-4 4 4 2-2 4 4M13 8.2v.1',
  camera: 'M3 6.5h3l1.5-2h5l1.5 2h3v9H3zM10 13.2a2.6 2.6 0 1 0 0-5.2 2.6 2.6 0 0 0 0 5.2z',
  brush: 'M16.5 3.5c-4 2-6.5 4.5-8 7l1.8 1.8c2.5-1.5 5-4 6.2-8.8zM8 11.5c-2 0-2.8 1.3-3 2.5s-1 2-2 2.5c2.5.6 6.5 0 6.8-3.2',
  ask: 'M3.5 4.5h13v9H9.5L6 16.5v-3H3.5z',
  download: 'M10 3.5v9M6 9l4 4 4-4M4 16.5h12',
  copy: 'M7 7h9v9H7zM4 13V4h9',
  check: 'M4 10.5l4 4 8-9',
  edit: 'M4 16l.8-3.5L13.5 3.8l2.7 2.7L7.5 15.2zM11.8 5.5l2.7 2.7',
  retry: 'M15.5 7A6 6 0 1 0 16 10.5M16 3.5V7h-3.5',
  trash: 'M4 6h12M8 6V4h4v2M5.5 6l.7 10.5h7.6L14.5 6M8.5 9v5M11.5 9v5',
  settings: 'M3 6h7M14 6h3M3 14h3M10 14h7M12 8a2 2 0 1 0 0-4 2 2 0 0 0 0 4zM8 16a2 2 0 1 0 0-4 2 2 0 0 0 0 4z',
  left: 'M12 5l-5 5 5 5',
  right: 'M8 5l5 5-5 5',
  down: 'M10 4v12M5 11l5 5 5-5',
  search: 'M9 14.5a5.5 5.5 0 1 0 0-11 5.5 5.5 0 0 0 0 11zM13 13l4 4',
  sun: 'M10 13.5a3.5 3.5 0 1 0 0-7 3.5 3.5 0 0 0 0 7zM10 1.5v2M10 16.5v2M1.5 10h2M16.5 10h2M4 4l1.4 1.4M14.6 14.6L16 16M4 16l1.4-1.4M14.6 5.4L16 4',
  moon: 'M16 12.2A6.8 6.8 0 0 1 7.8 4 6.8 6.8 0 1 0 16 12.2z',
  inside: 'M3 3h14v14H3zM3 7.7h14M3 12.3h14M7.7 3v14M12.3 3v14M8.5 8.5h3v3h-3z',
  warning: 'M10 3l8 14H2zM10 8v4M10 14.5v.1',
};

/**
 * A decorative drawing; what it stands for is said by the element around it.
 * @param {keyof typeof ICONS} name
 */
export function icon(name) {
  const svg = document.createElementNS(SVG, 'svg');
  svg.setAttribute('viewBox', '0 0 20 20');
  svg.setAttribute('class', 'icon');
  svg.setAttribute('aria-hidden', 'true');
  const path = document.createElementNS(SVG, 'path');
  path.setAttribute('d', ICONS[name]);
  svg.append(path);
  return svg;
}

/** A button that shows only a drawing; its label is its name and its tooltip. */
export function iconButton(name, label, onclick, attributes = {}) {
  return element('button', { type: 'button', class: 'icon-button', 'aria-label': label, title: label, onclick, ...attributes }, icon(name));
}
