// The frame around everything: the head line, the list that slides in on narrow windows, the theme, and word of trouble with the server.

import { element, icon, iconButton } from '../dom.js';

const NARROW = '(max-width: 52rem)';

export class Shell {
  #narrow = matchMedia(NARROW);
  #sidebar = document.getElementById('sidebar');
  #main = document.getElementById('main');
  #title = element('h1');
  #model = element('p', { class: 'model' });
  #trouble = element('div', { class: 'trouble', hidden: true });
  #menu;
  #theme;

  /** @param {import('../store/preferences.js').Preferences} preferences */
  constructor(preferences) {
    this.#menu = iconButton('menu', 'Conversations', () => this.openSidebar(), { class: 'icon-button menu', 'aria-expanded': 'false', 'aria-controls': 'sidebar' });
    this.#theme = element('button', { type: 'button', class: 'icon-button', onclick: () => preferences.set('theme', isDark() ? 'light' : 'dark') });
    document.getElementById('head').append(this.#menu, this.#title, this.#model, this.#theme);
    document.getElementById('head').after(this.#trouble);
    document.getElementById('scrim').addEventListener('click', () => this.closeSidebar());
    this.#sidebar.addEventListener('keydown', (event) => {
      if (event.key === 'Escape' && this.#narrow.matches) this.closeSidebar();
    });
    this.#narrow.addEventListener('change', () => this.closeSidebar(false));
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.#showTheme(preferences));
    preferences.addEventListener('change', ({ detail }) => detail === 'theme' && this.#showTheme(preferences));
    this.#showTheme(preferences);
    this.closeSidebar(false);
  }

  setTitle(title, empty) {
    this.#title.textContent = empty ? 'mini-gemini' : title;
    document.title = empty ? 'mini-gemini' : `${title} \u00b7 mini-gemini`;
  }

  setModel(name) {
    this.#model.textContent = name;
    this.#model.title = name ? `The model that answers: ${name}` : '';
  }

  /** @param {string | null} words null when all is well @param {{label: string, run: () => void}} [action] */
  setTrouble(words, action) {
    this.#trouble.hidden = !words;
    if (!words) return this.#trouble.replaceChildren();
    const button = element('button', { type: 'button', class: 'button', onclick: action.run }, action.label);
    this.#trouble.replaceChildren(icon('warning'), element('p', {}, words), button);
  }

  openSidebar() {
    this.#setOpen(true);
    this.#sidebar.querySelector('button')?.focus();
  }

  closeSidebar(focus = true) {
    const wasOpen = this.#sidebar.classList.contains('open');
    this.#setOpen(false);
    if (wasOpen && focus) this.#menu.focus();
  }

  /** On narrow windows either the list or the conversation is there, for the keyboard too. */
  #setOpen(open) {
    const narrow = this.#narrow.matches;
    this.#sidebar.classList.toggle('open', narrow && open);
    document.getElementById('scrim').hidden = !(narrow && open);
    this.#sidebar.inert = narrow && !open;
    this.#main.inert = narrow && open;
    this.#menu.setAttribute('aria-expanded', String(narrow && open));
  }

  #showTheme(preferences) {
    const theme = preferences.get('theme');
    if (theme === 'system') delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    const label = isDark() ? 'Light colours' : 'Dark colours';
    this.#theme.setAttribute('aria-label', label);
    this.#theme.title = label;
    this.#theme.replaceChildren(icon(isDark() ? 'sun' : 'moon'));
  }
}

function isDark() {
  const { theme } = document.documentElement.dataset;
  return theme ? theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
}
