// Copying to the clipboard.

import { element, icon } from '../dom.js';
import { announce } from './announce.js';

const SHOWN_FOR = 1600;

/** @returns {Promise<boolean>} whether it worked */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyByCommand(text);
  }
}

/** Pages without TLS on other machines have no `navigator.clipboard`. */
function copyByCommand(text) {
  const field = element('textarea', { class: 'visually-hidden', readonly: true, 'aria-hidden': 'true' });
  field.value = text;
  const focused = document.activeElement;
  (document.querySelector('dialog[open]') ?? document.body).append(field);
  field.select();
  const copied = document.execCommand('copy');
  field.remove();
  focused?.focus();
  return copied;
}

/**
 * A button that copies and says so.
 * @param {() => string} text
 * @param {string} label
 */
export function copyButton(text, label) {
  const button = element('button', { type: 'button', class: 'icon-button', 'aria-label': label, title: label }, icon('copy'));
  let timer;
  button.addEventListener('click', async () => {
    const copied = await copyText(text());
    announce(copied ? 'Copied' : 'The browser does not allow copying here');
    if (!copied) return;
    button.replaceChildren(icon('check'));
    clearTimeout(timer);
    timer = setTimeout(() => button.replaceChildren(icon('copy')), SHOWN_FOR);
  });
  return button;
}
