// What an empty conversation shows: what this is for, and pictures to try it on.

import { element } from '../dom.js';

const EXAMPLES = [
  { file: 'cat.jpg', question: 'What animal is this?', shows: 'A cat looks into the camera' },
  { file: 'coffee.jpg', question: 'What is in the cup?', shows: 'A cup of espresso on a wooden table' },
  { file: 'astronaut.jpg', question: 'Is there a person?', shows: 'An astronaut in front of a flag' },
];

/** @param {(file: string, question: string) => void} ontry */
export function welcome(ontry) {
  const phone = matchMedia('(pointer: coarse)').matches;
  const cards = EXAMPLES.map(({ file, question, shows }) =>
    element(
      'li',
      {},
      element(
        'button',
        { type: 'button', class: 'example', onclick: () => ontry(file, question) },
        element('img', { src: `examples/${file}`, alt: shows, loading: 'lazy', width: '240', height: '160' }),
        element('span', {}, question),
      ),
    ),
  );
  return element(
    'section',
    { class: 'welcome', 'aria-labelledby': 'welcome-title' },
    element('h2', { id: 'welcome-title' }, 'Ask about a picture'),
    element('p', {}, phone ? 'Take a photograph or choose a picture below, or begin with one of these.' : 'Drop, paste or choose a picture, or begin with one of these.'),
    element('ul', { class: 'examples' }, ...cards),
  );
}
