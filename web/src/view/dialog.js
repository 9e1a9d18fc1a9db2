// What all dialogs share: a title, a button that closes, Escape and a click beside it; the browser keeps the focus inside and gives it back.

import { element, iconButton } from '../dom.js';

let count = 0;

/**
 * Opens a dialog; it is taken apart when it closes.
 * @param {string} title
 * @param {{class?: string, onclose?: () => void}} options
 * @param {...(Node | string)} children
 * @returns {HTMLDialogElement}
 */
export function openDialog(title, { class: name = '', onclose } = {}, ...children) {
  const heading = element('h2', { id: `dialog-${(count += 1)}` }, title);
  const dialog = element(
    'dialog',
    { class: name, 'aria-labelledby': heading.id },
    element(
      'div',
      { class: 'dialog-frame' },
      element('header', {}, heading, iconButton('close', 'Close', () => dialog.close())),
      element('div', { class: 'dialog-body' }, ...children),
      element('div', { class: 'visually-hidden', role: 'status' }),
    ),
  );
  const opener = document.activeElement;
  dialog.addEventListener('pointerdown', (event) => {
    if (event.target === dialog) dialog.close();
  });
  dialog.addEventListener('close', () => {
    dialog.remove();
    onclose?.();
    // The opener may have been redrawn meanwhile; the question is the natural place then.
    if (document.activeElement === document.body) (opener?.isConnected ? opener : document.getElementById('question'))?.focus();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/**
 * Asks before something that cannot be undone.
 * @returns {Promise<boolean>}
 */
export function confirm(title, text, action) {
  return new Promise((resolve) => {
    let answer = false;
    const decide = () => {
      answer = true;
      dialog.close();
    };
    const buttons = element(
      'div',
      { class: 'dialog-buttons' },
      element('button', { type: 'button', class: 'button', onclick: () => dialog.close() }, 'Cancel'),
      element('button', { type: 'button', class: 'button danger', onclick: decide }, action),
    );
    const dialog = openDialog(title, { class: 'small', onclose: () => resolve(answer) }, element('p', {}, text), buttons);
    buttons.firstChild.focus();
  });
}
