// Short notices at the edge of the page, with at most one thing to do about them.

import { element, iconButton } from '../dom.js';
import { announce } from './announce.js';

const SHOWN_FOR = 8000;

/**
 * @param {string} text
 * @param {{label: string, run: () => void, takesFocus?: boolean, left?: () => void}} [action] `left` is called when the notice goes away
 *   while it has the focus
 */
export function toast(text, action) {
  let timer;
  const end = (acted) => {
    clearTimeout(timer);
    const focused = notice.contains(document.activeElement);
    notice.remove();
    if (focused && !acted) action?.left?.();
  };
  const act = () => {
    end(true);
    action.run();
  };
  const button = action && element('button', { type: 'button', class: 'text-button', onclick: act }, action.label);
  const notice = element('div', { class: 'toast' }, element('p', {}, text), button, iconButton('close', 'Dismiss', () => end(false)));
  // Whoever reads it, or is about to press its button, has all the time in the world.
  const wait = () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (notice.matches(':hover') || notice.contains(document.activeElement)) wait();
      else end(false);
    }, SHOWN_FOR);
  };
  (document.querySelector('dialog[open]') ?? document.getElementById('toasts')).append(notice);
  announce(text);
  wait();
  if (action?.takesFocus) button.focus();
}
