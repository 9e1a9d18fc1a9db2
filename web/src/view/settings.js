// Settings: appearance, how answers are made, the server's key, and the person's data. Every change holds at once.

import { element } from '../dom.js';
import { PARAMETERS, parseParameter } from '../store/preferences.js';
import { confirm, openDialog } from './dialog.js';

const THEMES = [
  ['system', 'As the system'],
  ['light', 'Light'],
  ['dark', 'Dark'],
];

/**
 * @param {{preferences: import('../store/preferences.js').Preferences, models: () => import('../api/client.js').Model[],
 *   model: () => import('../api/client.js').Model | null, onkey: () => void, onexport: (all: boolean) => void,
 *   onimport: (file: File) => void, onclear: () => void, canExportOne: () => boolean, count: () => number}} context
 * @param {'key' | undefined} focus the part that is needed
 */
export function openSettings(context, focus) {
  const dialog = openDialog('Settings', { class: 'settings' }, appearance(context), answers(context), server(context), data(context), about());
  if (focus === 'key') dialog.querySelector('#api-key').focus();
  return dialog;
}

function section(title, ...children) {
  return element('section', {}, element('h3', {}, title), ...children);
}

function appearance({ preferences }) {
  const choices = THEMES.map(([value, label]) => {
    const input = element('input', { type: 'radio', name: 'theme', value, checked: preferences.get('theme') === value, onchange: () => preferences.set('theme', value) });
    return element('label', {}, input, element('span', {}, label));
  });
  return section('Appearance', element('fieldset', { class: 'segments' }, element('legend', { class: 'visually-hidden' }, 'Theme'), ...choices));
}

function answers(context) {
  const { preferences, models, model } = context;
  const defaults = model()?.defaults ?? {};
  const fields = PARAMETERS.map((parameter) => numberField(preferences, parameter, defaults[parameter.name]));
  const system = element('textarea', {
    id: 'system',
    rows: '3',
    placeholder: 'For example: Answer in one sentence.',
    'aria-describedby': 'system-hint',
    oninput: () => preferences.set('system', system.value),
  });
  system.value = preferences.get('system');
  const reset = () => {
    preferences.resetParameters();
    for (const { input } of fields) input.value = '';
    for (const { check } of fields) check();
    system.value = '';
  };
  const several = models().length > 1;
  const chooser = element('select', { id: 'model', onchange: () => preferences.set('model', chooser.value) });
  chooser.append(...models().map(({ id }) => element('option', { value: id, selected: id === model()?.id }, id)));
  return section(
    'Answers',
    several ? element('div', { class: 'field' }, element('label', { for: 'model' }, 'Model'), chooser) : '',
    element('div', { class: 'fields' }, ...fields.map(({ root }) => root)),
    element(
      'div',
      { class: 'field' },
      element('label', { for: 'system' }, 'Instructions'),
      system,
      element('p', { class: 'hint', id: 'system-hint' }, 'Goes before every conversation as the system text.'),
    ),
    element('div', { class: 'dialog-buttons start' }, element('button', { type: 'button', class: 'button', onclick: reset }, 'Back to the defaults')),
  );
}

function numberField(preferences, parameter, normal) {
  const { name, label, hint, minimum, maximum } = parameter;
  const id = `parameter-${name}`;
  const value = preferences.get(name);
  const input = element('input', {
    id,
    type: 'text',
    inputmode: 'decimal',
    autocomplete: 'off',
    value: value === null ? '' : String(value),
    placeholder: normal === undefined || normal === null ? 'Default' : `Default: ${normal}`,
    'aria-describedby': `${id}-hint`,
  });
  const words = element('p', { class: 'hint', id: `${id}-hint` });
  const check = () => {
    const parsed = parseParameter(parameter, input.value);
    const wrong = parsed === undefined;
    input.setAttribute('aria-invalid', String(wrong));
    words.classList.toggle('wrong', wrong);
    words.textContent = wrong ? range(minimum, maximum, parameter.whole) : hint;
    return parsed;
  };
  input.addEventListener('input', () => {
    const parsed = check();
    if (parsed !== undefined) preferences.set(name, parsed);
  });
  check();
  return { root: element('div', { class: 'field' }, element('label', { for: id }, label), input, words), input, check };
}

function range(minimum, maximum, whole) {
  const kind = whole ? 'a whole number' : 'a number';
  return maximum > 1_000_000 ? `Please enter ${kind} of ${minimum} or more.` : `Please enter ${kind} from ${minimum} to ${maximum.toLocaleString('en')}.`;
}

function server({ preferences, onkey }) {
  const key = element('input', { id: 'api-key', type: 'password', autocomplete: 'off', spellcheck: 'false', value: preferences.key, 'aria-describedby': 'key-hint' });
  const remember = element('input', { type: 'checkbox', checked: preferences.get('rememberKey'), onchange: () => preferences.setKey(key.value, remember.checked) });
  const use = (event) => {
    event.preventDefault();
    preferences.setKey(key.value, remember.checked);
    onkey();
  };
  return section(
    'Server',
    element(
      'form',
      { class: 'field', onsubmit: use },
      element('label', { for: 'api-key' }, 'API key'),
      element('div', { class: 'with-button' }, key, element('button', { type: 'submit', class: 'button' }, 'Use')),
      element('p', { class: 'hint', id: 'key-hint' }, 'Only needed when the server was started with one.'),
      element('label', { class: 'check' }, remember, 'Remember it in this browser'),
    ),
  );
}

function data(context) {
  const input = element('input', { type: 'file', accept: 'application/json,.json', hidden: true, id: 'import-file' });
  input.addEventListener('change', () => {
    const [file] = input.files;
    if (file) context.onimport(file);
    input.value = '';
  });
  const clear = async () => {
    const words = 'All conversations and their pictures are removed from this browser. This cannot be undone; an export keeps a copy.';
    if (await confirm('Delete all conversations?', words, 'Delete all')) context.onclear();
  };
  const button = (label, onclick, name = 'button', disabled = false) => element('button', { type: 'button', class: name, onclick, disabled }, label);
  return section(
    'Conversations',
    element('p', { class: 'hint' }, 'They are kept in this browser, pictures included. The server does not store them.'),
    element(
      'div',
      { class: 'dialog-buttons start' },
      button('Export all', () => context.onexport(true), 'button', context.count() === 0),
      button('Export this one', () => context.onexport(false), 'button', !context.canExportOne()),
      button('Import\u2026', () => input.click()),
      button('Delete all\u2026', clear, 'button danger', context.count() === 0),
    ),
    input,
  );
}

const KEYS = [
  ['Enter', 'send; on a phone it begins a new line'],
  ['Shift + Enter', 'new line'],
  ['Esc', 'stop the answer, leave a dialog or an edit'],
  ['\u2191 in an empty field', 'edit the last question'],
  ['Ctrl + V', 'paste a picture'],
];

function about() {
  const rows = KEYS.flatMap(([key, does]) => [element('dt', {}, element('kbd', {}, key)), element('dd', {}, does)]);
  return section('Keyboard', element('dl', { class: 'keys' }, ...rows));
}
