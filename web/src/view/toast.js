// Short notices at the edge of the page, with at most one thing to do about them.

import { element, iconButton } from '../dom.js';

const SHOWN_FOR = 8000;

/**
 * @param {string} text
 * @param {{label: string, run: () => void, takesFocus?: boolean, returnTo?: () => HTMLElement | null}} [action]
 * @param {() => void} [gone] called once when the notice goes away without the action
 */
export function toast(text, action, gone) {
  let timer;
  const end = (acted) => {
    clearTimeout(timer);
    const focused = notice.contains(document.activeElement);
    notice.remove();
    if (!acted) gone?.();
    if (focused) action?.returnTo?.()?.focus();
  };
  const act = action && element('button', { type: 'button', class: 'text-button', onclick: () => (end(true), action.run()) }, action.label);
  const notice = element('div', { class: 'toast' }, element('p', {}, text), act, iconButton('close', 'Dismiss', () => end(false)));
  // Whoever reads it, or is about to press its button, has all the time in the world.
  const wait = () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (notice.matches(':hover') || notice.contains(document.activeElement)) wait();
      else end(false);
    }, SHOWN_FOR);
  };
  (document.querySelector('dialog[open]') ?? document.getElementById('toasts')).append(notice);
  wait();
  if (action?.takesFocus) act.focus();
  return { dismiss: () => end(false) };
}
